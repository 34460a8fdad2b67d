"""Options of the hf engine that say where and how a model is loaded."""

import asyncio

import pytest

pytest.importorskip("transformers")

import torch

from ensemblehub.errors import AbsentError, ConfigError, MissingExtraError
from ensemblehub.generators import hf_loading
from ensemblehub.generators.hf import HFEngine, HFOptions
from ensemblehub.schema import Chat, Message, Request

QUESTION = (Message("user", "the quick brown fox"),)


def text(engine, thinking=None):
    return "".join(origin.text for origin in engine.render(Request(Chat(QUESTION, thinking))).origins)


@pytest.mark.parametrize(
    ("option", "asked", "thinks"),
    [(None, None, False), (True, None, True), (False, None, False), (True, False, False), (False, True, True)],
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
    monkeypatch.setattr(hf_loading, "device_of", lambda options: "cuda")
    monkeypatch.setattr(hf_loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install bitsandbytes"):
        HFOptions("x", quantization="4bit")


def test_no_gpu_is_the_cpu():
    assert hf_loading.device_of(HFOptions("x", num_gpus=0)) == "cpu"
    for share in (0.5, 1):
        assert hf_loading.device_of(HFOptions("x", num_gpus=share)) == hf_loading.device_of(HFOptions("x"))


def test_weights_are_spread_over_so_many_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (1000 * (index + 1), 10**6))
    assert hf_loading._memory(HFOptions("x", num_gpus=2)) == {0: 900, 1: 1800}
    assert hf_loading._memory(HFOptions("x", num_gpus=1)) == {}


def test_max_memory_loads_with_accelerate(qwen):
    engine = HFEngine("m", HFOptions(qwen, device="cpu", max_memory={"cpu": "1GiB"}))

    async def ride():
        await engine.load()
        await engine.close()

    asyncio.run(ride())


@pytest.mark.parametrize("family", ["qwen", "llama"])
def test_footprint(request, monkeypatch, family):
    path = request.getfixturevalue(family)
    engine = HFEngine("m", HFOptions(path, device="cpu", dtype="bfloat16"))
    parameters, table = engine.card.parameters, engine.card.vocabulary * 48
    width = 16 if family == "qwen" else 12
    assert engine.footprint.weights == 2 * parameters
    assert engine.footprint.token == 2 * 3 * 2 * width * 2  # keys and values, layers, heads, width, bytes
    monkeypatch.setattr(hf_loading, "device_of", lambda options: "cuda")
    monkeypatch.setattr(hf_loading.importlib.util, "find_spec", lambda name: True)
    tables = table if family == "qwen" else 2 * table  # qwen's head is its embedding
    for bits, size in (("8bit", 1), ("4bit", 9 / 16)):
        options = HFOptions(path, dtype="bfloat16", quantization=bits)
        footprint = hf_loading.footprint_of(options, engine._config, engine.card)
        assert footprint.weights == 2 * tables + int((parameters - tables) * size)


def test_a_model_that_is_nowhere_is_absent_and_a_folder_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="cannot load") as error:
        HFEngine("m", HFOptions(str(tmp_path / "nothing")))
    assert not isinstance(error.value, AbsentError)
