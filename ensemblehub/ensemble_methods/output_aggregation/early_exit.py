"""`early_exit`: a thinking model is stopped once it is sure of its answer, or at a budget.

Yang et al., "Dynamic Early Exit in Reasoning Models" (DEER), arXiv 2504.15895: at points of transition a
trial answer is drawn, and thinking ends where the geometric mean of its tokens' probabilities is high.
Muennighoff et al., "s1: Simple test-time scaling", arXiv 2501.19393: budget forcing ends thinking at a
number of tokens, and prolongs it below one with "Wait". Ours: the points are the ends of paragraphs, for
any model, where DEER has the words with which its models begin a new thought.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, ClassVar

from annotated_types import Ge, Le

from ensemblehub.cost import Cost, UsageLedger
from ensemblehub.ensemble_methods.candidates import geometric_mean
from ensemblehub.ensemble_methods.roles import by_name, require
from ensemblehub.ensemble_methods.turns import EngineTurn, Segments, SoFar, ask, refuse, write_turn
from ensemblehub.errors import ConfigError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Chat, Choice, Event, Finish, Piece, Request, Token


@dataclass(frozen=True)
class EarlyExit(Segments):
    """One model thinks and answers; its thinking ends early where a trial answer is probable enough.

    Trial answers are no part of the text, and their usage is recorded as discarded.  Where the request or the
    model's options turn thinking off, the model answers alone.

    Requires `prefix` of the one model, and `logprobs` where there is a `threshold`.

    Use when a model goes on thinking long after it knows the answer.  Not when it needs its thoughts to the
    end: on built-in math 79.7 % at 0.83 of the cost of letting it think (87.5 %), with a threshold of 0.999.

    Attributes:
        engine: its name; the first engine by default.
        threshold: geometric mean probability of the trial answer's tokens that ends thinking; None: none is
            drawn.
        points: strings behind which a trial answer is drawn, where there is a `threshold`.
        trial, trial_end: what a trial answer is drawn behind, and what ends it.
        trial_tokens: tokens of a trial answer at most.
        end: the end of thinking, as the model writes it, or the name of its control token for that.
        closing: what ends thinking early; holds `end`, and may begin the answer.  Control tokens that this
            and `trial` name are written as such where the engine is on this machine.
        max_thinking: tokens after which thinking ends.
        min_thinking: tokens below which no trial answer is drawn, and at which a model that ends its
            thinking or its text earlier goes on behind `wait`.
        wait: text that takes the place of an end of thinking that comes too early.
        max_tokens, max_rounds, max_repeat: as for `loop`.
    """

    requires: ClassVar[frozenset[Capability]] = frozenset()  # of the one alone: see `check`

    engine: str | None = None
    threshold: Annotated[float, Ge(0), Le(1)] | None = 0.95
    points: tuple[str, ...] = ("\n\n",)
    trial: str = "\n**Final Answer**\n\\boxed{"
    trial_end: str = "}"
    trial_tokens: Annotated[int, Ge(1)] = 20
    end: str = "</think>"
    closing: str = "</think>\n\n"
    max_thinking: Annotated[int, Ge(1)] | None = None
    min_thinking: Annotated[int, Ge(0)] = 0
    wait: str = "\nWait"

    def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        request, so_far = self.limited(request), SoFar(request.prefix)
        engine = self.chosen(engines)
        if isinstance(prompt := request.prompt, Chat):
            switch = engine.thinking if prompt.thinking is None else prompt.thinking
            if switch is False:
                return self.written(request, [engine], ledger, lambda _: EngineTurn(engine))
        refuse(request, [engine])
        most = self.max_thinking or request.sampling.max_tokens

        def write(shown: Request) -> AsyncGenerator[Event, None] | Finish:
            thinking = not self.over(engine, so_far)
            points = () if self.threshold is None else self.points
            marks, left = (*points, self.end), max(1, most - so_far.tokens)
            turn = EngineTurn(engine, left, marks) if thinking else EngineTurn(engine)
            asked = ask(shown, turn, so_far)
            if asked.sampling.max_tokens < 1:
                return "length"
            if not thinking:
                return write_turn(turn, asked, so_far, ledger)
            return self.thought(turn, asked, so_far, most, ledger)

        return self.in_rounds(request, so_far, write)

    async def thought(
        self, turn: EngineTurn, asked: Request, so_far: SoFar, most: int, ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        """One paragraph of thinking, or the end of it."""
        engine = turn.engine
        if reason := await self.reason_to_end(engine, asked, so_far, most, ledger):
            yield Choice("answer", (engine.name,), (), reason)
            yield spoken(engine, self.closing)
            return
        early = so_far.tokens < self.min_thinking
        if early:  # the end of thinking is left out; stop strings of the request are looked for by the caller
            ends = (*asked.sampling.stop_token_ids, *controls(engine, self.end))
            asked = replace(asked, sampling=replace(asked.sampling, stop=(self.end,), stop_token_ids=ends))
        async with aclosing(write_turn(turn, asked, so_far, ledger)) as pieces:
            async for piece in pieces:
                if not early or piece.finish != "stop":
                    yield piece
                    continue
                kept = tuple(token for token in piece.tokens if token.text)  # without the token that ended it
                yield replace(piece, tokens=kept, finish=None)
                short = so_far.tokens < self.min_thinking
                yield spoken(engine, self.wait if short else self.closing)

    def over(self, engine: Engine, so_far: SoFar) -> bool:
        """Whether thinking has ended, by the text of `end` or by a control token of that name."""
        ends = controls(engine, self.end)
        written = (token.id for turn in so_far.turns for token in turn.tokens)
        return self.end in so_far.text or not ends.isdisjoint(written)

    async def reason_to_end(
        self, engine: Engine, asked: Request, so_far: SoFar, most: int, ledger: UsageLedger
    ) -> str:
        """Why thinking ends before another paragraph; empty where it goes on."""
        if self.max_thinking and so_far.tokens >= most:
            return f"{so_far.tokens} tokens of thinking, of {most} at most"
        if self.threshold is None or not so_far.rounds or so_far.tokens < self.min_thinking:
            return ""
        sure = await self.confidence(engine, asked, ledger)
        return f"the trial answer's probability is {sure:.3f}" if sure >= self.threshold else ""

    async def confidence(self, engine: Engine, asked: Request, ledger: UsageLedger) -> float:
        """Geometric mean probability of the tokens of a trial answer; 0 for one without an end."""
        sampling = replace(
            asked.sampling,
            max_tokens=self.trial_tokens,
            min_tokens=0,
            temperature=0.0,
            stop=(self.trial_end,),
        )
        written = (*asked.written, spoken(engine, self.trial))
        trial = replace(asked, sampling=sampling, prefix=asked.prefix + self.trial, written=written)
        known = list[float]()
        tokens, finish = 0, None
        async with aclosing(engine.stream(trial, ledger.meter("judge"))) as pieces:
            async for piece in pieces:
                tokens += len(piece.tokens)
                known += [token.logprob for token in piece.tokens if token.logprob is not None]
                finish = piece.finish
        ledger.add(engine.name, "judge", Cost(discarded_tokens=tokens))
        if tokens and not known:
            raise RequestError(f"{engine.name} gives no logprobs, and early_exit needs them")
        return geometric_mean(known) if known and finish == "stop" else 0.0

    def chosen(self, engines: Sequence[Engine]) -> Engine:
        """The engine that answers."""
        return by_name(engines, self.engine, "early_exit") if self.engine else engines[0]

    def roles(self, engines: Sequence[Engine]) -> tuple[Engine, ...]:
        return (self.chosen(engines),) if self.engine else ()

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        required: set[Capability] = {"prefix"} if self.threshold is None else {"prefix", "logprobs"}
        require(self.chosen(engines), required, "early_exit")
        if not self.end or not self.trial_end or not all(self.points):
            raise ConfigError("early_exit: `end`, `trial_end` and `points` must not be empty strings")
        if self.end not in self.closing:
            raise ConfigError(f"early_exit: `closing` has to hold `end`, {self.end!r}")
        if self.max_thinking is not None and self.max_thinking < self.min_thinking:
            raise ConfigError("early_exit: `max_thinking` is below `min_thinking`")


def controls(engine: Engine, text: str) -> frozenset[int]:
    """Ids of an engine's control tokens that `text` names; none of an engine without a tokenizer."""
    if engine.tokenizer is None:
        return frozenset()
    return engine.tokenizer.controls.intersection(engine.tokenizer.encode(text, special=False))


def spoken(engine: Engine, text: str) -> Piece:
    """`text` as if the engine had written it: control tokens that it names are those, not their letters."""
    named, tokenizer = controls(engine, text), engine.tokenizer
    tokens = [Token(text)] if text else []
    if named and tokenizer is not None:
        tokens = []
        for _, run in groupby(tokenizer.encode(text, special=False), named.__contains__):
            ids = list(run)
            texts = [""] * (len(ids) - 1) + [tokenizer.decode(ids)]  # a run's text belongs to its last token
            tokens += map(Token, texts, ids)
    return Piece(text, engine.name, "answer", tuple(tokens))
