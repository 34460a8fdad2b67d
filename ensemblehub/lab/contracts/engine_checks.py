"""The contract of `generators/base.py`: what every engine promises, whatever it runs on.

The tests of this package run these checks on all its engines, with the `hf` engine as reference; `validate`
runs them on any engine, without one.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ensemblehub.cost import Cost, UsageLedger
from ensemblehub.errors import CapabilityError, ContextOverflowError, EnsembleHubError
from ensemblehub.generators.base import Engine
from ensemblehub.lab.contracts.checks import Check, collector, refusing
from ensemblehub.lab.tasks.builtin_math import BuiltinMath
from ensemblehub.schema import Chat, Message, Piece, Request, Sampling, Token

ITEMS = list(BuiltinMath().items("test", 16))
CLOSE = 1e-3  # nats
CHECKS: list[Check] = []
about = collector(CHECKS)


@dataclass
class EngineSubject:
    """An engine under test.

    Attributes:
        engine: loaded.
        reference: an engine with the same model whose greedy texts the engine's have to equal; by default
            itself, so that texts are held against what it writes alone.
        endless: sampling options with which an answer does not end; by default the end token is ignored.
        fresh: another engine like it, not loaded; None leaves out what needs one.
        small: another engine like it with a context of some hundred tokens; None takes `engine`.
        long: maximum length of an answer that ends by itself.
        scripted: whether it plays a script, and writes the same whatever is asked.
        continues: whether what it writes behind a given start equals the reference's.
    """

    engine: Engine
    reference: Engine | None = None
    endless: dict[str, Any] = field(default_factory=lambda: {"ignore_eos": True})
    fresh: Engine | None = None
    small: Engine | None = None
    long: int = 700
    scripted: bool = False
    continues: bool = True
    ledger: UsageLedger = field(default_factory=UsageLedger)

    def can(self, ability: str) -> bool:
        """Whether the engine has a capability."""
        return ability in self.engine.capabilities

    def take_usage(self) -> Cost:
        """The usage since the last call."""
        total = self.ledger.total
        self.ledger.calls.clear()
        return total

    async def pieces(self, request: Request, engine: Engine | None = None) -> list[Piece]:
        """All pieces of an answer."""
        async with aclosing((engine or self.engine).stream(request, self.ledger.meter("answer"))) as stream:
            return [piece async for piece in stream]

    async def text(self, request: Request, engine: Engine | None = None) -> str:
        """The text of an answer."""
        return "".join(piece.text for piece in await self.pieces(request, engine))

    async def tokens(self, request: Request, engine: Engine | None = None) -> list[Token]:
        """The tokens of an answer."""
        return [token for piece in await self.pieces(request, engine) for token in piece.tokens]


def question(index: int = 0, **sampling: Any) -> Request:
    """A question of the built-in benchmark, answered greedily with at most 40 tokens unless said otherwise."""
    return Request(BuiltinMath().request(ITEMS[index]), Sampling(**{"max_tokens": 40, **sampling}))


def _joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@about("stream")
async def text(subject: EngineSubject) -> None:
    """greedy text equals the `hf` engine's token by token; only the last piece has a finish reason"""
    for index in range(4):
        pieces = await subject.pieces(question(index))
        assert _joined(pieces) == await subject.text(question(index), subject.reference)
        assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].finish in ("stop", "length")
        assert {piece.purpose for piece in pieces} == {"answer"}
        assert {piece.engine for piece in pieces} == {subject.engine.name}
        with_tokens = [piece for piece in pieces if piece.tokens]
        assert all("".join(token.text for token in piece.tokens) == piece.text for piece in with_tokens)


