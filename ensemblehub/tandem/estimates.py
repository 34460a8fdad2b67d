"""Estimated cost of the mentor answering alone, for runs in which it did not.

Every figure derived from this is named `estimated_…`: the length of the mentor's answer is predicted from the
question's length by a straight line fitted on collected data, with an interval from its residuals, and is at
most what the request allows.  The estimate is cold, with the whole prompt read, and is compared with
`Cost.cold_flops`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ensemblehub.generators.base import Engine
from ensemblehub.schema import Chat, ModelInfo, Request


@dataclass(frozen=True)
class Length:
    """The mentor's answer in tokens: `intercept + slope · prompt tokens`, off by `low` to `high` (95 %).

    Attributes:
        n: number of answers that it was fitted on.
        thinking: the engine's `enable_thinking` with which they were written; None is the template's default.
    """

    __pydantic_config__: ClassVar[Any] = {"allow_inf_nan": False}

    intercept: float
    slope: float
    low: float
    high: float
    n: int
    thinking: bool | None = None

    def flops(
        self, info: ModelInfo, prompt_tokens: int, most: int = sys.maxsize
    ) -> tuple[float, float, float]:
        """Return the estimated FLOPs of the mentor alone: mean and 95 % interval.

        Args:
            most: maximum length of the answer, in tokens.
        """
        expected = self.intercept + self.slope * prompt_tokens
        written = [max(1, min(most, round(expected + off))) for off in (0.0, self.low, self.high)]
        mean, low, high = (info.flops(0, prompt_tokens + tokens - 1) for tokens in written)
        return mean, low, high

    def holds(self, request: Request, mentor: Engine) -> bool:
        """Whether the mentor thinks on a request as when the answers were written."""
        prompt = request.prompt
        if not isinstance(prompt, Chat):
            return True
        asked = mentor.thinking if prompt.thinking is None else prompt.thinking
        if asked == self.thinking:
            return True
        # The template's default cannot be rendered where the engine has a setting: has the template a switch?
        other = not asked if self.thinking is None and mentor.thinking is not None else self.thinking
        first, second = (replace(request, prompt=replace(prompt, thinking=mode)) for mode in (asked, other))
        return mentor.same_prompt(first, second)


def estimated_mentor_alone(
    estimates: Mapping[str, Any], request: Request, mentor: Engine
) -> tuple[float, float, float] | None:
    """See `Length.flops`; None where nothing that holds for the request was collected for this judge."""
    stored = estimates.get("mentor_alone_tokens")
    if not stored:
        return None
    length, sampling = Length(**stored), request.sampling
    asked = request if "tools" in mentor.capabilities else replace(request, extra={})
    read = mentor.count(asked)
    if read is None or not length.holds(asked, mentor):
        return None
    context = mentor.info.context - read if mentor.info.context else None
    limits = (sampling.max_tokens, sampling.max_completion_tokens, context)
    return length.flops(mentor.info, read, min(limit for limit in limits if limit is not None))
