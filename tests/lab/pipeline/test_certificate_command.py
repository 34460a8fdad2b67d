"""`calibrate --max-loss` on scripted engines: what is saved, what it is bound to, and when it is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("sklearn")

from click.testing import CliRunner

from ensemblehub.config import Config
from ensemblehub.ensemble_methods.identity import identity
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.lab.commands import calibrate
from ensemblehub.lab.pipeline.certificate import Promise
from ensemblehub.lab.pipeline.certificate_command import certify, lines
from ensemblehub.lab.pipeline.pipeline import Pipeline
from ensemblehub.tandem.artifact import load_judge
from ensemblehub.tandem.certificate import FILE, Certificate, load_certificate
from tests.lab.pipeline.scripted import YAML

PROMISE = Promise(0.12, 0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A judge, and two collected splits."""
    place = tmp_path_factory.mktemp("certified")
    (place / "echo.yaml").write_text(YAML.format(folder=place))
    pipeline = Pipeline(Config.read(place / "echo.yaml"))
    for split in ("train", "calibration"):
        pipeline.collect(split, 120)
    pipeline.train()
    return place


def pipeline_of(folder, *changes):
    return Pipeline(Config.read(folder / "echo.yaml", changes))


def identity_of(pipeline):
    ensemble, tandem = pipeline.ensemble()
    return identity(pipeline.config, tandem, ensemble.engines)


def test_repeats_are_not_counted(folder, tmp_path, caplog):
    shutil.copytree(folder / "judge", tmp_path / "judge")
    pipeline = pipeline_of(folder, f"ensemble.output_aggregation_params.judge={tmp_path}/judge")
    artifact, tandem, data = pipeline.calibration()
    rows = [*data.rows[:100], *(replace(row, question=data.rows[0].key) for row in data.rows[100:])]
    pipeline.calibration = lambda: (artifact, tandem, replace(data, rows=rows))
    assert "(n = 100)" in certify(pipeline, PROMISE)
    assert "calibration: 20 questions are repeats of others and left out" in caplog.messages


def test_a_certificate_lies_beside_the_judge_and_names_what_it_holds_for(folder):
    pipeline = pipeline_of(folder)
    lines = certify(pipeline, PROMISE).splitlines()
    assert [line.split()[0] for line in lines] == ["certified", "chosen", "seen", "holds"]
    assert "at most 12.0% of the questions" in lines[0]
    assert "90% confidence (n = 120)" in lines[0]
    certificate = load_certificate(folder / "judge")
    assert certificate.thresholds == load_judge(folder / "judge").thresholds
    assert certificate.seen["lost"] <= 0.12
    assert certificate.seen["cost"] < 1
    assert sum(certificate.scores["first"]) == sum(certificate.scores["last"]) == 120
    assert certificate.differing(identity_of(pipeline_of(folder))) == []


def test_a_certificate_prints_what_was_tested():
    seen = {"lost": 0.02, "gained": 0.0, "cost": 0.5, "cost_interval": [0.4, 0.6], "subjects": {}}
    certificate = Certificate("net", 0.0254, 0.999, 500, {"low": 0.5}, seen, {}, {}, {})
    assert str(certificate) == "net <= 2.54% with 99.9% confidence"
    assert str(replace(certificate, max_loss=0.03, confidence=0.95)) == "net <= 3.00% with 95% confidence"
    shown, *_ = lines(certificate, Promise(0.0254, 0.999, "net"))
    assert shown == (
        "certified   at most 2.54% of the questions net of those gained are lost, "
        "with 99.9% confidence (n = 500)"
    )


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("ensemble.output_aggregation_params.fallback=last", "settings"),
        ("ensemble.generation.temperature=0.5", "settings"),
        ("ensemble.output_aggregation_params.thresholds={low: 0.2}", "thresholds"),
        ("ensemble.output_aggregation_params.profile=builtin", "prompts"),
        ("model_specs.1.confident=[harbour]", "quantisation"),
        ("model_specs.1.parameters=2000000", "quantisation"),
    ],
)
def test_whatever_is_changed_is_noticed(folder, change, name):
    certify(pipeline_of(folder), PROMISE)
    found = load_certificate(folder / "judge").differing(identity_of(pipeline_of(folder, change)))
    assert [text.split(" holds for ")[1].split()[0] for text in found] == [name]


def test_the_sampling_that_was_collected_is_certified(folder):
    """As a prompt profile that stops at a line after 32 tokens, whatever the configuration says."""
    pipeline = pipeline_of(folder)
    pipeline.sampling = replace(pipeline.sampling, max_tokens=32, stop=("\n\n",))
    told = certify(pipeline, PROMISE)
    given = '{"max_tokens": 32, "stop_strings": ["\\n\\n"], "stop_sequences": []}'
    assert f"to serve    set in ensemble.generation: {given}" in told
    certificate = load_certificate(folder / "judge")
    (sentence,) = certificate.differing(identity_of(pipeline_of(folder)))
    assert " holds for settings " in sentence
    served = pipeline_of(folder, f"ensemble.generation={given}")
    assert certificate.differing(identity_of(served)) == []
    assert "to serve" not in certify(pipeline_of(folder), PROMISE)


