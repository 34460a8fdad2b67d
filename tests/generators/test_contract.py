"""The contract of `generators/base.py`, over every engine that is installed: the same tests, with the built-in mentor.

What an engine writes and reads is held against the `hf` engine's, `echo` against its script.  Where an engine cannot do
something, it must say so.  `python -m benchmarks.engine_contract` keeps what came out in `docs/engines.md`.
"""

import asyncio
import json
import math
from contextlib import aclosing, contextmanager
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np

from benchmarks import engines
from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import CapabilityError, ContextOverflowError, EnsembleHubError
from ensemblehub.lab.tasks.builtin_math import BuiltinMath
from ensemblehub.registry import ENGINES, lookup
from ensemblehub.schema import Chat, Message, Request, Sampling

ITEMS = list(BuiltinMath().items("test", 16))
CLOSE = 1e-3  # nats
WAIT = 300  # seconds for one test, or a start


class Subject:
    """An engine and what it is held against, on one event loop for all its tests."""

    def __init__(self, name, specs):
        self.name, self.specs = name, specs
        self.engine = self.made()
        self.reference = (
            self.made() if name == "echo" else self.made("hf", path="builtin:mentor", device="cpu")
        )
        self.ledger, self._runner = UsageLedger(), asyncio.Runner()

    def made(self, kind=None, **options):
        """Another engine like it, or one of another kind."""
        text = Config.read(builtin.CONFIG, [f"model_specs.0={self.spec(kind, **options)}"])
        spec = text.model_specs[0]
        engine = lookup(ENGINES, spec.engine, "engine")
        return engine(spec.name, engine.options(**spec.options))

    def spec(self, kind=None, **options):
        return json.dumps(
            {"name": "mentor", "engine": kind, **options} if kind else self.specs("mentor") | options
        )

    def run(self, work):
        return self._runner.run(asyncio.wait_for(work, WAIT))

    async def load(self):
        await asyncio.gather(self.engine.load(), self.reference.load())

    async def close(self):
        await asyncio.gather(self.engine.close(), self.reference.close())

    def can(self, ability):
        return ability in self.engine.capabilities

    @property
    def scripted(self):
        return self.name == "echo"

    def take_usage(self):
        total = self.ledger.total
        self.ledger.calls.clear()
        return total

    async def pieces(self, request, engine=None):
        stream = (engine or self.engine).stream(request, self.ledger.meter("answer"))
        return [piece async for piece in stream]

    async def text(self, request, engine=None):
        return "".join(piece.text for piece in await self.pieces(request, engine))

    async def tokens(self, request, engine=None):
        return [token for piece in await self.pieces(request, engine) for token in piece.tokens]


@pytest.fixture(scope="module", params=engines.NAMES)
def started(request):
    lacking = engines.missing(request.param)
    if (
        lacking and "vllm" not in request.param and request.param != "llama_cpp"
    ):  # which need another environment
        pytest.fail(lacking)
    if lacking:
        pytest.skip(lacking)
    with engines.started(request.param, ["mentor"]) as specs:
        subject = Subject(request.param, specs)
        try:
            subject.run(subject.load())
            yield subject
        finally:
            subject.run(subject.close())


@pytest.fixture
def subject(started):
    started.take_usage()
    return started


@pytest.fixture
def able(subject, request, record_property):
    """Whether the engine can do what the test is about; what came out is written down."""
    mark = request.node.get_closest_marker("ability")
    ability, needs = mark.args[0], mark.kwargs.get("needs", mark.args[0])
    does = needs in ("stream", "usage", "tandem") or subject.can(needs)
    record_property("contract", [subject.name, ability, request.function.__doc__, does])
    return does


def question(index=0, **sampling):
    return Request(BuiltinMath().request(ITEMS[index]), Sampling(**{"max_tokens": 40} | sampling))


@contextmanager
def refusing(subject, kind=EnsembleHubError):
    """What happens in here is refused, in one line that names the engine."""
    with pytest.raises(kind) as found:
        yield
    assert subject.engine.name in str(found.value)
    assert "\n" not in str(found.value)


# Writing


