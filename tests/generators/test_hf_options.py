"""Options of the hf engine that say where and how a model is loaded."""

import asyncio
import json
import shutil

import pytest

pytest.importorskip("transformers")

import torch
import transformers

from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.configured import engine_of
from ensemblehub.errors import AbsentError, ConfigError, MissingExtraError, one_line
from ensemblehub.generators.batching.checkpoint import ModelCheckpoint
from ensemblehub.generators.hf import loading
from ensemblehub.generators.hf.engine import HFEngine, HFOptions
from ensemblehub.schema import Chat, Message, Request

QUESTION = (Message("user", "the quick brown fox"),)


def text(engine, thinking=None):
    return "".join(origin.text for origin in engine.render(Request(Chat(QUESTION, thinking))).origins)


@pytest.mark.parametrize(
    ("option", "asked", "thinks"),
    [
        (None, None, False),
        (True, None, True),
        (False, None, False),
        (True, False, False),
        (False, True, True),
    ],
)
def test_enable_thinking_is_for_chats_that_do_not_say(qwen, option, asked, thinks):
    assert ("Think: " in text(HFEngine("m", HFOptions(qwen, enable_thinking=option)), asked)) is thinks


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_gpus": 99}, "num_gpus needs 99 GPUs, and this machine has"),
        ({"num_gpus": -1}, "num_gpus is a share"),
        ({"num_gpus": 1.5}, "num_gpus is a share"),
        ({"num_gpus": 2, "device": "cpu"}, "without `device`"),
        ({"num_gpus": 2, "max_memory": {0: "1GiB"}}, "and `max_memory`"),
        ({"max_memory": {98: "1GiB"}}, "max_memory needs 99 GPUs"),
        ({"quantization": "8bit", "device": "cpu"}, "needs a cuda device, not cpu"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_before_loading(options, says):
    with pytest.raises(ConfigError, match=says):
        HFOptions("x", **options)


def test_quantization_names_the_library_it_needs(monkeypatch):
    monkeypatch.setattr(loading, "device_of", lambda options: "cuda")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install bitsandbytes"):
        HFOptions("x", quantization="4bit")


def test_no_gpu_is_the_cpu():
    assert loading.device_of(HFOptions("x", num_gpus=0)) == "cpu"
    for share in (0.5, 1):
        assert loading.device_of(HFOptions("x", num_gpus=share)) == loading.device_of(HFOptions("x"))


def test_weights_are_spread_over_so_many_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (1000 * (index + 1), 10**6))
    assert loading._memory(HFOptions("x", num_gpus=2)) == {0: 900, 1: 1800}
    assert loading._memory(HFOptions("x", num_gpus=1)) == {}


def test_max_memory_loads_with_accelerate(qwen):
    engine = HFEngine("m", HFOptions(qwen, device="cpu", max_memory={"cpu": "1GiB"}))

    async def run():
        await engine.load()
        await engine.close()

    asyncio.run(run())


@pytest.mark.parametrize("family", ["qwen", "llama"])
def test_footprint(request, monkeypatch, family):
    path = request.getfixturevalue(family)
    engine = HFEngine("m", HFOptions(path, device="cpu", dtype="bfloat16"))
    parameters, table = engine.info.parameters, engine.info.vocabulary * 48
    width = 16 if family == "qwen" else 12
    assert engine.footprint.weights == 2 * parameters
    assert engine.footprint.token == 2 * 3 * 2 * width * 2  # keys and values, layers, heads, width, bytes
    monkeypatch.setattr(loading, "device_of", lambda options: "cuda")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: True)
    tables = table if family == "qwen" else 2 * table  # qwen's head is its embedding
    for bits, size in (("8bit", 1), ("4bit", 9 / 16)):
        footprint = HFEngine("m", HFOptions(path, dtype="bfloat16", quantization=bits)).footprint
        assert footprint.weights == 2 * tables + int((parameters - tables) * size)


def test_a_model_that_is_nowhere_is_absent_and_a_folder_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="cannot load") as error:
        HFEngine("m", HFOptions(str(tmp_path / "nothing")))
    assert not isinstance(error.value, AbsentError)


def test_a_path_in_the_home_folder_is_found_everywhere(qwen, tmp_path, monkeypatch):
    home = tmp_path / "home"
    shutil.copytree(qwen, home / "m")
    monkeypatch.setenv("HOME", str(home))
    said = json.loads((home / "m/generation_config.json").read_text()) | {"eos_token_id": [1, 3]}
    (home / "m/generation_config.json").write_text(json.dumps(said))
    engine, named = (HFEngine("m", HFOptions(path, device="cpu")) for path in ("~/m", str(home / "m")))
    assert engine.vocabulary.end == {1, 3}
    assert engine.model == named.model
    assert "@" in engine.model
    asyncio.run(loaded(engine))
    path = tmp_path / "some.yaml"
    path.write_text(
        "model_specs: [{path: ~/m, name: m}]\nserver: {api_key_file: ~/keys}\n"
        "experiment: {data: ~/data, results: ~/results}"
    )
    config = Config.read(path)
    assert config.server.api_key_file == home / "keys"
    assert (config.experiment.data, config.experiment.results) == (home / "data", home / "results")
    assert engine_of(config, config.model_specs[0]).model == engine.model
    assert builtin.resolve("~/judge") == str(home / "judge")


async def loaded(engine):
    await engine.load()
    await engine.close()


@pytest.mark.parametrize(
    ("generation", "model", "tokenizer", "ends"),
    [
        ([1, 3], None, None, {1, 3}),
        (None, 3, None, {1, 3}),  # the template closes turns with 1
        (None, None, "<|assistant|>", {1, 4}),
        (0, 3, "<|assistant|>", {0, 1, 3, 4}),
        (None, None, None, {1}),
    ],
)
def test_what_ends_an_answer_is_what_any_of_the_files_says(
    qwen, tmp_path, generation, model, tokenizer, ends
):
    folder = tmp_path / "m"
    shutil.copytree(qwen, folder)
    files = {"generation_config.json": ("eos_token_id", generation), "config.json": ("eos_token_id", model)}
    files["tokenizer_config.json"] = ("eos_token", tokenizer)
    for name, (key, value) in files.items():
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(said | {key: value}))
    assert HFEngine("m", HFOptions(str(folder), device="cpu")).vocabulary.end == ends


def test_an_error_of_several_lines_is_told_whole_in_one(tmp_path):
    with pytest.raises(
        ConfigError, match=r"from one of: \(1\) .* convert a slow tokenizer to a fast one\.$"
    ) as error:
        ModelCheckpoint(str(tmp_path)).tokenizer()
    assert "\n" not in str(error.value)
    assert one_line(ValueError("one of:\n (1) a\n\n (2) b")) == "one of: (1) a (2) b"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line("x" * 5000)) == 1000


def test_a_kernel_that_transformers_has_not_for_a_scorers_model_is_replaced(tmp_path, caplog):
    config = transformers.Gemma2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    auto = transformers.AutoModelForSequenceClassification
    auto.from_config(config).save_pretrained(tmp_path)
    network = loading.load_network(HFOptions(str(tmp_path), device="cpu"), config, auto)
    assert network.config._attn_implementation == "eager"
    assert "runs with attn_implementation: eager" in caplog.text


def test_options_made_in_python_are_checked_as_those_of_a_file(qwen):
    with pytest.raises(ConfigError, match=r"engine 'm': option 'batch_rows': .* greater than or equal to 1"):
        HFEngine("m", HFOptions(qwen, batch_rows=0))