def test_thresholds_of_the_file_are_not_certified(folder, caplog):
    bold = "ensemble.output_aggregation_params.thresholds={none: 0.123}"
    certify(pipeline_of(folder, bold), PROMISE)
    assert (
        "`thresholds` of the file have precedence: remove them to use those that are calibrated"
        in caplog.messages
    )
    certificate = load_certificate(folder / "judge")
    assert certificate.differing(identity_of(pipeline_of(folder))) == []
    (sentence,) = certificate.differing(identity_of(pipeline_of(folder, bold)))
    assert sentence.startswith("the certificate holds for thresholds")


def test_a_refusal_leaves_judge_and_certificate_as_they_were(folder):
    certify(pipeline_of(folder), PROMISE)
    before = {path.name: path.read_bytes() for path in (folder / "judge").iterdir()}
    with pytest.raises(ConfigError, match="no number of questions"):
        certify(pipeline_of(folder), Promise(0.001))
    assert {path.name: path.read_bytes() for path in (folder / "judge").iterdir()} == before


def test_what_was_not_collected_is_neither_certified_nor_calibrated(folder):
    pipeline = pipeline_of(folder, "ensemble.output_aggregation_params.draft=logprob")
    with pytest.raises(ArtifactError, match="collected"):
        certify(pipeline, PROMISE)
    with pytest.raises(ArtifactError, match="collected"):
        pipeline.calibrate("max-accuracy")


def test_where_to_give_up_is_certified_with_the_thresholds(folder):
    option = "ensemble.output_aggregation_params.give_up"
    told = certify(pipeline_of(folder, f"{option}={{low: 0.25, high: 0.5}}"), PROMISE)
    assert "; given up below low 0.25, high 0.50     cost" in told
    certificate = load_certificate(folder / "judge")
    assert certificate.give_up == load_judge(folder / "judge").give_up == {"low": 0.25, "high": 0.5}
    for change in (f"{option}={{low: 0.25}}", f"{option}={{none: calibrated}}"):  # the judge has the rest
        assert certificate.differing(identity_of(pipeline_of(folder, change))) == []
    (other,) = certificate.differing(identity_of(pipeline_of(folder, f"{option}={{low: 0.2}}")))
    assert " holds for settings " in other
    certify(pipeline_of(folder), PROMISE)
    assert load_certificate(folder / "judge").give_up == {}
    assert load_judge(folder / "judge").give_up is None


def test_other_thresholds_carry_no_certificate(folder):
    certify(pipeline_of(folder), PROMISE)
    pipeline_of(folder).calibrate("max-accuracy")
    assert load_certificate(folder / "judge") is None


def test_the_command(folder):
    config = ["--config", str(folder / "echo.yaml")]
    done = CliRunner().invoke(calibrate, [*config, "--max-loss", "0.12", "--loss", "net"])
    assert done.exit_code == 0, done.output
    assert "net of those gained are lost, with 95% confidence" in done.output
    assert json.loads((folder / "judge" / FILE).read_text())["loss"] == "net"
    both = CliRunner().invoke(calibrate, [*config, "--max-loss", "0.12", "--budget", "0.5"])
    assert "choose one of" in both.output


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--loss", "net"], "--loss"),
        (["--confidence", "0.95"], "--confidence"),
        (["--loss", "net", "--budget", "0.5"], "--loss"),
    ],
)
def test_options_of_a_certificate_alone_change_nothing(folder, flags, named):
    certify(pipeline_of(folder), PROMISE)
    before = {path.name: path.read_bytes() for path in (folder / "judge").iterdir()}
    done = CliRunner().invoke(calibrate, ["--config", str(folder / "echo.yaml"), *flags])
    assert done.exit_code == 2
    assert f"give --max-loss with {named}" in done.output
    assert {path.name: path.read_bytes() for path in (folder / "judge").iterdir()} == before


def test_a_damaged_certificate_is_named(folder):
    certify(pipeline_of(folder), PROMISE)
    path = folder / "judge" / FILE
    path.write_text(path.read_text().replace('"n": 120', '"n": "many"'))
    with pytest.raises(ArtifactError, match=r"certificate\.json is damaged \(n: "):
        load_certificate(folder / "judge")
    certify(pipeline_of(folder), PROMISE)
    found = load_certificate(folder / "judge")
    replace(found, format=2).save(folder / "judge")
    with pytest.raises(ArtifactError, match="has format 2"):
        load_certificate(folder / "judge")
    assert np.isfinite(found.max_loss)
