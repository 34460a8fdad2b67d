"""A prompt read through a server in a process of its own, as at home; so an intern may live behind an API."""

import asyncio
import json

import pytest
from test_hetero import runs

from ensemblehub import builtin
from ensemblehub.cli import main
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.generators.hf.engine import HFEngine, HFOptions
from ensemblehub.generators.openai.engine import OpenAIEngine, OpenAIOptions
from ensemblehub.lab.tasks.builtin_math import BuiltinMath
from ensemblehub.schema import Chat, Message, Request, Text, TokenIds

CLOSE = 1e-4  # nats
PATH = builtin.resolve("builtin:intern")
QUESTIONS = [BuiltinMath().request(item) for item in BuiltinMath().items("test", 4)]
PROMPTS = [
    *map(Request, QUESTIONS),
    Request(QUESTIONS[0], prefix="There are"),
    Request(Chat((Message("user", "What is <|end|>?"),))),
    Request(Text("There are 3 mugs. \u2603\nHow")),
    Request(TokenIds((9, 20, 300, 41))),
]


@pytest.fixture(scope="module")
def server(serve):
    return serve()


def read(server, *requests, **options):
    """Each prompt as the server's intern reads it and as one at home does, and the server's usage."""

    async def main():
        given = {"score": "echo", "tokenizer": PATH, "dialect": "vllm", **options}
        far = OpenAIEngine("far", OpenAIOptions("intern", base_url=f"{server.url}/v1", **given))
        home, ledger = HFEngine("home", HFOptions(PATH, device="cpu")), UsageLedger()
        found = []
        for request in requests:
            away = await far.score(request, ledger.meter("judge"))
            found.append((away, await home.score(request, UsageLedger().meter("judge"))))
        await asyncio.gather(far.close(), home.close())
        return found, ledger

    return asyncio.run(main())


def told(scored):
    return [(token.id, token.text, token.message, token.start, token.end) for token in scored.tokens]


def test_every_token_is_read_as_at_home_entropies_included(server):
    found, ledger = read(server, *PROMPTS, entropy_top_k=0)
    for away, home in found:
        assert told(away) == told(home)
        assert away.tokens[0].logprob is away.tokens[0].entropy is None
        for there, here in zip(away.tokens[1:], home.tokens[1:], strict=True):
            for name in ("logprob", "entropy", "best"):
                assert getattr(there, name) == pytest.approx(getattr(here, name), abs=CLOSE)
    costs = [call.cost for call in ledger.calls]
    assert [cost.prompt_tokens for cost in costs] == [len(away.tokens) for away, _ in found]
    assert not any(
        cost.completion_tokens or cost.estimated for cost in costs
    )  # it was asked to write nothing
    again, ledger = read(server, PROMPTS[0], entropy_top_k=0)
    assert ledger.total.cached_tokens > 0
    assert again[0][0] == found[0][0]


def test_of_the_top_tokens_the_entropy_is_a_lower_bound(server):
    for away, home in read(server, *PROMPTS[:2], entropy_top_k=20)[0]:
        assert told(away) == told(home)
        for there, here in zip(away.tokens[1:], home.tokens[1:], strict=True):
            assert there.logprob == pytest.approx(here.logprob, abs=CLOSE)
            assert there.top[0].id == here.top[0].id
            assert here.entropy - 2.5 < there.entropy <= here.entropy + CLOSE
        bounds = [token.entropy for token in away.tokens[1:]]
        assert bounds != pytest.approx([token.entropy for token in home.tokens[1:]], abs=CLOSE)


def test_a_server_that_writes_a_token_behind_the_prompt_is_billed_for_it(server):
    (found,), ledger = read(server, PROMPTS[0], dialect="openai", entropy_top_k=0)
    assert told(found[0]) == told(found[1])
    assert (ledger.total.completion_tokens, ledger.total.discarded_tokens) == (1, 1)


def test_raw_text_needs_no_tokenizer(server):
    request = Request(Text("There are 3 mugs."))
    ((away, home),), _ = read(server, request, tokenizer=None, entropy_top_k=5)
    assert [token[1:] for token in told(away)] == [token[1:] for token in told(home)]
    for there, here in zip(away.tokens[1:], home.tokens[1:], strict=True):
        assert there.logprob == pytest.approx(here.logprob, abs=CLOSE)


def test_a_run_with_an_intern_behind_an_api_is_that_of_the_pair_at_home(server):
    far = ["engine=openai", "path=intern", "dialect=vllm", f"base_url={server.url}/v1", "score=echo"]
    far += ["entropy_top_k=0", f"tokenizer={PATH}"]
    away = runs(Config.read(builtin.CONFIG, [f"model_specs.1.{change}" for change in far]))
    home = runs(Config.read(builtin.CONFIG))
    for there, here in zip(away, home, strict=True):
        assert (there.insight, there.text) == (here.insight, here.text)
        assert [verdict.level for verdict in there.verdicts] == [verdict.level for verdict in here.verdicts]
        for verdict, same in zip(there.verdicts, here.verdicts, strict=True):
            assert verdict.probability == pytest.approx(same.probability, abs=1e-3)
    assert any(len(run.verdicts) > 1 for run in away)


def test_what_the_server_can_do_is_seen_by_asking_it(server, tmp_path, capsys):
    far = f"name: far, engine: openai, path: intern, base_url: '{server.url}/v1'"

    def probed(more=""):
        (tmp_path / "far.yaml").write_text(f"model_specs: [{{{far}{more}}}]")
        with pytest.raises(SystemExit) as stop:
            main(["doctor", str(tmp_path / "far.yaml"), "--probe", "--json"])
        report = json.loads(capsys.readouterr().out)
        return (
            stop.value.code,
            report,
            {finding["ability"]: finding for finding in report["probes"][0]["findings"]},
        )

    code, report, found = probed()
    assert code == 0
    assert {name for name, finding in found.items() if finding["seen"]} == {
        "models",
        "response_format",
        "streaming",
        "usage",
        "logprobs",
        "prefix",
        "score",
    }
    options = report["probes"][0]["options"]
    assert options == {
        "dialect": "vllm",
        "prefix": "continue_final_message",
        "logprobs": True,
        "score": "echo",
        "response_format": True,
        "entropy_top_k": 0,
        "context": 2048,
    }
    assert "it wrote what it had written before" in found["prefix"]["sentence"]
    assert " tokens read and " in report["probes"][0]["cost"]
    more = ", dialect: vllm, logprobs: true, score: echo, entropy_top_k: 0, tokenizer: 'builtin:intern'"
    assert probed(more)[0] == 0
    code, report, _ = probed(more + ", tools: true")
    assert code == 2
    assert report["problems"][0].startswith("far: tools: it was refused")
