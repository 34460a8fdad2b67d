"""Estimated cost of the mentor answering alone, for runs in which it did not.

Every figure derived from this is named `estimated_…`: the length of the mentor's answer is predicted from the
question's length by a straight line fitted on collected data, with an interval from its residuals.  The
estimate is cold, with the whole prompt read, and is compared with `Cost.cold_flops`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ensemblehub.schema import ModelInfo


@dataclass(frozen=True)
class Length:
    """The mentor's answer in tokens: `intercept + slope · prompt tokens`, off by `low` to `high` (95 %)."""

    __pydantic_config__: ClassVar[Any] = {"allow_inf_nan": False}

    intercept: float
    slope: float
    low: float
    high: float
    n: int

    def flops(self, info: ModelInfo, prompt_tokens: int) -> tuple[float, float, float]:
        """Return the estimated FLOPs of the mentor alone: mean and 95 % interval."""
        expected = self.intercept + self.slope * prompt_tokens
        written = [max(1, round(expected + off)) for off in (0.0, self.low, self.high)]
        mean, low, high = (info.flops(0, prompt_tokens + tokens - 1) for tokens in written)
        return mean, low, high


def estimated_mentor_alone(
    estimates: Mapping[str, Any], info: ModelInfo, prompt_tokens: int
) -> tuple[float, float, float] | None:
    """See `Length.flops`; None where nothing was collected for this judge."""
    stored = estimates.get("mentor_alone_tokens")
    return Length(**stored).flops(info, prompt_tokens) if stored else None
