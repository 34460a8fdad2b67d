"""vLLM's own OpenAI server as a mentor behind an API: a second process, on the CPU, in float32.

Started once for all tests, since a start takes a minute.
"""

import asyncio
import importlib.util
import re
from contextlib import aclosing

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("httpx2")
pytest.importorskip("psutil")  # vLLM needs it

import httpx2 as httpx

from benchmarks import engines
from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import ContextOverflowError, EngineError, RequestError
from ensemblehub.generators.hf.engine import HFEngine, HFOptions
from ensemblehub.generators.openai.engine import OpenAIEngine, OpenAIOptions
from ensemblehub.lab.tasks.builtin_math import BuiltinMath
from ensemblehub.schema import Chat, Message, Request, Sampling, Text

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vllm is not installed; `make test-vllm` installs a build for CPUs",
)
MENTOR = builtin.resolve("builtin:mentor")
ITEMS = list(BuiltinMath().items("test", 12))
CLOSE = 1e-3  # nats
START = 30  # seconds until a busy machine has begun a request


@pytest.fixture(scope="module")
def server():
    with engines.vllm_server("mentor") as server:
        yield server


def running(server):
    """Requests that vLLM computes now."""
    told = httpx.get(server.url + "/metrics", timeout=5).text
    return sum(
        float(value) for value in re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", told, re.MULTILINE)
    )


def question(index=0, **sampling):
    return Request(BuiltinMath().request(ITEMS[index]), Sampling(**{"max_tokens": 80} | sampling))


class Both:
    """The mentor behind the server and at home, for one test."""

    def __init__(self, server, **options):
        given = {"dialect": "vllm", "logprobs": True, "score": "echo", "tokenizer": MENTOR, **options}
        self.far = OpenAIEngine("far", OpenAIOptions("mentor", base_url=f"{server.url}/v1", **given))
        self.home, self.ledger = HFEngine("home", HFOptions(MENTOR, device="cpu")), UsageLedger()

    def run(self, work):
        async def closed():
            try:
                return await work(self)
            finally:
                await asyncio.gather(self.far.close(), self.home.close())

        return asyncio.run(closed())

    async def pieces(self, request, engine=None):
        return [piece async for piece in (engine or self.far).stream(request, self.ledger.meter("answer"))]

    async def text(self, request, engine=None):
        return "".join(piece.text for piece in await self.pieces(request, engine))


def test_greedy_answers_are_those_of_the_hf_engine_with_their_logprobs(server):
    async def work(both):
        for index in range(6):
            ours, theirs = await both.pieces(question(index)), await both.pieces(question(index), both.home)
            assert "".join(piece.text for piece in ours) == "".join(piece.text for piece in theirs)
            assert ours[-1].finish == theirs[-1].finish
            ours, theirs = (
                [token for piece in pieces for token in piece.tokens] for pieces in (ours, theirs)
            )
            for mine, other in zip(ours, theirs, strict=False):
                assert mine.logprob == pytest.approx(other.logprob, abs=CLOSE)

    Both(server).run(work)


def test_runs_with_a_mentor_behind_the_server_are_those_of_the_pair_at_home(server):
    far = [
        "engine=openai",
        "path=mentor",
        "dialect=vllm",
        f"base_url={server.url}/v1",
        "tokenizer=builtin:mentor",
    ]

    async def runs(config):
        async with AsyncEnsemble.from_config(config) as ensemble:
            asked = [Request(BuiltinMath().request(item), Sampling(max_tokens=300)) for item in ITEMS]
            return [await ensemble.generate(request) for request in asked]

    away = asyncio.run(runs(Config.read(builtin.CONFIG, [f"model_specs.0.{option}" for option in far])))
    home = asyncio.run(runs(Config.read(builtin.CONFIG)))
    told = [
        [(run.insight, run.text, [verdict.level for verdict in run.verdicts]) for run in results]
        for results in (away, home)
    ]
    differ = sum(left != right for left, right in zip(*told, strict=True))
    print(f"{differ} of {len(ITEMS)} runs differ")
    assert differ <= 1  # where two tokens are as likely, the last bits decide
    assert len({run.verdicts[-1].level for run in away}) > 1


def test_a_run_with_a_sufficient_insight_frees_the_mentor_over_there(server):
    far = [
        f"model_specs.0.{option}" for option in ("engine=openai", "path=mentor", f"base_url={server.url}/v1")
    ]
    stopping = [
        f"ensemble.output_aggregation_params.{option}"
        for option in ("judge=fixed:low", "levels={low: 6, high: 128}")
    ]

    async def run():
        async with AsyncEnsemble.from_config(Config.read(builtin.CONFIG, [*far, *stopping])) as ensemble:
            found = await ensemble.generate(Request(BuiltinMath().request(ITEMS[3]), Sampling(max_tokens=60)))
            async with asyncio.timeout(2):
                while await asyncio.to_thread(running, server):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            return found

    (insight,) = [line.cost for line in asyncio.run(run()).usage.lines if line.purpose == "insight"]
    assert insight.completion_tokens == 6
    assert insight.estimated  # it was left before the server told its usage


