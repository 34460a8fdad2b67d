"""`ensemblehub certify`: from answers of `bench`, with losses that are known; served, watched, and refused."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from click.testing import CliRunner

pytest.importorskip("fastapi")
pytest.importorskip("scipy")

from starlette.testclient import TestClient

from ensemblehub.api.app import create_app
from ensemblehub.api.catalog import Catalog
from ensemblehub.cli import add_plugins, cli
from ensemblehub.config import Config
from ensemblehub.ensemble_methods.identity import trained
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.lab.advise import measured
from ensemblehub.lab.advise.measured import scores
from ensemblehub.lab.bench.rows import AnswerRow
from ensemblehub.tandem.certificate import load_certificate

add_plugins()
CELLS = """
model_specs:
  - {name: big, engine: echo, parameters: 9000000, replies: {"": "so it is \\\\boxed{9}"}}
  - name: small
    engine: echo
    parameters: 1000000
    confident: [boats]
    replies: {boats: "it is \\\\boxed{9}", "": "it is \\\\boxed{12}"}
ensemble:
  output_aggregation_method: cascade
  output_aggregation_params: {large: big, small: small}
  generation: {max_tokens: 64}
sweep:
  mentor: {ensemble: {models: [big], output_aggregation_method: single, output_aggregation_params: {}}}
  careful: {ensemble.output_aggregation_params.threshold: 0.5}
  bold: {ensemble.output_aggregation_params.threshold: 0.0}
  votes: {ensemble: {models: [big], output_aggregation_method: vote, output_aggregation_params: {samples: 2}}}
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Answers of every cell; the small model is right, and sure, where the question is about boats: two of three."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "cells.yaml").write_text(CELLS)
    lines = [{"question": f"{n} {'boats' if n % 3 else 'cars'}?", "answer": "#### 9"} for n in range(120)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = [str(folder / "cells.yaml"), "--data", str(folder / "questions.jsonl"), "--task", "gsm8k"]
    done = CliRunner().invoke(cli, ["bench", *given, "--out", str(folder / "out")])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def certify(bench, tmp_path):
    """Run the command on a copy of the answers, which lies in `certify.answers`."""

    def run(*flags):
        given = ["certify", str(tmp_path / "results"), str(bench / "cells.yaml"), *flags]
        return CliRunner().invoke(cli, [*given, "--out", str(tmp_path / "out")])

    shutil.copytree(bench / "out", tmp_path / "results")
    run.answers, run.out = tmp_path / "results" / "answers", tmp_path / "out"
    return run


def rows_of(path):
    """Settings and rows of a journal, the rows in the order of their questions' ids."""
    settings, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    return settings, sorted(rows, key=lambda row: row["question"])


def change(path, changed):
    """Rewrite the rows of a journal; `changed` gets the number and the row, and returns the row or None."""
    settings, rows = rows_of(path)
    kept = [row for row in (changed(number, row) for number, row in enumerate(rows)) if row]
    path.write_text("".join(json.dumps(line) + "\n" for line in (settings, *kept)))


def test_the_cheapest_cell_that_keeps_the_promise_is_served_and_watched(certify):
    done = certify("--max-loss", "0.05")  # none lost of 60: 0.95 ** 60 = 0.046
    assert done.exit_code == 0, done.output
    assert "certified   at most 5.0% of the questions (the mentor right, the answer wrong)" in done.output
    assert "(n = 60)" in done.output
    assert "chosen      cascade: careful: threshold 0.50" in done.output
    assert "until drift" in done.output
    certificate = load_certificate(certify.out)
    tested = rows_of(certify.answers / "careful.jsonl")[1][1::2]
    sure = sum(row["verdicts"][0]["probability"] > 0.98 for row in tested)
    assert [(at, count) for at, count in enumerate(certificate.scores["first"]) if count] == [
        (36, 60 - sure),
        (99, sure),
    ]
    config = Config.read(certify.out / "certified.yaml", ["server.on_drift=mentor"])
    assert config.ensemble.certificate == "."
    assert not config.sweep
    question = {"model": "ensemble", "messages": [{"role": "user", "content": "How many cars?"}]}
    with TestClient(create_app(config), "http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        while client.get("/health").status_code != 200:
            pass
        assert 'ensemblehub_certificate_holds{model="ensemble"} 1.0' in client.get("/metrics").text
        for _ in range(100):  # cars alone: not the questions that were certified
            reply = client.post("/v1/chat/completions", json=question).json()
        assert 'ensemblehub_certificate_holds{model="ensemble"} 0.0' in client.get("/metrics").text
    assert {line["engine"] for line in reply["usage"]["cost_details"]["spent"]} == {"big"}


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ("ensemble.output_aggregation_params.threshold=0.4", "settings"),
        ("ensemble.generation.temperature=0.3", "settings"),
        ("model_specs.0.replies={}", "quantisation"),
        ("ensemble.model_selection_method=random", "selection"),
    ],
)
def test_the_server_names_what_is_not_as_it_was_certified(certify, changed, name):
    assert certify("--max-loss", "0.05").exit_code == 0
    more = ["ensemble.model_selection_params.k=2"] if name == "selection" else []
    served = Catalog(Config.read(certify.out / "certified.yaml", [changed, *more])).find("ensemble")
    assert [line.split()[4] for line in served.watch.differing] == [name]