@pytest.mark.ability("stream")
def test_text(subject, able):
    """greedy text equals the `hf` engine's token by token; only the last piece has a finish reason"""

    async def work():
        for index in range(4):
            pieces = await subject.pieces(question(index))
            expected = await subject.text(question(index), subject.reference)
            assert "".join(piece.text for piece in pieces) == expected
            assert len(pieces) > 10
            assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
            assert {piece.purpose for piece in pieces} == {"answer"}
            assert {piece.engine for piece in pieces} == {subject.engine.name}
            assert all(
                "".join(token.text for token in piece.tokens) == piece.text
                for piece in pieces
                if piece.tokens
            )

    subject.run(work())


@pytest.mark.ability("stream")
def test_ends(subject, able):
    """an answer ends at the end token, at a stop string (which is not shown) or at `max_tokens`"""

    async def work():
        whole = await subject.pieces(question(1, max_tokens=700))
        text = "".join(piece.text for piece in whole)
        assert whole[-1].finish == "stop"
        mark = text[25:35]
        stopped = await subject.pieces(question(1, max_tokens=700, stop=(mark, "never")))
        assert "".join(piece.text for piece in stopped) == text[: text.index(mark)]
        assert stopped[-1].finish == "stop"
        short = await subject.pieces(question(1, max_tokens=7))
        assert text.startswith("".join(piece.text for piece in short))
        assert short[-1].finish == "length"

    subject.run(work())


@pytest.mark.ability("stream")
def test_together(subject, able):
    """concurrent questions get the same answers as single ones"""

    async def work():
        alone = [await subject.text(question(index)) for index in range(8)]
        together = await asyncio.gather(*(subject.text(question(index)) for index in range(8)))
        assert list(together) == alone

    subject.run(work())


@pytest.mark.ability("stream")
def test_seeds(subject, able):
    """equal seeds give equal answers, different seeds different ones"""

    async def work():
        sampled = [question(2, temperature=2.0, seed=seed, max_tokens=200) for seed in (1, 1, 2, 3)]
        same, again, *others = [await subject.text(token) for token in sampled]
        assert same == again
        assert subject.scripted or set(others) != {same}

    subject.run(work())


@pytest.mark.ability("stream")
def test_characters(subject, able):
    """no character is split between pieces, whatever the tokens' bytes"""

    async def work():
        for seed in range(4):
            pieces = await subject.pieces(question(3, temperature=2.0, seed=seed, max_tokens=120))
            ids = [token.id for piece in pieces for token in piece.tokens]
            text = "".join(piece.text for piece in pieces)
            assert text.encode().decode() == text
            if ids and None not in ids:
                whole = subject.reference.tokenizer.decode([index for index in ids if index not in controls])
                assert text == whole

    controls = frozenset() if subject.scripted else subject.reference.tokenizer.controls
    subject.run(work())


@pytest.mark.ability("stream")
def test_overflow(subject, able):
    """a prompt that does not fit the context is refused before any computation"""

    async def work():
        long = Request(Chat((Message("user", "sails " * 3000),)), Sampling(max_tokens=40))
        engine = subject.made(context=500) if subject.scripted else subject.engine
        known = subject.name != "openai_bare"  # where no context is known, the server refuses
        with refusing(subject, ContextOverflowError if known else EnsembleHubError):
            await subject.text(long, engine)
        assert subject.take_usage().completion_tokens == 0
        assert await subject.text(question())

    subject.run(work())


# Being left


@pytest.mark.ability("stream")
def test_closing(subject, able):
    """closing a stream stops the model; the engine continues with other requests"""

    async def work():
        endless = question(
            0, max_tokens=1500, **({} if subject.name in ("echo", "openai_bare") else {"ignore_eos": True})
        )
        async with aclosing(subject.engine.stream(endless, subject.ledger.meter("insight"))) as stream:
            for _ in range(3):
                await anext(stream)
        cost = subject.ledger.total
        assert 3 <= cost.completion_tokens < 700
        assert subject.ledger.calls[0].purpose == "insight"
        expected = await subject.text(question(1), subject.reference)
        assert await subject.text(question(1)) == expected
        assert sum(call.purpose == "insight" for call in subject.ledger.calls) == 1

    subject.run(work())


