"""`stepwise`: two models write one text, and every step goes to the small one or to the large one.

- `rule: entropy`: Zeng et al., "GlimpRouter", arXiv 2601.05110. The small model begins every step; the
  large one writes it where the entropy of its first token is high.
- `rule: score`: Pan et al., "SpecReason", arXiv 2504.07891.  The small model writes every step, the large one
  rates it from 0 to 9 with one token and rewrites it below the threshold. Ours: the mean over the digits
  among the top tokens, where there are logprobs, in place of the top digit.
- `rule: logprob`: a variant of SpecReason without a question: the geometric mean probability that the
  large model gives to the step's tokens, from one forward pass.
- `rule: reward`: Liao et al., "Reward-Guided Speculative Decoding", arXiv 2501.19324: a reward model
  rates the step.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from ensemblehub.cost import Cost, UsageLedger
from ensemblehub.ensemble_methods.acceptance import first_word
from ensemblehub.ensemble_methods.candidates import geometric_mean
from ensemblehub.ensemble_methods.escalation import LargeAndSmall
from ensemblehub.ensemble_methods.roles import require
from ensemblehub.ensemble_methods.templates import asked_about
from ensemblehub.ensemble_methods.turns import EngineTurn, Segments, SoFar, ask, refuse, write_turn
from ensemblehub.errors import ConfigError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Choice, Event, Finish, Piece, Request

RATE = """{question}

The beginning of someone else's solution:
{before}

Its next step:
{step}