def test_too_few_questions_are_refused_with_how_many_would_do(certify):
    done = certify("--max-loss", "0.02")
    assert isinstance(done.exception, ConfigError)
    said = str(done.exception)
    assert "60 questions are too few for 2.00% with 95% confidence" in said
    assert "about 150 would do" in said  # 0.98 ** 149 = 0.0493
    assert "(tested: cascade, on every second of 120 questions)" in said
    assert not certify.out.exists()


@pytest.mark.parametrize(("lost", "chosen"), [(1, "bold"), (2, "careful")])
def test_one_question_more_decides_on_the_bolder_cell(certify, lost, chosen):
    """At most one of 60 may be lost at 10 %: P(X <= 1) = 0.014, P(X <= 2) = 0.053."""
    change(certify.answers / "bold.jsonl", lambda n, row: row | {"correct": n >= 2 * lost})
    done = certify("--max-loss", "0.1")
    assert f"chosen      cascade: {chosen}" in done.output


def test_net_losses_are_made_up_for_by_gains(certify):
    change(certify.answers / "bold.jsonl", lambda n, row: row | {"correct": n >= 8})
    change(certify.answers / "mentor.jsonl", lambda n, row: row | {"correct": n < 80})
    assert "chosen      cascade: careful" in certify("--max-loss", "0.1").output
    done = certify("--max-loss", "0.1", "--loss", "net")
    assert "chosen      cascade: bold" in done.output
    assert "lost 6.7%, gained 33.3%" in done.output


def test_only_named_cells_are_certified_and_a_strategy_without_a_judge_is_not_watched(certify):
    change(certify.answers / "votes.jsonl", lambda n, row: row | {"cold_flops": 1.0})
    done = certify("--max-loss", "0.05", "--only", "vote*")
    assert "chosen      vote: votes" in done.output
    assert "drift is not watched" in done.output
    assert load_certificate(certify.out).scores == {}


def test_dollars_are_compared_where_every_call_has_a_price(certify):
    def priced(usd):
        return lambda n, row: row | {"usd": usd, "usage": [line | {"usd": usd} for line in row["usage"]]}

    for name, usd in (("mentor", 1.0), ("careful", 2.0), ("bold", 2.0)):
        change(certify.answers / f"{name}.jsonl", priced(usd))
    assert certify("--max-loss", "0.05").exit_code == 0  # votes have no price: FLOPs
    change(certify.answers / "votes.jsonl", priced(2.0))
    assert "no setting costs less than the mentor alone" in str(certify("--max-loss", "0.05").exception)


def test_a_free_intern_has_a_price(certify):
    """Its calls cost 0 dollars, which is known; before, costs were compared in FLOPs."""
    prices, flags = {"big": {"prompt": 1, "completion": 2}, "small": {"prompt": 0, "completion": 0}}, []
    for at, price in enumerate(prices.values()):
        flags += ["-s", f"model_specs.{at}.price={json.dumps(price)}"]
    for path in certify.answers.glob("*.jsonl"):
        first, *rows = path.read_text().splitlines()
        head = json.loads(first)
        for name, options in head["settings"]["engines"].items():
            options["price"] = prices[name]
        path.write_text("\n".join([json.dumps(head), *rows, ""]))
        change(path, lambda n, row: row | {"usd": 2.0})  # the small model's calls among them are free
    assert "no setting costs less than the mentor alone" in str(
        certify("--max-loss", "0.05", *flags).exception
    )


def test_repeated_questions_count_once(certify, caplog):
    for path in certify.answers.glob("*.jsonl"):
        first = rows_of(path)[1][0]
        same = {key: first[key] for key in ("asked", "prompted")}
        change(path, lambda n, row, same=same: row | (same if n == 1 else {}))
    assert "(n = 59)" in certify("--max-loss", "0.05").output
    assert "1 question is a repeat of another and left out" in caplog.text


