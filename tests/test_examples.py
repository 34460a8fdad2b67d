"""Every example builds, and answers on the models that ship."""

import asyncio
import importlib.util
from pathlib import Path

import pytest
import yaml

import ensemblehub
from ensemblehub import registry
from ensemblehub.config import Config
from ensemblehub.config.sections import ServerSection
from ensemblehub.doctor import examine
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import ConfigError
from ensemblehub.schema import Sampling

pytest.importorskip("transformers")

ROOT = Path(ensemblehub.__file__).parents[1]
HETERO = ROOT / "examples" / "hetero_openrouter.yaml"  # its mentor is behind an API
EXAMPLES = sorted(set((ROOT / "examples").glob("*.yaml")) - {HETERO})
PAIRS = sorted((ROOT / "examples" / "pairs").glob("*.yaml"))
REFERENCE = sorted((ROOT / "examples" / "reference").glob("*.yaml"))
QUESTION = "There are 3 mugs. There are 4 more plates than mugs. How many plates are there?"


def named(path):
    return path.stem


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_an_example_builds_says_nothing_in_vain_and_is_short(path):
    config = Config.read(path)
    AsyncEnsemble.from_config(config)
    assert config.notes == []
    lines = path.read_text().splitlines()
    assert path.stem == "builtin_tandem" or len(lines) <= 30
    assert lines[0].startswith("#")
    assert "deepseek-ai/DeepSeek-R1-Distill-Qwen" in path.read_text()


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_an_example_answers(path):
    async def answer():
        async with AsyncEnsemble.from_config(
            Config.read(path, ["ensemble.generation.max_tokens=24"])
        ) as ensemble:
            return await ensemble.generate(QUESTION)

    result = asyncio.run(answer())
    assert result.text
    assert result.cost.completion_tokens > 0


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem != "builtin_tandem"], ids=named)
def test_an_example_is_called_by_its_methods(path):
    config = Config.read(path)
    assert path.stem == f"{config.selection.method}_{config.aggregation.method}"


def test_there_is_an_example_of_every_method():
    configs = list(map(Config.read, EXAMPLES))
    assert {config.aggregation.method for config in configs} == set(registry.AGGREGATIONS)
    assert {config.selection.method for config in configs} == set(registry.SELECTIONS)


def test_the_files_that_the_reference_names_are_there():
    assert {"all_loop", "all_progressive"} <= {path.stem for path in EXAMPLES}
    assert {"all_loop", "all_progressive", "all_switch", "judgement_loop", "single_hf_model"} <= {
        path.stem for path in REFERENCE
    }


def test_the_pair_with_a_mentor_behind_an_api_is_explained_without_its_key(monkeypatch):
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    report = examine(HETERO)
    assert report.ok
    assert report.members[0].path == "openai/gpt-4o"
    engine = AsyncEnsemble.from_config(
        Config.read(HETERO, [f"model_specs.1.path={ROOT}/ensemblehub/builtin/weights/intern"])
    ).engines[0]
    with pytest.raises(ConfigError, match="the environment variable OPENROUTER_API_KEY is not set"):
        asyncio.run(engine.load())


@pytest.mark.parametrize("path", PAIRS, ids=named)
def test_a_pair_for_an_engine_lacks_at_most_that_engine_and_its_models(path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    report = examine(path)
    assert all("is not installed" in problem or "No such file" in problem for problem in report.problems)
    assert f"serve examples/pairs/{path.name}" in path.read_text()
    assert f"serve examples/pairs/{path.name}" in (ROOT / "docs" / "engines.md").read_text()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a tiny random model, whatever the hub name."""
    where = Path(__file__).parent / "generators" / "hf_bench.py"
    spec = importlib.util.spec_from_file_location("tiny_models", where)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    shape = {**bench.SHAPE, "max_position_embeddings": 8192, "head_dim": 16, "tie_word_embeddings": True}
    folder = bench.save(tmp_path_factory.mktemp("tiny"), bench.transformers.Qwen3Config(**shape))
    return lambda name: folder


def local(path, tiny, *more):
    """The file with tiny models in place of those of the hub."""
    config = Config.read(path)
    changes = [
        f"{key}.{index}.path={tiny(spec.options['path'])}"
        for key, specs in (
            ("model_specs", config.model_specs),
            ("ensemble.reward_specs", config.reward_specs),
        )
        for index, spec in enumerate(specs)
    ]
    return Config.read(path, [*changes, *more])


@pytest.mark.parametrize("path", REFERENCE, ids=named)
def test_a_file_of_the_references_shape_builds_and_answers(path, tiny):
    config = local(path, tiny, "ensemble.generation.max_tokens=12")

    async def answer():
        async with AsyncEnsemble.from_config(config) as ensemble:
            assert (
                ensemble.engines[0].settings.enable_thinking
                is config.model_specs[0].options["enable_thinking"]
            )
            return await ensemble.generate("the quick brown fox")

    assert asyncio.run(answer()).cost.completion_tokens > 0
    assert [note.split(" has")[0].split()[-1] for note in config.notes] == [
        "model_specs.0.padding_side",
        "engine_options.hf.low_cpu_mem",
    ]


def test_the_references_keys_reach_their_places(tiny):
    folder = ROOT / "examples" / "reference"
    progressive = AsyncEnsemble.from_config(local(folder / "all_progressive.yaml", tiny))
    assert progressive.aggregation.outline_max_tokens == 500
    assert progressive.sampling == Sampling(4096, 0, 0.6, 0.95, 50, fit_context=True)
    rewarded = AsyncEnsemble.from_config(local(folder / "all_reward_based.yaml", tiny))
    assert (rewarded.aggregation.score_threshold, rewarded.aggregation.max_rounds) == (-2.0, 500)
    assert rewarded.sampling.max_tokens == 4096  # null: half of the context
    small = AsyncEnsemble.from_config(local(folder / "test_inference.yaml", tiny))
    assert small.engines[0].settings.attn_implementation == "eager"
    assert (small.sampling.seed, small.sampling.max_tokens) == (1234, 256)


def test_the_example_of_a_server_has_every_option_with_its_default():
    written = yaml.safe_load((ROOT / "examples/server/several.yaml").read_text())["server"]
    assert set(written) == set(ServerSection.model_fields)
    assert ServerSection.model_validate(written) == ServerSection()