Is that step correct and useful? Rate it from 0 (wrong) to 9 (right). Reply with one digit."""
DIGITS = tuple("0123456789")
THRESHOLDS = {"entropy": 1.0, "score": 7.0, "logprob": 0.5, "reward": 0.7}
RANGES = {"entropy": (0.0, math.inf), "score": (0.0, 9.0), "logprob": (0.0, 1.0)}
REQUIRES: dict[str, tuple[set[Capability], set[Capability]]] = {  # of the large and of the small model
    "entropy": (set(), {"logprobs"}),
    "score": (set(), set()),
    "logprob": ({"score"}, set()),
    "reward": (set(), set()),
}


@dataclass(frozen=True)
class Stepwise(LargeAndSmall, Segments):
    """The small model writes the steps that it can, the large one the others.

    A step ends behind the first of `separators`.  A step that is not kept is recorded as discarded.

    Requires `prefix` of both models, and at least 2; `rule: entropy` also `logprobs` of the small one,
    `logprob` also `score` of the large one, and `reward` scorers (`reward_specs`).

    Use when both models solve a problem in the same steps and go on from each other's.  Not when the small
    one was never trained to: on built-in math 27.7 to 31.0 % by entropy (intern alone 32.4 %), and 85.3 % at
    2.17 times the mentor's cost by its log-probability (mentor 87.5 %); on built-in code by entropy at most
    74.5 % (intern 85.5 %).

    Attributes:
        rule: who writes a step: `entropy`, `score`, `logprob` or `reward` (see the module).
        threshold: the first token's entropy in nats at most (`entropy`, default 1), or the step's rating
            at least (`score`: 7 of 9, `logprob`: 0.5 of 1, `reward`: 0.7).
        large, small: engines by name; the largest and the smallest by default.
        separators: strings that end a step.
        step_tokens: tokens of a step at most.
        max_tokens, max_rounds, max_repeat: as for `loop`.
    """

    requires: ClassVar[frozenset[Capability]] = frozenset()  # of the two alone: see `check`

    rule: Literal["entropy", "score", "logprob", "reward"] = "entropy"
    threshold: float | None = None
    separators: tuple[str, ...] = ("\n\n",)
    step_tokens: Annotated[int, Ge(1)] = 256

    def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        request, so_far = self.limited(request), SoFar(request.prefix)
        large, small = self.pair(engines)
        refuse(request, (large, small))
        step = self.glimpsed if self.rule == "entropy" else self.verified

        def write(shown: Request) -> AsyncGenerator[Event, None] | Finish:
            turns = [EngineTurn(engine, self.step_tokens, self.separators) for engine in (large, small)]
            asked = [ask(shown, turn, so_far) for turn in turns]
            if min(each.sampling.max_tokens for each in asked) < 1:
                return "length"
            return step(turns, asked, so_far, ledger)

        return self.in_rounds(request, so_far, write)

    async def glimpsed(
        self, turns: Sequence[EngineTurn], asked: Sequence[Request], so_far: SoFar, ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        """One step, by the small model if it is sure of the first token."""
        small, begun = turns[1].engine, False
        async with aclosing(write_turn(turns[1], asked[1], so_far, ledger)) as pieces:
            async for piece in pieces:
                if piece.tokens and not begun:
                    begun, entropy = True, piece.tokens[0].entropy
                    if entropy is None:
                        raise RequestError(f"{small.name} gives no entropies, and `rule: entropy` needs them")
                    kept = entropy <= self.limit
                    yield self.choice(turns, kept, f"entropy {entropy:.2f} of the first token", -entropy)
                    if not kept:
                        ledger.add(small.name, "answer", Cost(discarded_tokens=len(piece.tokens)))
                        break
                yield piece
            else:
                return
        async with aclosing(write_turn(turns[0], asked[0], so_far, ledger)) as pieces:
            async for piece in pieces:
                yield piece

    async def verified(
        self, turns: Sequence[EngineTurn], asked: Sequence[Request], so_far: SoFar, ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        """One step, by the small model if the large one or the scorers accept it."""
        small, step = turns[1].engine, list[Piece]()
        draft = SoFar(so_far.text)
        async with aclosing(write_turn(turns[1], asked[1], draft, ledger, "propose")) as pieces:
            async for piece in pieces:
                draft.add(piece)
                step.append(piece)
        text = draft.text.removeprefix(so_far.text)
        if text.strip():
            value = await self.rating(turns[0].engine, asked[0], text, ledger)
            kept = value >= self.limit
            yield self.choice(turns, kept, f"{self.rule} {value:.2f} of the step", value)
        else:
            kept = bool(so_far.text)  # the end of the text, but not of one that is empty
            writer = turns[1 if kept else 0].engine.name
            yield Choice("proposal", (writer,), (), f"the step is blank: {writer} writes")
        if kept:
            for piece in step:
                yield replace(piece, purpose="answer")
            return
        ledger.add(small.name, "propose", Cost(discarded_tokens=sum(len(piece.tokens) for piece in step)))
        async with aclosing(write_turn(turns[0], asked[0], so_far, ledger)) as pieces:
            async for piece in pieces:
                yield piece

    async def rating(self, large: Engine, asked: Request, step: str, ledger: UsageLedger) -> float:
        """The rating of a step of the small model behind `asked.prefix`."""
        before, prompt = replace(asked, written=()), asked.prompt
        if self.rule == "reward":
            return (await self.scorers.score(before, [step], ledger.meter("score")))[0]
        if self.rule == "score":
            written = asked.prefix or "(nothing yet)"
            question = asked_about(prompt, RATE, "stepwise", before=written, step=step.strip())
            shares = await first_word(large, Request(question), DIGITS, ledger.meter("judge"))
            total = sum(shares.values())
            return sum(int(digit) * share for digit, share in shares.items()) / total if total else 0.0
        scored = await large.score(before.continued(step), ledger.meter("judge"))
        answer = scored.after(prompt, len(asked.prefix))
        known = [token.logprob for token in answer if token.logprob is not None]
        return geometric_mean(known) if known else 0.0

    def choice(self, turns: Sequence[EngineTurn], kept: bool, seen: str, value: float) -> Choice:
        """Who writes a step, and why."""
        writer, small = turns[1 if kept else 0].engine, turns[1].engine
        return Choice(
            "proposal",
            (writer.name,),
            ((small.name, value),),
            f"{seen} against {self.limit:g}: {writer.name} writes",
        )

    @property
    def limit(self) -> float:
        """The configured threshold, or the rule's own."""
        return THRESHOLDS[self.rule] if self.threshold is None else self.threshold

    @property
    def uses_scorers(self) -> bool:  # type: ignore[override]  # depends on the rule
        return self.rule == "reward"

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        for engine, requires in zip(self.pair(engines), REQUIRES[self.rule], strict=True):
            require(engine, requires | {"prefix"}, "stepwise")
        least, most = RANGES.get(self.rule, (-math.inf, math.inf))
        if not least <= self.limit <= most:
            allowed = "at least 0" if most == math.inf else f"from 0 to {most:g}"
            raise ConfigError(
                f"stepwise: with `rule: {self.rule}` the threshold is {allowed}, not {self.limit:g}"
            )
        if not self.separators or not all(self.separators):
            raise ConfigError("stepwise: separators must name at least one string, and none that is empty")