def test_a_prompt_is_read_as_the_hf_engine_reads_it(server):
    async def work(both):
        asked = [
            *map(question, range(6)),
            question(0).continued("There are"),
            Request(Text("There are 3 mugs.")),
        ]
        asked.append(Request(Chat((Message("user", "What is <|end|> \u2603?"),))))
        for request in asked:
            ours = await both.far.score(request, both.ledger.meter("judge"))
            theirs = await both.home.score(request, UsageLedger().meter("judge"))
            same = [(token.id, token.text, token.message, token.start, token.end) for token in ours.tokens]
            assert same == [
                (token.id, token.text, token.message, token.start, token.end) for token in theirs.tokens
            ]
            assert ours.tokens[0].logprob is ours.tokens[0].entropy is None
            for mine, other in zip(ours.tokens[1:], theirs.tokens[1:], strict=True):
                assert mine.logprob == pytest.approx(other.logprob, abs=CLOSE)
                assert mine.best == pytest.approx(other.best, abs=CLOSE)
                assert mine.top[0].id == other.top[0].id
                assert other.entropy - 3 < mine.entropy <= other.entropy + 1e-5  # of 20 in 992: a lower bound
        costs = [call.cost for call in both.ledger.calls]
        assert all(
            cost.completion_tokens == cost.discarded_tokens == 1 and not cost.estimated for cost in costs
        )

    Both(server).run(work)


def test_more_top_tokens_than_the_server_gives_are_an_error(server):
    async def work(both):
        with pytest.raises(RequestError, match="20"):
            await both.far.score(question(), both.ledger.meter("judge"))
        assert both.ledger.total.completion_tokens == 0

    Both(server, entropy_top_k=50).run(work)


def test_a_tokenizer_of_another_model_is_found_out(server):
    async def work(both):
        with pytest.raises(EngineError, match="`tokenizer` is not that of its model"):
            await both.far.score(question(), both.ledger.meter("judge"))

    Both(server, tokenizer=builtin.resolve("builtin:guest")).run(work)


def test_cached_tokens_are_the_servers(server):
    async def work(both):
        first = await both.text(question(7))
        both.ledger.calls.clear()
        assert await both.text(question(7)) == first
        cost = both.ledger.total
        assert cost.prompt_tokens == both.far.count(question(7))
        assert cost.cached_tokens == (cost.prompt_tokens - 1) // 32 * 32 > 0
        assert not cost.estimated

    Both(server).run(work)


def test_an_answer_goes_on_from_a_prefix(server):
    async def work(both):
        for index in (1, 4):
            asked = question(index)
            head = (await both.text(asked))[:15]
            away = await both.text(asked.continued(head))
            # as the template writes an assistant's turn down, which this one does without the mark it opens one with
            turns = [{"role": message.role, "content": message.content} for message in asked.prompt.messages]
            turns.append({"role": "assistant", "content": head})
            template = both.far.tokenizer.tokenizer.apply_chat_template
            text = template(turns, tokenize=False, continue_final_message=True)
            assert text.endswith(head)
            there = Request(Text(text), asked.sampling)
            assert away == await both.text(there, both.home)

    Both(server).run(work)


@pytest.mark.parametrize("reads", [0, 5])
def test_leaving_frees_the_request_over_there_within_two_seconds(server, reads):
    async def busy(wanted, seconds):
        async with asyncio.timeout(seconds):
            while (await asyncio.to_thread(running, server) > 0) != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def work(both):
        endless = question(max_tokens=1800, ignore_eos=True)
        async with aclosing(both.far.stream(endless, both.ledger.meter("answer"))) as stream:
            task = asyncio.ensure_future(anext(stream))
            await busy(True, START)
            for _ in range(reads):
                await task
                task = asyncio.ensure_future(anext(stream))
            task.cancel()
            await asyncio.wait({task})
        await busy(False, 2)
        cost = both.ledger.total
        assert cost.estimated
        assert cost.completion_tokens < 100

    Both(server).run(work)


def test_what_does_not_fit_is_the_requests_fault(server):
    async def work(both):
        with pytest.raises(ContextOverflowError, match=r"length is 2048 tokens.*2048 in the"):
            await both.text(question(max_tokens=2048))
        assert not both.ledger.calls
        with pytest.raises(RequestError, match="2048"):
            await both.far.score(Request(Text("sails " * 2100)), both.ledger.meter("judge"))

    Both(server, context=2048).run(work)
    with pytest.raises(RequestError, match="2048"):  # where the context is not known here, the server refuses
        Both(server).run(
            lambda both: both.far.score(Request(Text("sails " * 2100)), both.ledger.meter("judge"))
        )


def test_what_the_server_can_do_is_seen_by_asking_it(server):
    async def work(both):
        return await both.far.probe(both.ledger)

    found = {outcome.ability: outcome for outcome in Both(server).run(work)}
    assert {"models", "streaming", "usage", "logprobs", "prefix", "score", "response_format"} <= {
        name for name, entry in found.items() if entry.seen
    }
    assert not any(entry.declared and not entry.seen for entry in found.values())
    assert "tool choice" in found["tools"].sentence
    assert found["models"].options == {"context": 2048}
    bare = {
        outcome.ability: outcome
        for outcome in Both(server, dialect="openai", score="none", tokenizer=None).run(work)
    }
    assert bare["models"].options == {"dialect": "vllm", "context": 2048}
    assert bare["prefix"].options == {"prefix": "continue_final_message"}
    assert bare["score"].options == {"score": "echo", "entropy_top_k": 20}


# The last one ends the server


def test_a_server_that_dies_is_an_error_and_what_came_is_billed(server):
    async def work(both):
        stream = both.far.stream(question(max_tokens=1800, ignore_eos=True), both.ledger.meter("answer"))
        await anext(stream)
        server.kill()
        with pytest.raises(EngineError, match="far"):
            async for _ in stream:
                pass
        assert both.ledger.total.completion_tokens > 0
        assert both.ledger.total.estimated

    Both(server).run(work)