def test_what_a_prompt_profile_sets_of_the_sampling_is_served(certify):
    """As if the benchmark's profile had stopped at a line, whatever the configuration says."""

    named = measured.task_named

    def stopping(*about):
        task = named(*about)
        object.__setattr__(task, "sampling", partial(replace, stop=("\n\n",), max_tokens=32))
        return task

    for path in certify.answers.glob("*.jsonl"):
        settings, *rows = path.read_text().splitlines()
        head = json.loads(settings)
        head["settings"]["sampling"] |= {"stop": ["\n\n"], "max_tokens": 32}
        path.write_text("\n".join([json.dumps(head), *rows, ""]))
    assert "other settings: sampling" in str(certify("--max-loss", "0.05").exception)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "task_named", stopping)
        done = certify("--max-loss", "0.05")
    line = "asked with the prompt profile 'plain', whose user text the configuration cannot hold"
    assert f"prompts     {line}; put the same into every request" in done.output
    assert f"# {line}" in (certify.out / "certified.yaml").read_text()
    generation = Config.read(certify.out / "certified.yaml").ensemble.generation
    assert (generation.max_tokens, list(generation.stop_strings)) == (32, ["\n\n"])


def test_the_parts_of_a_configuration_that_were_trained_are_told_by_what_they_hold(tmp_path):
    (tmp_path / "judge.json").write_text("{}")
    named = {"accept": str(tmp_path), "judge": "entropy:1.0", "threshold": 0.5}
    first = trained(named)
    assert first.keys() == {"accept", "judge"}
    for name in ("certificate.json", "drafts.jsonl"):
        (tmp_path / name).write_text("{}")
    assert trained(named) == first
    (tmp_path / "judge.json").write_text("[]")
    assert trained(named)["accept"] != first["accept"]
    assert "accept" not in trained({"accept": "logprob"})


def failed(n, row):
    return row | {"error": "the server is gone"} if n == 7 else row


def unpriced(n, row):
    return row | {"usage": [line | {"flops": 0.0} for line in row["usage"]]}


def other_prompt(n, row):
    return row | {"prompted": "another"} if n == 7 else row


@pytest.mark.parametrize(
    ("changed", "flags", "said"),
    [
        (None, ["--against", "menter"], "unknown cell 'menter'; did you mean 'mentor'?"),
        (None, ["--against", "bold"], "the cell 'bold' is no model alone"),
        (None, ["--only", "brave*"], "unknown cell 'brave*'"),
        (None, ["-s", "ensemble.generation.max_tokens=9"], "other settings: sampling.max_tokens 64, not 9"),
        (
            lambda n, row: None if n else row,
            [],
            "have not answered the same questions (119 of the first only",
        ),
        (other_prompt, [], "with another prompt"),
        (lambda n, row: row | {"question": "the same"}, [], "have not answered the same questions"),
        (failed, [], "has 1 calls that failed, not answers: ask these again"),
        (unpriced, [], "costs cannot be compared: give every model a `price`"),
    ],
)
def test_what_is_wrong_is_one_line(certify, changed, flags, said):
    if changed:
        change(certify.answers / "bold.jsonl", changed)
    error = certify("--max-loss", "0.05", *flags).exception
    assert isinstance(error, ArtifactError | ConfigError)
    assert said in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("missing", ["mentor", "bold"])
def test_a_cell_that_was_not_measured_is_named(certify, missing):
    (certify.answers / f"{missing}.jsonl").unlink()
    assert f"has no answers of the cell '{missing}'" in str(certify("--max-loss", "0.05").exception)


def test_several_answers_and_a_single_question_are_refused(certify):
    for name in ("mentor", "careful", "bold", "votes"):
        change(certify.answers / f"{name}.jsonl", lambda n, row: row if n == 0 else None)
    assert "2 at least" in str(certify("--max-loss", "0.05").exception)
    rows = certify.answers / "bold.jsonl"
    again = json.loads(rows.read_text().splitlines()[1]) | {"id": "again"}
    rows.write_text(f"{rows.read_text()}{json.dumps(again)}\n")
    assert "several answers a question" in str(certify("--max-loss", "0.05").exception)


def answer(*probabilities):
    told = ("q", "q", 0, "q", "p", "s", 1, True, "", "", "stop", "", False, 1, 1, 1.0, 1.0, 0.0, 0.0, 0.0, "")
    return AnswerRow(*told, verdicts=[{"probability": probability} for probability in probabilities])


def test_first_and_last_probabilities_are_kept_where_they_tell_something():
    heard = scores([answer(0.125, 0.75), answer(0.5), answer()])
    assert [at for at, count in enumerate(heard["first"]) if count] == [12, 50]
    assert [at for at, count in enumerate(heard["last"]) if count] == [50, 75]
    assert list(scores([answer(0.2), answer(0.5)])) == ["first"]
    assert scores([answer(1.0), answer(1.0)]) == {}
