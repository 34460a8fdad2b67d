"""A served Tandem with a certificate: what differs and what drifts is said, counted, and answered by the mentor."""

import contextlib
import logging
import random
from dataclasses import fields, replace

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from ensemblehub.api.app import create_app
from ensemblehub.api.catalog import Catalog
from ensemblehub.api.certified import CertificateWatch
from ensemblehub.api.job import AnswerRecord
from ensemblehub.api.protocol import EnsembleOptions
from ensemblehub.config import Config
from ensemblehub.config.sections import Generation
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.identity import identity
from ensemblehub.errors import ConfigError
from ensemblehub.registry import AGGREGATIONS
from ensemblehub.schema import Chat, Message, Request, Sampling, Text, Verdict
from ensemblehub.tandem.artifact import JudgeArtifact
from ensemblehub.tandem.certificate import Certificate, load_certificate
from ensemblehub.tandem.drift import histogram
from ensemblehub.tandem.insights import PROFILES
from ensemblehub.tandem.judges import EntropyRule


def config_of(folder, temperature=0.0, **server):
    return Config.model_validate(
        {
            "model_specs": [
                {"name": "big", "engine": "echo", "parameters": 9, "replies": {"": "Goal: x so y"}},
                {"name": "small", "engine": "echo", "parameters": 1, "confident": ["boats"]},
            ],
            "ensemble": {
                "output_aggregation_method": "tandem",
                "output_aggregation_params": {
                    "levels": {"low": 2},
                    "judge": str(folder),
                    "start_with_intern": True,
                },
                "generation": {"temperature": temperature},
                "request_params": {"thresholds": {"minimum": 0, "maximum": 1}},
            },
            "server": server,
        }
    )


@pytest.fixture
def folder(tmp_path):
    """A judge whose first probabilities were spread evenly from 0.2 to 0.6, with its certificate."""
    JudgeArtifact(EntropyRule(1.0), thresholds={"none": 0.7, "low": 0.5}).save(tmp_path)
    config = config_of(tmp_path)
    ensemble = AsyncEnsemble.from_config(config)
    now = identity(config, ensemble.aggregation, ensemble.engines)
    scores = {name: histogram([0.2 + 0.4 * step / 500 for step in range(500)]) for name in ("first", "last")}
    seen = {"lost": 0.01, "gained": 0.0, "cost": 0.5, "cost_interval": [0.4, 0.6], "subjects": {}}
    made = {"data": "d", "path": "p"}
    thresholds = {"none": 0.7, "low": 0.5}
    Certificate("net", 0.02, 0.95, 500, thresholds, seen, now, made, scores).save(tmp_path)
    return tmp_path


def verdicts(probability):
    return [Verdict("none", 0, probability, 0.7, False), Verdict("low", 2, probability, 0.5, True)]


def test_nothing_is_said_while_it_holds(folder, caplog):
    served = Catalog(config_of(folder)).find("ensemble")
    source = random.Random(3)
    with caplog.at_level(logging.WARNING):
        assert not any(served.watch.add(verdicts(0.2 + 0.4 * source.random())) for _ in range(500))
    assert served.watch.holds
    assert not caplog.records


def test_without_a_certificate_there_is_nothing_to_watch(folder):
    (folder / "certificate.json").unlink()
    assert Catalog(config_of(folder)).find("ensemble").watch is None


def test_what_differs_is_named_at_the_start(folder, caplog):
    with caplog.at_level(logging.WARNING):
        served = Catalog(config_of(folder, temperature=0.5)).find("ensemble")
    assert not served.watch.holds
    (record,) = caplog.records
    assert "ensemble: not certified (net <= 2.00% with 95% confidence): " in record.message
    assert "holds for settings" in record.message


