"""What a live endpoint can do is seen by asking it, told in sentences, and never believed."""

import asyncio
import json

import pytest
from faulty import CUT, STALL, answer, event, said, upstream, usage_event

from ensemblehub import builtin
from ensemblehub.cost import UsageLedger
from ensemblehub.doctor import examine
from ensemblehub.generators.openai.engine import OpenAIEngine, OpenAIOptions
from ensemblehub.generators.openai.patience import Patience
from ensemblehub.generators.openai.probe import Probe

QUICK = Patience(connect=1, first_token=0.4, inter_token=0.4, total=2, tries=1, backoff=0.01)
JSON = {"content-type": "application/json"}
ABLE = {"continue_final_message", "logprobs", "tools", "response_format", "echo", "usage"}


def refusal(said, status=400):
    return (status, JSON, json.dumps({"error": {"message": said}}))


def reply(asked, able):
    """An API that can do what `able` says, and ignores what it does not understand, as many do."""
    if asked["path"].endswith("/models"):
        return (
            200,
            JSON,
            json.dumps({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 900}, {"id": "n"}]}),
        )
    if asked["path"].endswith("/completions") and "messages" not in asked:
        return _read(asked, able)
    last = asked["messages"][-1]
    flagged = "flag" if last.get("prefix") else "assistant"
    way = "continue_final_message" if asked.get("continue_final_message") else flagged
    begun = last["role"] == "assistant"
    words = ["The", " capital", " is", " Paris."]
    if begun and way in able:
        words = ["is", "."]
    elif "tools" in asked and "tools" in able:
        call = {"index": 0, "id": "c", "function": {"name": "get_weather", "arguments": "{}"}}
        return [said(tool_calls=[call]), said(finish="tool_calls"), usage_event(), event("[DONE]")]
    elif "response_format" in asked and "response_format" in able:
        words = ['{"city":', ' "Paris"}']
    elif asked.get("logprobs") and "logprobs" in able:
        told = {
            "content": [
                {"token": "The", "logprob": -0.1, "top_logprobs": [{"token": "The", "logprob": -0.1}] * 2}
            ]
        }
        chunk = {"choices": [{"delta": {"content": "The"}, "logprobs": told, "finish_reason": None}]}
        return [event(chunk), *answer(usage="usage" in able)[-3:]]
    return answer(*words, usage="usage" in able)


def _read(asked, able):
    if "echo" not in able:
        return refusal("no such route", 404)
    if asked["logprobs"] > 5:
        return refusal("at most 5 logprobs")
    tokens = ["The", " capital", " of", " France", " is", " Paris", "."]
    top = [None, *[dict.fromkeys("abcde"[: asked["logprobs"]], -0.5)] * 6]
    told = {"tokens": tokens, "token_logprobs": [None, *[-9.0] * 6], "top_logprobs": top}
    told |= {"entropies": [None, *[0.5] * 6]} if "entropies" in able else {}
    written = asked["max_tokens"]
    for values in told.values():
        values += [values[-1]] * written
    body = {"choices": [{"text": asked["prompt"], "logprobs": told}]}
    return (200, JSON, json.dumps({**body, "usage": {"prompt_tokens": 7, "completion_tokens": written}}))


class Probed:
    """What was found of an API that plays a script, and who asked what."""

    def __init__(self, script, **options):
        self.ledger = UsageLedger()
        asyncio.run(self._ask(script, options))

    async def _ask(self, script, options):
        async with upstream(script) as (self.api, url):
            engine = OpenAIEngine("far", OpenAIOptions("m", base_url=url, **{"patience": QUICK, **options}))
            self.findings = {finding.ability: finding for finding in await engine.probe(self.ledger)}
            await engine.close()

    @property
    def wrong(self):
        return {
            finding.ability for finding in self.findings.values() if finding.declared and not finding.seen
        }

    @property
    def seen(self):
        return {finding.ability for finding in self.findings.values() if finding.seen}

    @property
    def options(self):
        return {name: value for finding in self.findings.values() for name, value in finding.options.items()}


def api(*able, **options):
    return Probed(lambda asked: reply(asked, set(able)), **options)


def test_all_that_an_able_endpoint_can_do_is_seen_with_the_options_to_write():
    probed = api(*ABLE)
    assert probed.seen == {
        "models",
        "streaming",
        "usage",
        "logprobs",
        "prefix",
        "score",
        "tools",
        "response_format",
    }
    assert probed.options == {
        "dialect": "vllm",
        "context": 900,
        "logprobs": True,
        "prefix": "continue_final_message",
        "score": "echo",
        "entropy_top_k": 5,
        "tools": True,
        "response_format": True,
    }
    assert probed.wrong == set()
    assert "after 'The capital of France is Par' it wrote 'is.'" in probed.findings["prefix"].sentence
    assert "those of the 5 most probable" in probed.findings["score"].sentence
    assert "`tokenizer`, the model's own, lets it" in probed.findings["score"].sentence
    assert not any(call.cost.estimated for call in probed.ledger.calls if call.cost.prompt_tokens)
    assert probed.ledger.total.completion_tokens > 10


def test_exact_entropies_are_looked_for_first():
    assert api(*ABLE, "entropies").options["entropy_top_k"] == 0


def test_an_endpoint_that_only_writes_is_told_so_and_nothing_is_wrong_unless_declared():
    probed = api()
    assert probed.seen == {"models", "streaming"}
    assert probed.wrong == set()
    assert "costs are estimates" in probed.findings["usage"].sentence
    assert "continue_final_message: it began anew" in probed.findings["prefix"].sentence
    assert "no such route" in probed.findings["score"].sentence
    declared = {
        "prefix": "assistant",
        "logprobs": True,
        "score": "echo",
        "tools": True,
        "response_format": True,
    }
    assert api(**declared).wrong == {"prefix", "logprobs", "score", "tools", "response_format"}


