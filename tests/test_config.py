import pytest

from ensemblehub import studio
from ensemblehub.config import Config
from ensemblehub.ensemble_methods.ensemble import Ensemble
from ensemblehub.errors import ConfigError
from ensemblehub.registry import ENGINES, TASKS, build, lookup


def read(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Config.read(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("just text", "not a mapping"),
        ("- a\n- b", "not a mapping"),
        ("a: [1", "some.yaml:1: not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        ("ensemble: {}", "model_specs"),
        ("model_specs: []", "some.yaml:1: model_specs"),
        ("model_specs:\n- {name: a}\n- {name: a}", "share a name"),
        (
            "model_specs: [{name: a}]\n\nensemble:\n  genration: {}",
            "some.yaml:4: unknown key 'genration'; did you mean",
        ),
        ("model_specs: [{name: a}]\nensemble:\n  generation:\n    temperature: hot", "some.yaml:4"),
        ("model_specs: [{name: a}]\nensemble:\n  generation:\n    max_tokens: 0", "max_tokens"),
        ("model_specs: [{name: a}]\nexperiment: {concurrency: -1}", "concurrency"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_and_line(tmp_path, text, says):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        Config.read(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="directory"):
        Config.read(tmp_path)


def test_the_shipped_configuration_builds_and_the_example_is_the_same_file():
    config = Config.read(studio.CONFIG)
    assert config.aggregation.method == "tandem"
    with pytest.raises(ConfigError, match="did you mean 'mentor'"):
        studio.resolve("studio:mentr")


def test_code_outside_the_package_is_named_by_its_path(tmp_path):
    assert lookup(ENGINES, "ensemblehub.generators.echo:EchoEngine", "engine").__name__ == "EchoEngine"
    for name in ("nowhere.at_all:Class", "ensemblehub.generators.echo:Nothing"):
        with pytest.raises(ConfigError, match="cannot load"):
            lookup(ENGINES, name, "engine")
    with pytest.raises(ConfigError, match="did you mean 'studio_math'"):
        lookup(TASKS, "studio_maths", "task")


def test_options_are_checked_by_name_and_type():
    options = lookup(ENGINES, "echo", "engine").options
    assert build(options, {"replies": {"": "x"}, "price": {"prompt": 1, "completion": 2}}, "m").price.completion == 2
    with pytest.raises(ConfigError, match="m: unknown option 'dealy'; did you mean 'delay'"):
        build(options, {"dealy": 1}, "m")
    with pytest.raises(ConfigError, match="option 'delay'"):
        build(options, {"delay": "soon"}, "m")


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_refused_before_loading(device):
    pytest.importorskip("torch")
    options = lookup(ENGINES, "hf", "engine").options
    with pytest.raises(ConfigError, match="cannot be used here"):
        build(options, {"path": "x", "device": device}, "m")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"levels": "many"}, "levels"),
        ({"levels": {"low": -1}}, "levels"),
        ({"levels": {"low": "few"}}, "levels"),
        ({"judge": "entropy:"}, "number"),
        ({"judge": "entropy:-1"}, "above 0"),
        ({"profile": "studoi"}, "did you mean 'studio'"),
        ({"fallback": "bets"}, "fallback"),
    ],
)
def test_tandem_options(tmp_path, options, says):
    specs = [{"name": name, "engine": "echo", "parameters": size} for name, size in (("a", 1), ("b", 2))]
    section = {"output_aggregation_method": "tandem", "output_aggregation_params": options}
    config = Config.model_validate({"model_specs": specs, "ensemble": section})
    with pytest.raises(ConfigError, match=says):
        Ensemble.from_config(config)