@pytest.mark.parametrize(("on_drift", "answers"), [("tandem", ["big", "small"]), ("mentor", ["big"])])
def test_drift_is_said_once_and_may_end_the_tandem(folder, caplog, on_drift, answers):
    catalog = Catalog(config_of(folder, on_drift=on_drift))
    watch = catalog.find("ensemble").watch
    asked = EnsembleOptions.model_validate({"params": {"thresholds": {"low": 0.1}}})
    assert len(catalog.chosen("ensemble", None).ensemble.engines) == 2
    with caplog.at_level(logging.WARNING):
        raised = [watch.add(verdicts(0.59)) for _ in range(200)]
    assert 1 <= sum(raised) <= 2  # each of the two tests once
    assert all("no longer certified" in record.message for record in caplog.records)
    assert len(caplog.records) <= 2
    for options in (None, asked):
        served = catalog.chosen("ensemble", options)
        assert [engine.name for engine in served.ensemble.engines] == answers
        assert served.name == "ensemble"


def test_a_certificate_is_bound_to_the_scorers(folder):
    def names(*changes):
        scored = {"output_aggregation_method": "best_of"}
        entries = config_of(folder).model_dump(include={"model_specs"}, exclude_unset=True)
        entries |= {"ensemble": scored, "reward_specs": [{"engine": "perplexity", "model": "big"}]}
        config = Config.from_dict(entries, changes)
        ensemble = AsyncEnsemble.from_config(config)
        return identity(config, ensemble.aggregation, ensemble.engines)

    first, again, other = names(), names(), names("reward_specs.0.weight=2")
    assert first == again
    assert [name for name in first if first[name] != other[name]] == ["scorers"]


@pytest.mark.parametrize("method", ["plan_on_failure", "hint", "progressive", "tandem"])
def test_a_certificate_is_bound_to_the_words_of_a_profile(method, monkeypatch):
    def found():
        models = [{"name": name, "engine": "echo", "parameters": size} for name, size in (("b", 9), ("s", 1))]
        section = {"output_aggregation_method": method, "output_aggregation_params": {"profile": "instruct"}}
        config = Config.model_validate({"model_specs": models, "ensemble": section})
        ensemble = AsyncEnsemble.from_config(config)
        return identity(config, ensemble.aggregation, ensemble.engines)

    before = found()
    monkeypatch.setitem(PROFILES, "instruct", replace(PROFILES["instruct"], header="[Advice]"))
    after = found()
    assert {name for name in before if before[name] != after[name]} == {"prompts"}


@pytest.mark.parametrize("method", sorted(AGGREGATIONS.keys() - {"gac", "distribution"}))
def test_only_a_profile_has_words_that_a_certificate_is_bound_to(method):
    models = [{"name": name, "engine": "echo", "parameters": size} for name, size in (("b", 9), ("s", 1))]
    scored = {"reward_specs": [{"engine": "perplexity", "model": "b"}]}
    section = {"output_aggregation_method": method}
    config = Config.model_validate({"model_specs": models, "ensemble": section, **scored})
    ensemble = AsyncEnsemble.from_config(config)
    found = identity(config, ensemble.aggregation, ensemble.engines)
    assert ("prompts" in found) == (method in ("tandem", "plan_on_failure"))


def test_a_strategy_of_the_mentor_gives_way_to_the_mentor_alone(folder):
    config = config_of(folder, on_drift="mentor")
    thinking = {
        "models": ["big"],
        "output_aggregation_method": "think_on_failure",
        "output_aggregation_params": {},
        "request_params": {},
        "certificate": str(folder),
    }
    served = Catalog(config.model_copy(update={"ensemble": config.ensemble.model_copy(update=thinking)}))
    assert served.chosen("ensemble", None).aggregation.method == "single"


def test_the_mentor_of_one_model_is_the_largest_of_the_file(folder):
    config = config_of(folder, temperature=0.5, on_drift="mentor")
    alone = config.ensemble.model_copy(
        update={
            "models": ["small"],
            "output_aggregation_method": "single",
            "output_aggregation_params": {},
            "request_params": {},
            "certificate": str(folder),
        }
    )
    both = config.model_copy(update={"ensemble": alone})
    served = Catalog(both).chosen("ensemble", None)
    assert [engine.name for engine in served.ensemble.engines] == ["big"]
    small = both.model_copy(update={"model_specs": both.model_specs[1:]})
    with pytest.raises(ConfigError, match="on_drift: mentor: 'ensemble' is small already; add the mentor"):
        Catalog(small)