@pytest.mark.ability("stream")
def test_cancelling(subject, able):
    """a cancelled call is recorded in the usage exactly once"""

    async def work():
        task = asyncio.ensure_future(subject.text(question(4, max_tokens=700)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() or subject.scripted
        await asyncio.sleep(0.05)
        assert len(subject.ledger.calls) == 1
        assert await subject.text(question(0))

    subject.run(work())


@pytest.mark.ability("stream")
def test_unread(subject, able):
    """a stream that is not read does not block others and loses no text"""

    async def work():
        async with aclosing(
            subject.engine.stream(question(5, max_tokens=60), subject.ledger.meter("insight"))
        ) as stream:
            first = await anext(stream)
            others = await asyncio.gather(*(subject.text(question(index)) for index in range(3)))
            assert all(others)
            rest = [piece async for piece in stream]
        expected = await subject.text(question(5, max_tokens=60), subject.reference)
        assert "".join(piece.text for piece in (first, *rest)) == expected

    subject.run(work())


# Continuing, logprobs, reading, stepping


@pytest.mark.ability("prefix")
def test_prefix(subject, able):
    """an answer continues a given start as if the model had generated it"""

    async def work():
        whole = await subject.text(question(6, max_tokens=60))
        words = whole.split(" ")
        head = " ".join(words[:6])
        if not able:
            with refusing(subject):
                await subject.text(question(6).continued(head))
            return
        rest = await subject.text(question(6, max_tokens=25).continued(head))
        expected = await subject.text(question(6, max_tokens=25).continued(head), subject.reference)
        closed = subject.name == "openai_vllm"  # whose template opens the turn that it continues otherwise
        assert rest == expected or closed
        assert len(rest) > 20

    subject.run(work())


@pytest.mark.ability("logprobs")
def test_logprobs(subject, able):
    """generated tokens have the `hf` engine's logprobs and alternatives"""

    async def work():
        asked = question(7, top_logprobs=3)
        if not able:
            assert {token.logprob for token in await subject.tokens(asked)} == {None}
            return
        for asked in (question(7, top_logprobs=count) for count in (0, 1, 3)):
            ours, theirs = await subject.tokens(asked), await subject.tokens(asked, subject.reference)
            assert len(ours) == len(theirs)
            for mine, other in zip(ours, theirs, strict=True):
                assert mine.text == other.text
                assert mine.logprob == pytest.approx(other.logprob, abs=CLOSE)
                assert [alternative.text for alternative in mine.top[:1]] == [
                    alternative.text for alternative in other.top[:1]
                ]
                assert len(mine.top) == len(other.top)
                if mine.entropy is not None:
                    assert 0 <= mine.entropy <= other.entropy + CLOSE

    subject.run(work())


@pytest.mark.ability("score")
def test_score(subject, able):
    """every prompt token has its position, logprob and entropy; generated tokens are not part of the result"""

    async def work():
        asked = question(8).continued("There are")
        if not able:
            with refusing(subject, CapabilityError):
                await subject.engine.score(asked, subject.ledger.meter("judge"))
            return
        ours = await subject.engine.score(asked, subject.ledger.meter("judge"))
        cost = subject.take_usage()
        theirs = await subject.reference.score(asked, subject.ledger.meter("judge"))
        assert cost.completion_tokens == cost.discarded_tokens
        assert cost.prompt_tokens == len(ours.tokens) == len(theirs.tokens)
        places = [
            [(token.id, token.text, token.message, token.start, token.end) for token in read.tokens]
            for read in (ours, theirs)
        ]
        assert places[0] == places[1]
        assert ours.tokens[0].logprob is None
        for mine, other in zip(ours.tokens[1:], theirs.tokens[1:], strict=True):
            assert mine.logprob == pytest.approx(other.logprob, abs=CLOSE)
            assert mine.best == pytest.approx(other.best, abs=CLOSE)
            assert mine.entropy <= other.entropy + CLOSE
            if subject.engine.exact:
                assert mine.entropy == pytest.approx(other.entropy, abs=CLOSE)

    subject.run(work())


@pytest.mark.ability("score")
def test_extended(subject, able):
    """scoring an extended prompt gives the same result as scoring it from the start"""

    async def work():
        if not able:
            return
        short, long = question(9).continued("There"), question(9).continued("There are 12 boats, so we add")
        await subject.engine.score(short, subject.ledger.meter("judge"))
        warm = await subject.engine.score(long, subject.ledger.meter("judge"))
        again = await subject.engine.score(long, subject.ledger.meter("judge"))
        fresh = await subject.reference.score(long, subject.ledger.meter("judge"))
        for read in (warm, again):
            for mine, other in zip(read.tokens[1:], fresh.tokens[1:], strict=True):
                assert mine.logprob == pytest.approx(other.logprob, abs=CLOSE)

    subject.run(work())


@pytest.mark.ability("decode")
def test_decoder(subject, able):
    """stepping by hand gives the greedy text; distributions sum to one, and `drop` undoes steps"""

    async def work():
        if not able:
            with refusing(subject, CapabilityError):
                subject.engine.decoder(question(10), subject.ledger.meter("propose"))
            return
        written = [token.id for token in await subject.tokens(question(10, max_tokens=12))]
        decoder = subject.engine.decoder(question(10, max_tokens=40), subject.ledger.meter("propose"))
        line, ids = (await decoder.step()).logprobs, []
        for _ in written:
            assert math.isclose(float(np.exp(np.asarray(line, float)).sum()), 1, abs_tol=1e-3)
            ids.append(int(np.argmax(line)))
            line = (await decoder.step([ids[-1]])).logprobs
        assert ids == written
        first = (await decoder.step([5, 6, 7], drop=2)).logprobs
        await decoder.step([8, 9])
        again = (await decoder.step([7], drop=3)).logprobs
        assert np.allclose(first, again, atol=CLOSE)
        decoder.close()
        decoder.close()

    subject.run(work())


# Formats and tools

SCHEMA = {
    "type": "object",
    "properties": {"boats": {"enum": [1, 2, 3]}, "sails": {"enum": ["red", "white"]}},
    "required": ["boats", "sails"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "count", "parameters": SCHEMA, "strict": True}}


def keeping(subject, **extra):
    """A question whose answer has no white space, of which these small models write JSON without end."""
    tokenizer = builtin_tokenizer(subject)
    blank = [index for index, text in tokenizer if not text.strip()]
    return replace(question(11, max_tokens=200, logit_bias=dict.fromkeys(blank, -100.0)), extra=extra)


def builtin_tokenizer(subject):
    return [] if subject.scripted else enumerate(subject.reference.vocabulary.tokens)


def fits_schema(text):
    value = json.loads(text)
    return (
        set(value) == {"boats", "sails"}
        and value["boats"] in (1, 2, 3)
        and value["sails"] in ("red", "white")
    )


@pytest.mark.ability("response_format")
def test_format(subject, able):
    """an answer conforms to a JSON schema"""

    async def work():
        schema = {"name": "fleet", "schema": SCHEMA}
        asked = keeping(subject, response_format={"type": "json_schema", "json_schema": schema})
        if not able:
            with refusing(subject, CapabilityError):
                await subject.text(asked)
            return
        pieces = await subject.pieces(asked)
        assert fits_schema("".join(piece.text for piece in pieces))
        assert pieces[-1].finish == "stop"
        assert len(pieces) > 5
        with refusing(subject):
            await subject.text(
                keeping(subject, response_format={"type": "json_schema", "json_schema": {"name": "x"}})
            )

    subject.run(work())


@pytest.mark.ability("tools")
def test_tools(subject, able, monkeypatch):
    """a tool is called with arguments that conform to its schema"""

    async def work():
        asked = keeping(subject, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
        if not able:
            with refusing(subject, CapabilityError):
                await subject.text(asked)
            return
        with refusing(subject):  # the template of the built-in models knows no tools
            await subject.text(asked)
        tokenizer = subject.engine.tokenizer.tokenizer
        monkeypatch.setattr(
            tokenizer,
            "chat_template",
            "{% if tools %}{{ tools | tojson }}{% endif %}" + tokenizer.chat_template,
        )
        pieces = await subject.pieces(asked)
        calls = [part for piece in pieces for part in piece.tool_calls]
        assert [part["function"]["name"] for part in calls if "name" in part["function"]] == ["count"]
        assert fits_schema("".join(part["function"].get("arguments", "") for part in calls))
        assert pieces[-1].finish == "tool_calls"
        assert "".join(piece.text for piece in pieces) == ""
        assert (
            subject.ledger.calls[-1].cost.completion_tokens >= sum(len(piece.tokens) for piece in pieces) > 5
        )
        free = await subject.pieces(replace(question(11), extra={"tools": [TOOL], "tool_choice": "auto"}))
        assert "".join(piece.text for piece in free)
        assert free[-1].finish == "length"

    subject.run(work())


# Usage


@pytest.mark.ability("usage")
def test_usage(subject, able):
    """prompt, cached and generated tokens are recorded; a repeated prompt is read from the cache"""

    async def work():
        asked = question(7, max_tokens=30)  # long enough for whole blocks of vLLM's cache
        tokens = await subject.tokens(asked)
        first = subject.take_usage()
        assert first.completion_tokens == 30
        assert first.discarded_tokens == 0
        assert first.calls == 1
        count = subject.engine.count(asked)
        assert first.prompt_tokens == (subject.reference.count(asked) if count is None else count)
        assert subject.name.startswith("openai") or len(tokens) == 30
        await subject.text(asked)
        second = subject.take_usage()
        assert second.prompt_tokens == first.prompt_tokens
        blocks = (second.prompt_tokens - 1) // engines.BLOCK * engines.BLOCK
        assert second.cached_tokens >= blocks > 0 or subject.scripted
        assert not first.estimated
        assert first.flops > 0 or subject.name.startswith("openai")

    subject.run(work())


@pytest.mark.ability("usage")
def test_info(subject, able):
    """size and context are known before weights load, and `describe` fits on one line"""
    fresh, loaded = subject.made(), subject.engine
    assert fresh.info == loaded.info
    assert "\n" not in fresh.describe()
    if not subject.name.startswith("openai"):  # an API tells no size
        assert fresh.info.parameters > 1e6
    subject.run(fresh.close())
    subject.run(fresh.close())  # harmless


# Tandem


def runs(config, count=6):
    async def work():
        async with AsyncEnsemble.from_config(config) as ensemble:
            asked = [
                Request(BuiltinMath().request(item), replace(ensemble.sampling, max_tokens=120))
                for item in ITEMS
            ]
            return [await ensemble.generate(request) for request in asked[:count]]

    return asyncio.run(work())


def told(results):
    return [(run.insight, run.text, [verdict.level for verdict in run.verdicts]) for run in results]


@pytest.mark.ability("tandem")
def test_mentor(subject, able):
    """as Tandem's mentor beside an `hf` intern it gives the same run as two `hf` engines"""
    home = ["model_specs.0.device=cpu"]
    away = runs(Config.read(builtin.CONFIG, [f"model_specs.0={subject.spec()}"]))
    if subject.scripted:
        assert all(engines.ECHO.startswith(run.insight) and run.insight for run in away)
    elif subject.name != "openai_bare":  # which cannot be asked not to think
        assert told(away) == told(runs(Config.read(builtin.CONFIG, home)))
    assert all(any(line.purpose == "insight" for line in run.usage.lines) for run in away)
    assert len({run.verdicts[-1].level for run in away}) > 1 or subject.scripted
    stopped = [run for run in away if run.verdicts[-1].level in ("low", "medium")]
    budgets = {"low": 24, "medium": 64}
    for run in stopped:
        (insight,) = [line.cost for line in run.usage.lines if line.purpose == "insight"]
        assert insight.completion_tokens - insight.discarded_tokens <= budgets[run.verdicts[-1].level]


@pytest.mark.ability("tandem", needs="score")
def test_intern(subject, able):
    """as Tandem's intern it gives the same run as the `hf` engine, or is refused before weights load"""
    params = "ensemble.output_aggregation_params"
    roles = [f"{params}.mentor=intern", f"{params}.intern=mentor", f"{params}.judge=perplexity:1.6"]
    hf = '{"name": "intern", "engine": "hf", "path": "builtin:intern", "device": "cpu"}'
    config = Config.read(builtin.CONFIG, [f"model_specs.0={subject.spec()}", f"model_specs.1={hf}", *roles])
    if not able:
        with refusing(subject, CapabilityError):
            runs(config, 1)
    elif subject.scripted:
        assert all(run.text and engines.ECHO.startswith(run.text) for run in runs(config))
    else:
        home = Config.read(builtin.CONFIG, ["model_specs.0.device=cpu", f"model_specs.1={hf}", *roles])
        assert told(runs(config)) == told(runs(home))
