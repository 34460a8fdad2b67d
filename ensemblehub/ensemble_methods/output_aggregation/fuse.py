"""`fuse`: members propose answers, and one model writes the final answer from all of them.

Mixture-of-agents: Wang et al., "Mixture-of-Agents Enhances Large Language Model Capabilities", ICLR 2025
(arXiv 2406.04692), section 2.2 and table 1; with one proposer and several samples it is Self-MoA (Li et al.,
"Rethinking Mixture-of-Agents", arXiv 2502.00674).
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal

from annotated_types import Ge

from ensemblehub.answers.equality import final_answer
from ensemblehub.builtin.prompts import CANDIDATES_HEADER
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.candidates import Candidate, CompleteAnswers, drafts, write_all
from ensemblehub.ensemble_methods.roles import by_name, largest
from ensemblehub.ensemble_methods.templates import check_template, filled, question_of, with_question
from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Event, Prompt, Request

TEMPLATES = {
    "instruct": """{question}

Several models have already answered the request above; their answers stand below. Combine them into one \
answer of high quality. Weigh critically what they say, for some of it may be biased or wrong, and do not \
merely repeat them: give a refined, accurate and complete reply to the request, well structured and \
coherent, to the highest standard of reliability.

Answers of the models:
{candidates}""",
    "builtin": "{question}" + CANDIDATES_HEADER + "{candidates}",
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fuse(CompleteAnswers):
    """A fuser model writes the answer from all models' proposals; only its text is streamed.

    Use when the fuser compares whole answers well, and cost is no matter.  Not when the proposers are
    weaker than the fuser: on 300 of built-in math 78.3 % at 4.6 times the mentor's compute; the mentor
    alone has 88.0 %.

    Attributes:
        fuser: engine by name; the largest of those selected by default.
        proposers: engines by name; all that are selected by default, the fuser among them.
        samples: proposals per proposer; one at temperature 0, where all are the same.
        layers: rounds of proposals; from the second on, proposers see the proposals of the round before
            as the fuser sees those of the last.
        template: what stands in place of the last message: `instruct` (the instructions of
            mixture-of-agents), `builtin` (for the built-in models), or a text with {question} and
            {candidates}.
        show: how a proposal is shown: in `full`, its `last_line`, or its final `answer` (in full where it has
            none).  Text before `</think>` is never shown.
    """

    fuser: str | None = None
    proposers: tuple[str, ...] = ()
    layers: Annotated[int, Ge(1)] = 1
    template: str = "instruct"
    show: Literal["full", "last_line", "answer"] = "full"

    async def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        fuser = self.fusing(engines)
        proposers = [by_name(engines, name, "fuse: proposers") for name in self.proposers] or engines
        self.asked(request.prompt, ())  # refused before any engine is called
        ask = request
        for layer in range(self.layers):
            proposals = drafts(ask.seeded("layer", layer), proposers, self.samples)
            await write_all(proposals, ledger)
            ask = replace(request, prompt=self.asked(request.prompt, proposals))
        async with aclosing(fuser.stream(ask, ledger.meter("answer"))) as answer:
            async for piece in answer:
                yield piece

    def asked(self, prompt: Prompt, proposals: Sequence[Candidate]) -> Prompt:
        """The question with the proposals, numbered from 1, in place of the prompt's last message.

        Raises:
            RequestError: the prompt is token ids, or has no message.
        """
        shown = [self.shown(proposal.reply) for proposal in proposals]
        listed = "\n".join(f"{place}. {text}" for place, text in enumerate(shown, 1))
        question = question_of(prompt, "fuse")
        return with_question(prompt, filled(self.words, question=question, candidates=listed))

    def shown(self, reply: str) -> str:
        """Return a proposal as the fuser sees it."""
        if self.show == "last_line":
            return reply.rpartition("\n")[2]
        return final_answer(reply) or reply if self.show == "answer" else reply

    @cached_property
    def words(self) -> str:
        """The configured template.

        Raises:
            ConfigError: it is neither the name of one nor a text with both places.
        """
        if self.template == "studio":
            log.warning("fuse: the template `studio` is called `builtin` now")
            return TEMPLATES["builtin"]
        if re.fullmatch(r"[\w-]+", self.template):
            if self.template not in TEMPLATES:
                raise ConfigError(f"fuse: {did_you_mean(self.template, TEMPLATES, 'template')}")
            return TEMPLATES[self.template]
        check_template(self.template, ["candidates", "question"], "fuse")
        return self.template

    def roles(self, engines: Sequence[Engine]) -> tuple[Engine, ...]:
        """The engines named as fuser or proposers.

        Raises:
            ConfigError: a name is unknown.
        """
        fuser = [by_name(engines, self.fuser, "fuse: fuser")] if self.fuser else []
        proposers = [by_name(engines, name, "fuse: proposers") for name in self.proposers]
        return tuple(dict.fromkeys(fuser + proposers))

    def parts(self, engines: Sequence[Engine]) -> dict[str, Engine]:
        return {"fuser": self.fusing(engines)}

    def fusing(self, engines: Sequence[Engine]) -> Engine:
        """Return the fuser: the engine of that name, else the largest."""
        return largest(engines, self.fuser, "fuse: fuser")

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        if len(set(self.proposers)) < len(self.proposers):
            raise ConfigError("fuse: a proposer is named twice; `samples` asks each for several answers")
        self.roles(engines)
        self.fusing(engines)
        self.words  # noqa: B018  # refuses what it cannot use