@contextlib.contextmanager
def served(config):
    """A client of a server that is ready."""
    with TestClient(create_app(config), "http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        while client.get("/health").status_code != 200:
            pass
        yield client


def test_metrics_and_answers(folder):
    body = {"model": "ensemble", "messages": [{"role": "user", "content": "How many boats?"}]}
    with served(config_of(folder, on_drift="mentor")) as client:
        assert 'ensemblehub_certificate_holds{model="ensemble"} 1.0' in client.get("/metrics").text
        warm = {**body, "temperature": 1.0}
        for _ in range(40):  # at another temperature: no evidence
            assert client.post("/v1/chat/completions", json=warm).status_code == 200
        metrics = client.get("/metrics").text
        assert 'ensemblehub_drift_evidence{model="ensemble",score="first"} 1.0' in metrics
        for _ in range(100):  # a confident intern: all probabilities above those that were certified
            reply = client.post("/v1/chat/completions", json=body).json()
        metrics = client.get("/metrics").text
    assert 'ensemblehub_certificate_holds{model="ensemble"} 0.0' in metrics
    assert 'ensemblehub_drift_alarms_total{model="ensemble"} 1.0' in metrics
    count = next(
        line for line in metrics.splitlines() if line.startswith("ensemblehub_uncertified_answers_total")
    )
    assert 40 + 10 < float(count.rsplit(" ", 1)[1]) < 40 + 100
    assert {line["engine"] for line in reply["usage"]["cost_details"]["spent"]} == {"big"}


@pytest.mark.parametrize(
    ("path", "options", "evidence", "uncertified"),
    [
        ("chat/completions", {}, 1, 0),
        ("chat/completions", {"max_tokens": 3}, 0, 1),
        ("chat/completions", {"max_tokens": 513}, 0, 1),
        ("chat/completions", {"max_tokens": 512, "temperature": 0, "top_p": 1, "top_k": -1}, 1, 0),
        ("chat/completions", {"max_completion_tokens": 512}, 0, 1),  # of insight and answer together
        ("chat/completions", {"stop": ["x"]}, 0, 1),
        ("chat/completions", {"stop": "END"}, 1, 0),  # the file's own
        ("chat/completions", {"stop_token_ids": [7]}, 0, 1),
        ("chat/completions", {"top_p": 0.9}, 0, 1),
        ("chat/completions", {"min_tokens": 1}, 0, 1),
        ("chat/completions", {"presence_penalty": 0.5}, 0, 1),
        ("chat/completions", {"presence_penalty": 0.0, "logit_bias": {}}, 1, 0),
        ("chat/completions", {"seed": 4, "logprobs": True, "top_logprobs": 1}, 1, 0),
        ("chat/completions", {"seed": 4, "temperature": 0.5}, 0, 1),
        ("chat/completions", {"enable_thinking": False}, 0, 1),
        ("chat/completions", {"extract_after": "so"}, 0, 1),
        ("chat/completions", {"ensemble": {"params": {"thresholds": {"low": 0.1}}}}, 0, 1),
        ("chat/completions", {"n": 3}, 1, 0),
        ("chat/completions", {"n": 3, "max_tokens": 3}, 0, 3),
        ("messages", {"max_tokens": 512}, 0, 1),
        ("responses", {}, 1, 0),
        ("responses", {"max_output_tokens": 3}, 0, 1),
    ],
)
def test_a_request_that_changes_the_answer_is_no_evidence(
    folder, monkeypatch, path, options, evidence, uncertified
):
    seen = []
    monkeypatch.setattr(CertificateWatch, "add", lambda _, verdicts: seen.append(verdicts) or False)
    config = certified(folder, stopping(config_of(folder)))
    asked = [{"role": "user", "content": "How many boats?"}]
    body = {"model": "ensemble", "input" if path == "responses" else "messages": asked, **options}
    with served(config) as client:
        assert client.post(f"/v1/{path}", json=body).status_code == 200
        metrics = client.get("/metrics").text
    assert 'ensemblehub_certificate_holds{model="ensemble"} 1.0' in metrics
    assert len(seen) == evidence
    total = 'ensemblehub_uncertified_answers_total{model="ensemble"} '
    found = [float(line.removeprefix(total)) for line in metrics.splitlines() if line.startswith(total)]
    assert sum(found) == uncertified


def stopping(config):
    generation = config.ensemble.generation.model_copy(update={"stop_strings": ["END"]})
    return config.model_copy(
        update={"ensemble": config.ensemble.model_copy(update={"generation": generation})}
    )


def certified(folder, config):
    """The configuration, once its certificate is made anew for it."""
    ensemble = AsyncEnsemble.from_config(config)
    now = identity(config, ensemble.aggregation, ensemble.engines)
    replace(load_certificate(folder), holds_for=now).save(folder)
    return config


def asked_with(served, sampling, prompt=None, **more):
    request = Request(prompt or Text("How many boats?"), sampling, **more)
    return AnswerRecord(0, request, served, 3, Generation())


def test_every_field_of_the_sampling_is_compared(folder):
    served = Catalog(config_of(folder)).find("ensemble")
    same = served.ensemble.sampling
    others = {"stop": ("x",), "stop_token_ids": (7,), "logit_bias": {7: 1.0}, "max_completion_tokens": 1512}
    ignored = set()
    for field in fields(Sampling):
        now = getattr(same, field.name)
        other = others.get(field.name, not now if isinstance(now, bool) else (now or 0) + 0.5)
        if asked_with(served, replace(same, **{field.name: other})).as_configured:
            ignored.add(field.name)
    assert ignored == {"seed", "top_logprobs", "fit_context"}
    assert asked_with(served, same).as_configured
    assert not asked_with(served, same, extra={"tools": [{}]}).as_configured
    for changed in ({"out_of_budget": True}, {"echoed": "How many boats?", "alternatives": 0}):
        assert not replace(asked_with(served, same), **changed).as_configured
    for thinking in (True, False):
        chat = Chat((Message("user", "How many boats?"),), thinking)
        assert not asked_with(served, same, chat).as_configured


def test_a_seed_counts_where_tokens_are_drawn(folder):
    served = Catalog(config_of(folder, temperature=0.5)).find("ensemble")
    assert not asked_with(served, replace(served.ensemble.sampling, seed=4)).as_configured


def test_without_insights_both_limits_of_the_length_are_one(folder):
    config = config_of(folder)
    cascade = {
        "output_aggregation_method": "cascade",
        "output_aggregation_params": {},
        "request_params": {},
        "certificate": str(folder),
    }
    config = config.model_copy(update={"ensemble": config.ensemble.model_copy(update=cascade)})
    served = Catalog(certified(folder, config)).find("ensemble")
    same = served.ensemble.sampling
    assert asked_with(served, replace(same, max_completion_tokens=512, fit_context=False)).as_configured
    shorter = replace(same, max_completion_tokens=511, max_tokens=511)
    assert not asked_with(served, shorter).as_configured


def test_a_server_that_cuts_answers_is_not_certified(folder):
    assert Catalog(config_of(folder, max_output_tokens=512)).find("ensemble").watch.holds
    (said,) = Catalog(config_of(folder, max_output_tokens=511)).find("ensemble").watch.differing
    assert said == "`server.max_output_tokens` cuts answers at 511 tokens, not at 512"


def test_short_answers_raise_no_alarm(folder):
    body = {"model": "ensemble", "messages": [{"role": "user", "content": "How many boats?"}]}
    with served(config_of(folder, on_drift="mentor")) as client:
        for _ in range(100):  # without `max_tokens` as many raise one: see above
            assert client.post("/v1/chat/completions", json={**body, "max_tokens": 1}).status_code == 200
        metrics = client.get("/metrics").text
    assert 'ensemblehub_certificate_holds{model="ensemble"} 1.0' in metrics
    assert 'ensemblehub_uncertified_answers_total{model="ensemble"} 100.0' in metrics
