"""The contract of `generators/base.py`, over every engine that is installed: the same tests, with the built-in mentor.

What an engine writes and reads is held against the `hf` engine's, `echo` against its script.  Where an engine cannot do
something, it must say so.  `python -m benchmarks.engine_contract` keeps what came out in `docs/engines.md`.
"""

import asyncio
import json
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks import engines
from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import CapabilityError, EnsembleHubError
from ensemblehub.lab.contracts import checks
from ensemblehub.lab.contracts.engine_checks import CHECKS, CLOSE, ITEMS, EngineSubject, question
from ensemblehub.lab.tasks.builtin_math import BuiltinMath
from ensemblehub.registry import ENGINES, lookup
from ensemblehub.schema import Request

WAIT = 300  # seconds for one test, or a start


class Subject(EngineSubject):
    """An engine and what it is held against, on one event loop for all its tests."""

    def __init__(self, name, specs):
        self.name, self.specs = name, specs
        reference = self.made() if name == "echo" else self.made("hf", path="builtin:mentor", device="cpu")
        bare = name in ("echo", "openai_bare")
        super().__init__(
            self.made(),
            reference,
            endless={} if bare else {"ignore_eos": True},
            fresh=self.made(),
            small=self.made(context=500) if name == "echo" else None,
            scripted=name == "echo",
            continues=name != "openai_vllm",  # whose template opens the turn that it continues otherwise
        )
        self._runner = asyncio.Runner()

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
        await asyncio.gather(self.engine.close(), self.reference.close(), self.fresh.close())


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


def refusing(subject, kind=EnsembleHubError):
    """What happens in here is refused, in one line that names the engine."""
    return checks.refusing(subject.engine.name, kind)


def shared(check):
    """A check that `ensemblehub validate` runs, too."""

    @pytest.mark.ability(check.ability)
    def test(subject, able):
        subject.run(check.run(subject))

    test.__doc__ = check.title
    return test


for check in CHECKS:
    if check.name not in ("counts", "formats"):  # the tests below ask for more
        globals()[f"test_{check.name}"] = shared(check)


# Writing


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


# Logprobs, reading


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