@about("stream")
async def ends(subject: EngineSubject) -> None:
    """an answer ends by itself, at a stop string (which is not shown) or at `max_tokens`"""
    whole = await subject.pieces(question(1, max_tokens=subject.long))
    written = _joined(whole)
    assert whole[-1].finish in ("stop", "length")
    assert len(written) > 9, "the answer is too short to be stopped"
    start = min(25, len(written) // 3)
    mark = written[start : start + 10]
    stopped = await subject.pieces(question(1, max_tokens=subject.long, stop=(mark, "never")))
    assert _joined(stopped) == written[: written.index(mark)]
    assert stopped[-1].finish == "stop"
    short = await subject.pieces(question(1, max_tokens=2))
    assert written.startswith(_joined(short))
    assert short[-1].finish == "length"


@about("stream")
async def together(subject: EngineSubject) -> None:
    """concurrent questions get the same answers as single ones"""
    alone = [await subject.text(question(index)) for index in range(8)]
    assert list(await asyncio.gather(*(subject.text(question(index)) for index in range(8)))) == alone


@about("stream")
async def seeds(subject: EngineSubject) -> None:
    """equal seeds give equal answers, different seeds different ones"""
    sampled = [question(2, temperature=2.0, seed=seed, max_tokens=200) for seed in (1, 1, 2, 3)]
    same, again, *others = [await subject.text(asked) for asked in sampled]
    assert same == again
    assert subject.scripted or set(others) != {same}


@about("stream")
async def overflow(subject: EngineSubject) -> None:
    """a prompt that does not fit the context is refused before any computation"""
    engine = subject.small or subject.engine
    known = engine.info.context > 0  # where no context is known, the server refuses
    words = "sails " * (max(3000, engine.info.context) if known else 3000)
    long = Request(Chat((Message("user", words),)), Sampling(max_tokens=40))
    subject.take_usage()
    with refusing(engine.name, ContextOverflowError if known else EnsembleHubError):
        await subject.text(long, engine)
    assert subject.take_usage().completion_tokens == 0
    assert await subject.text(question())


@about("stream")
async def closing(subject: EngineSubject) -> None:
    """closing a stream stops the model; the engine continues with other requests"""
    endless = question(0, max_tokens=1500, **subject.endless)
    subject.take_usage()
    async with aclosing(subject.engine.stream(endless, subject.ledger.meter("insight"))) as stream:
        for _ in range(3):
            await anext(stream)
    assert 3 <= subject.ledger.total.completion_tokens < 700
    assert subject.ledger.calls[0].purpose == "insight"
    expected = await subject.text(question(1), subject.reference)
    assert await subject.text(question(1)) == expected
    assert sum(call.purpose == "insight" for call in subject.ledger.calls) == 1


@about("stream")
async def cancelling(subject: EngineSubject) -> None:
    """a cancelled call is recorded in the usage exactly once"""
    subject.take_usage()
    task = asyncio.ensure_future(subject.text(question(4, max_tokens=subject.long)))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(0.05)
    assert len(subject.ledger.calls) == 1
    assert await subject.text(question(0))


@about("stream")
async def unread(subject: EngineSubject) -> None:
    """a stream that is not read does not block others and loses no text"""
    asked = question(5, max_tokens=60)
    async with aclosing(subject.engine.stream(asked, subject.ledger.meter("insight"))) as stream:
        first = await anext(stream)
        assert all(await asyncio.gather(*(subject.text(question(index)) for index in range(3))))
        rest = [piece async for piece in stream]
    assert _joined([first, *rest]) == await subject.text(asked, subject.reference)


@about("prefix")
async def prefix(subject: EngineSubject) -> None:
    """an answer continues a given start as if the model had generated it"""
    whole = await subject.text(question(6, max_tokens=60))
    head = " ".join(whole.split(" ")[:6])
    asked = question(6, max_tokens=25).continued(head)
    if not subject.can("prefix"):
        with refusing(subject.engine.name):
            await subject.text(asked)
        return
    rest = await subject.text(asked)
    assert rest, "nothing was written behind the given start"
    assert rest == await subject.text(asked, subject.reference) or not subject.continues


@about("score")
async def extended(subject: EngineSubject) -> None:
    """scoring an extended prompt gives the same result as scoring it from the start"""
    short, long = question(9).continued("There"), question(9).continued("There are 12 boats, so we add")
    meter = subject.ledger.meter("judge")
    if not subject.can("score"):
        with refusing(subject.engine.name, CapabilityError):
            await subject.engine.score(short, meter)
        return
    await subject.engine.score(short, meter)
    warm = await subject.engine.score(long, meter)
    again = await subject.engine.score(long, meter)
    fresh = await (subject.reference or subject.engine).score(long, meter)
    for read in (warm, again):
        for mine, other in zip(read.tokens[1:], fresh.tokens[1:], strict=True):
            assert mine.logprob is not None
            assert other.logprob is not None
            assert abs(mine.logprob - other.logprob) < CLOSE


@about("decode")
async def decoder(subject: EngineSubject) -> None:
    """stepping by hand gives the greedy text; distributions sum to one, and `drop` undoes steps"""
    meter = subject.ledger.meter("propose")
    if not subject.can("decode"):
        with refusing(subject.engine.name, CapabilityError):
            subject.engine.decoder(question(10), meter)
        return
    written = [token.id for token in await subject.tokens(question(10, max_tokens=12))]
    stepped = subject.engine.decoder(question(10, max_tokens=40), meter)
    line, ids = (await stepped.step()).logprobs, list[int]()
    for _ in written:
        assert math.isclose(float(np.exp(np.asarray(line, float)).sum()), 1, abs_tol=1e-3)
        ids.append(int(np.argmax(line)))
        line = (await stepped.step([ids[-1]])).logprobs
    assert ids == written
    first = (await stepped.step([5, 6, 7], drop=2)).logprobs
    await stepped.step([8, 9])
    again = (await stepped.step([7], drop=3)).logprobs
    assert np.allclose(first, again, atol=CLOSE)
    stepped.close()
    stepped.close()


@about("usage")
async def counts(subject: EngineSubject) -> None:
    """every call records its prompt and generated tokens under its purpose, with the tokens it lost"""
    subject.take_usage()
    await subject.text(question(7, max_tokens=30))
    (call,) = subject.ledger.calls
    cost = call.cost
    assert (call.engine, call.purpose, cost.calls) == (subject.engine.name, "answer", 1)
    assert 0 < cost.completion_tokens <= 30
    assert cost.discarded_tokens == 0
    assert cost.prompt_tokens > 0
    count = subject.engine.count(question(7))
    assert count is None or cost.prompt_tokens == count


@about("usage")
async def info(subject: EngineSubject) -> None:
    """size and context are known before weights load, and `describe` fits on one line"""
    assert "\n" not in subject.engine.describe()
    if subject.fresh is not None:
        assert subject.fresh.info == subject.engine.info
        await subject.fresh.close()
        await subject.fresh.close()  # harmless


@about("formats and tools")
async def formats(subject: EngineSubject) -> None:
    """a format or a tool that the engine does not support is refused, by its name"""
    tool = {"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}
    asked = {"response_format": {"type": "json_object"}, "tools": [tool]}
    for capability, value in asked.items():
        if not subject.can(capability):
            with refusing(subject.engine.name, CapabilityError):
                await subject.text(replace(question(), extra={capability: value}))
