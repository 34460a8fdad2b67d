"""Options of `--ray`, without Ray."""

import pytest

from ensemblehub import cli
from ensemblehub.config import Config
from ensemblehub.errors import ConfigError
from ensemblehub.ray_data import Cluster


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--workers", "2"], "go with --ray"),
        (["--server", "far=http://a/v1"], "go with --ray"),
        (["--ray", "pair.yaml"], "expected local, auto or HOST:PORT, not 'pair.yaml'"),
        (["--ray", "--workers", "4-2"], "expected N or MIN-MAX"),
        (["--ray", "--server", "far"], "expected MODEL=URL"),
        (["--ray", "--shard", "0/2"], "--ray starts its workers itself"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, capsys, options, text):
    (tmp_path / "in.jsonl").write_text('{"prompt": "hi"}\n')
    paths = ["--input_path", str(tmp_path / "in.jsonl"), "--output_path", str(tmp_path / "out.jsonl")]
    with pytest.raises(SystemExit) as exit_:
        cli.main(["infer", *paths, *options])
    assert exit_.value.code == 2
    assert text in capsys.readouterr().err


def test_each_worker_takes_one_server_of_each_model():
    specs = [{"name": name, "path": f"org/{name}", "engine": "openai"} for name in ("mentor", "intern")]
    config = Config.from_dict({"model_specs": [*specs, {"name": "near", "engine": "echo"}]})
    servers = {"mentor": ("http://m1/v1", "http://m2/v1"), "intern": ("http://i/v1",)}
    cluster = Cluster(servers=servers)
    cluster.check(config)
    placed = [cluster.placed(config, number).model_specs for number in range(3)]
    assert [specs[0].options["base_url"] for specs in placed] == [
        "http://m1/v1",
        "http://m2/v1",
        "http://m1/v1",
    ]
    assert {specs[1].options["base_url"] for specs in placed} == {"http://i/v1"}
    with pytest.raises(ConfigError, match="did you mean 'mentor'"):
        Cluster(servers={"mento": ("http://m/v1",)}).check(config)
    with pytest.raises(ConfigError, match="near is no model of the engine openai"):
        Cluster(servers={"near": ("http://m/v1",)}).check(config)
