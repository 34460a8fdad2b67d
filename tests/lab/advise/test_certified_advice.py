"""`advise --max-loss`: worked out by hand, served, and watched."""

import json
import random
import re

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

pytest.importorskip("fastapi")
pytest.importorskip("scipy")

from ensemblehub.api.catalog import Catalog
from ensemblehub.cli import add_plugins, cli
from ensemblehub.config import Config
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.lab.advise.certified import certify
from ensemblehub.lab.advise.strategy import Strategy
from ensemblehub.lab.pipeline.certificate import Promise
from ensemblehub.tandem.certificate import load_certificate
from ensemblehub.tandem.drift import histogram

add_plugins()
PAIR = """
model_specs:
  - {name: big, engine: echo, parameters: 9000000, replies: {"": "so it is \\\\boxed{9}"}}
  - name: small
    engine: echo
    parameters: 1000000
    confident: [boats]
    replies: {boats: "it is \\\\boxed{9}", "": "it is \\\\boxed{12}"}
ensemble:
  output_aggregation_method: tandem
  output_aggregation_params: {mentor: big, intern: small, levels: {low: 2}, judge: "fixed:low"}
"""


@pytest.fixture
def asked(tmp_path):
    """Sixty questions; the intern is right, and sure, where they are about boats: two of three."""
    (tmp_path / "pair.yaml").write_text(PAIR)
    lines = [{"question": f"{n} {'boats' if n % 3 else 'cars'}?", "answer": "9"} for n in range(60)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(*flags):
        given = ["advise", "-c", str(tmp_path / "pair.yaml"), "--input", str(tmp_path / "own.jsonl")]
        more = ["--n", "60", "--samples", "0", "--out", str(tmp_path / "out"), *flags]
        return CliRunner().invoke(cli, [*given, *more])

    return run


def test_the_certified_strategy_is_served_and_watched(asked, tmp_path):
    done = asked("--max-loss", "0.1")  # none lost of 30: 0.9 ** 30 = 0.042
    assert done.exit_code == 0, done.output
    assert "certified   at most 10.0% of the questions" in done.output
    assert "(n = 30)" in done.output
    assert "chosen      cascade by log-probability" in done.output
    config = Config.read(tmp_path / "out" / "advice.yaml")
    assert config.aggregation.method == "cascade"
    assert config.ensemble.certificate == "."  # beside the file, wherever it is served from
    watch = Catalog(config).find("ensemble").watch
    assert watch.holds
    assert list(watch.tests) == ["first"]
    changed = Config.read(
        tmp_path / "out" / "advice.yaml", ["ensemble.output_aggregation_params.threshold=0.01"]
    )
    (differing,) = Catalog(changed).find("ensemble").watch.differing
    assert "settings" in differing


def test_the_report_recommends_what_is_certified(asked, tmp_path):
    """The intern loses 10 of 30, and P(X <= 10 of 30) is 0.049 at 0.5; by the margin a cascade is cheapest."""
    done = asked("--max-loss", "0.5")
    assert done.exit_code == 0, done.output
    file = tmp_path / "out" / "advice.yaml"
    assert file.read_text().startswith("# intern alone\n")
    assert Config.read(file).ensemble.models == ["small"]
    saved = re.search(
        r"\*\*No strategy pays here: use the intern alone\*\*: .* (\d+)% of the mentor's", done.output
    )
    assert f"cost {1 - int(saved[1]) / 100:.2f} of the mentor" in done.output
    assert "**Use cascade" not in done.output
    assert "The answer is clear" not in done.output
    assert "then, of all settings, the cheapest that is certified: lost-correct at most 0.5" in done.output


@pytest.mark.parametrize("flags", [["--aim", "cost"], ["--budget", "0.05"], ["--margin", "0"]])
def test_what_a_certificate_does_not_look_at_is_refused(asked, tmp_path, flags):
    done = asked("--max-loss", "0.1", *flags)
    assert done.exit_code == 2
    assert "leave out --aim, --budget and --margin" in done.output
    assert not (tmp_path / "out").exists()


def test_a_certificate_lies_beside_the_file_or_in_the_working_directory(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert asked("--max-loss", "0.1", "--out", "out").exit_code == 0
    moved = tmp_path / "elsewhere"
    (tmp_path / "out").rename(moved)
    monkeypatch.chdir("/")
    assert Catalog(Config.read(moved / "advice.yaml")).find("ensemble").watch.holds
    old = moved / "old.yaml"  # as earlier versions wrote it
    old.write_text((moved / "advice.yaml").read_text().replace("certificate: .", "certificate: elsewhere"))
    with pytest.raises(ArtifactError, match="there is no certificate in elsewhere"):
        Catalog(Config.read(old))
    monkeypatch.chdir(tmp_path)
    assert Catalog(Config.read(old)).find("ensemble").watch.holds


def test_the_scores_are_those_of_the_certified_setting(asked, tmp_path):
    """A rule's probability of a question depends on its limit."""
    n = 80
    mentor = Strategy("mentor", (("", {}),), np.ones((n, 1)), np.full((n, 1), 9.0), True)
    scores = np.linspace(0, 1, n)[:, None] * [0.5, 1.0]
    settings = tuple((str(at), {}) for at in range(2))
    rule = Strategy("rule", settings, np.ones((n, 2)), np.tile([2.0, 1.0], (n, 1)), scores=scores)
    best = certify([mentor, rule], ["a"] * n, Promise(0.1, 0.95))
    assert best.index == 1  # the cheaper one
    best.save(Config.read(tmp_path / "pair.yaml"), [str(at) for at in range(n)], tmp_path, best.judged)
    assert load_certificate(tmp_path).scores == {"first": histogram(scores[1::2, 1].tolist())}


@pytest.mark.parametrize(
    ("prompt", "length", "stops", "wording"),
    [
        ("official", 2048, ["."], "system text"),
        ("few_shot", 64, [".", "Question:"], "user text and examples"),
    ],
)
def test_the_sampling_that_was_measured_is_served(asked, tmp_path, prompt, length, stops, wording):
    lines = [{"question": f"{n} {'boats' if n % 3 else 'cars'}?", "answer": "#### 9"} for n in range(60)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--task", "gsm8k", "--data", str(tmp_path / "{split}.jsonl"), "--n", "60", "--split", "train"]
    own = ["-s", "ensemble.generation={max_tokens: 64, stop_sequences: [.]}", "--max-loss", "0.1"]
    given = ["advise", "-c", str(tmp_path / "pair.yaml"), *flags, *own, "--samples", "0"]
    done = CliRunner().invoke(cli, [*given, "--prompt", prompt, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    line = f"asked with the prompt profile '{prompt}', whose {wording} the configuration cannot hold"
    assert f"The questions were {line}; put the same into every request.\n" in done.output
    file = tmp_path / "out" / "advice.yaml"
    assert f"# {line}; put the same into every request\n" in file.read_text()
    served = Catalog(Config.read(file)).find("ensemble")
    sampling = served.ensemble.sampling
    assert (sampling.max_tokens, list(sampling.stop)) == (length, stops)
    assert served.watch.holds
    untested = Config.read(file, ["ensemble.generation={max_tokens: 65, stop_sequences: [.]}"])
    assert "settings" in Catalog(untested).find("ensemble").watch.differing[0]


def test_where_nothing_is_certified_the_advice_is_there_all_the_same(asked, tmp_path):
    """The intern is wrong about cars."""
    lines = [{"question": f"{n} cars?", "answer": "9"} for n in range(60)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = asked("--max-loss", "0.1")
    assert "# Which strategy pays" in done.output
    assert isinstance(done.exception, ConfigError)
    assert "seen to lose 100.00%" in str(done.exception)
    assert "n = 30); no number of questions would certify 10.00%" in str(done.exception)
    assert str(done.exception) in done.output
    assert "certificate" not in yaml.safe_load((tmp_path / "out" / "advice.yaml").read_text())["ensemble"]


@pytest.mark.parametrize(("loss", "least", "most"), [("lost-correct", 118, "0.05"), ("net", 12, "0.01")])
def test_too_few_questions_are_refused_before_any_is_asked(asked, tmp_path, loss, least, most):
    """0.95 ** 59 = 0.0485; and (1 + 0.75 * 1.01 / 0.99) ** 6 = 30.2, the first power above 20."""
    for n, known in ((least - 1, 60), (10, 10)):
        done = asked("--max-loss", most, "--loss", loss, "--n", str(n))
        assert str(done.exception) == (
            f"{min(n, known)} questions cannot certify {loss} at most {most} with confidence 0.95, however few are "
            f"lost: it takes {least} at least, of which every second is tested"
        )
        assert not (tmp_path / "out").exists()


def test_a_certificate_that_is_named_and_missing_is_an_error(asked, tmp_path):
    assert asked("--max-loss", "0.1").exit_code == 0
    (tmp_path / "out" / "certificate.json").unlink()
    with pytest.raises(ArtifactError, match="there is no certificate in"):
        Catalog(Config.read(tmp_path / "out" / "advice.yaml"))


def test_it_is_broken_no_more_often_than_promised():
    source, broken, promise = np.random.default_rng(random.Random(5).getrandbits(32)), 0, Promise(0.05, 0.9)
    risks, n = np.array([0.01, 0.03, 0.05, 0.0501, 0.08]), 600
    prices = np.linspace(0.9, 0.5, len(risks))
    for _ in range(300):
        lost = source.random((n, 1)) < risks
        found = [
            Strategy("mentor", (("", {}),), np.ones((n, 1)), np.ones((n, 1)), True),
            Strategy(
                "some",
                tuple((str(risk), {}) for risk in risks),
                1.0 - lost,
                np.broadcast_to(prices, (n, len(risks))),
            ),
        ]
        try:
            chosen = certify(found, ["a"] * n, promise)
        except ConfigError:
            continue
        broken += risks[chosen.index] > promise.max_loss
    assert broken <= 300 * 0.1 + 3 * (300 * 0.1 * 0.9) ** 0.5