@pytest.mark.parametrize("way", ["continue_final_message", "assistant", "flag"])
def test_the_way_in_which_an_answer_goes_on_is_found_out(way):
    probed = api(way)
    assert probed.options["prefix"] == way
    other = "assistant" if way == "flag" else "flag"
    probed = api(way, prefix=other)
    assert probed.wrong == {"prefix"}
    assert f"not by {other}" in probed.findings["prefix"].sentence
    assert probed.options["prefix"] == way
    assert api(way, prefix=way).wrong == set()


def test_a_declared_score_that_returns_fewer_top_tokens_is_wrong_and_says_what_to_write():
    probed = api(*ABLE, score="echo", entropy_top_k=20)
    assert probed.wrong == {"score"}
    assert probed.options["entropy_top_k"] == 5
    assert "at most 5 logprobs" in probed.findings["score"].sentence
    assert api(*ABLE, score="echo", entropy_top_k=5).wrong == set()


def test_a_model_that_wants_another_field_for_its_length_gets_it():
    def script(asked):
        if "max_tokens" in asked:
            return refusal("use 'max_completion_tokens' instead")
        return reply(asked, {"usage"})

    probed = Probed(script)
    assert {"streaming", "usage"} <= probed.seen
    assert probed.options["max_tokens_field"] == "max_completion_tokens"


FAULTS = {
    "the key is refused": (refusal("no such key", 401), "models", "it refuses the key"),
    "silence": ([STALL], "models", "no answer in time"),
    "a page": ((200, {"content-type": "text/html"}, "<p>login</p>"), "models", "not JSON"),
    "a cut": (
        lambda asked: [CUT] if "messages" in asked else reply(asked, ABLE),
        "streaming",
        "does not answer",
    ),
    "garbage": (
        lambda asked: [event("x")] if "messages" in asked else reply(asked, ABLE),
        "streaming",
        "not JSON",
    ),
    "no stream": (
        lambda asked: (200, JSON, "{}") if "messages" in asked else reply(asked, ABLE),
        "streaming",
        "broke off",
    ),
    "busy": (
        lambda asked: refusal("slow", 429) if "messages" in asked else reply(asked, ABLE),
        "streaming",
        "slow",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_endpoint_that_cannot_be_asked_is_one_finding_and_no_failure(fault):
    script, ability, says = FAULTS[fault]
    probed = Probed(script)
    assert probed.wrong == {ability}
    assert says in probed.findings[ability].sentence
    assert list(probed.findings)[-1] == ability


def test_a_model_that_is_not_listed_is_no_problem_where_it_answers():
    def script(asked):
        return (
            (200, JSON, '{"data": [{"id": "other"}]}')
            if asked["path"] == "/v1/models"
            else reply(asked, ABLE)
        )

    probed = Probed(script)
    assert "m is not among the 1 models it lists (other)" in probed.findings["models"].sentence
    assert "streaming" in probed.seen
    assert probed.wrong == set()
    assert (
        "streaming"
        in Probed(lambda body: refusal("?", 404) if "messages" not in body else reply(body, ABLE)).seen
    )


def test_the_key_is_in_no_finding(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    probed = Probed(refusal("wrong key sk-secret", 403), api_key_env="SOME_KEY")
    assert "***" in probed.findings["models"].sentence
    assert "sk-secret" not in repr(probed.findings)


def written(tmp_path, url, **options):
    given = "".join(f", {name}: {json.dumps(value)}" for name, value in options.items())
    spec = f"{{name: far, engine: openai, path: m, base_url: '{url}', patience: {{tries: 1, connect: 1}}{given}}}"
    (tmp_path / "far.yaml").write_text(f"model_specs:\n- {spec}\n")
    return tmp_path / "far.yaml"


def test_the_doctor_tells_a_dead_endpoint_in_one_line_and_asks_it_nothing_unless_told_to(tmp_path):
    path = written(tmp_path, "http://127.0.0.1:9/v1")
    assert examine(path).ok
    assert examine(path).probes == []
    report = examine(path, probe=True)
    assert [problem.startswith("far: models: nothing can be asked") for problem in report.problems] == [True]
    (tmp_path / "unset.yaml").write_text(
        "model_specs:\n- {engine: openai, path: gpt-4o, api_key_env: NOT_SET_ANYWHERE}\n"
    )
    assert "NOT_SET_ANYWHERE is not set" in examine(tmp_path / "unset.yaml", probe=True).problems[0]
    (tmp_path / "local.yaml").write_text("model_specs:\n- {engine: echo, name: e}\n")
    report = examine(tmp_path / "local.yaml", probe=True)
    assert report.ok
    assert any("there is none" in note for note in report.notes)


def test_a_tokenizer_may_be_that_of_a_model_that_ships(tmp_path):
    from ensemblehub.config import Config

    (spec,) = Config.read(written(tmp_path, "http://x/v1", tokenizer="builtin:intern")).model_specs
    assert spec.options["tokenizer"] == builtin.resolve("builtin:intern")


@pytest.mark.parametrize(
    "value", [None, True, -1, 10**400, 1.5, "x", "\ud83d", [], {}, json.loads("[" * 300 + "]" * 300)]
)
def test_a_list_of_models_of_any_shape_is_a_finding(value):
    entry = {"id": "m", "owned_by": "vllm", "max_model_len": 2048}
    for listed in (value, [value], *([{**entry, name: value}] for name in entry)):
        found = Probe(None, UsageLedger(), OpenAIOptions("m"))._read_list({"data": listed}, "m")
        assert found.sentence.isprintable()
        assert 0 < found.options.get("context", 1) <= 10**9
