"""The memory plan: figures worked out by hand for known models, and what becomes of them in vLLM's options."""

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from ensemblehub.cli import main
from ensemblehub.config import Config
from ensemblehub.configured import engine_of
from ensemblehub.doctor import examine
from ensemblehub.generators import memory
from ensemblehub.generators.base import activations_of
from ensemblehub.generators.memory import OVERHEAD, DevicePlan, MemoryNeed, need_of
from ensemblehub.generators.vllm import engine as module

GIB = 2**30
QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "torch_dtype": "bfloat16"}
SHAPES = {  # of the models' own config.json
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
    "32b": (5120, 27648, 64, 40, 8, 152064, False),
}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A function from sizes to a configuration of vLLM engines; there is one GPU of 80 GiB, and no weights."""
    spec = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: object()))
    monkeypatch.setattr(module, "importlib", spec)
    monkeypatch.setattr(memory, "memory_of", lambda device: 80 * GIB if device == "cuda:0" else 0)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "vocab_size", "tie_word_embeddings")
    for size, shape in SHAPES.items():
        (tmp_path / size).mkdir()
        config = QWEN | dict(zip(names, shape, strict=True)) | {"max_position_embeddings": 32768}
        (tmp_path / size / "config.json").write_text(json.dumps(config))

    def configured(*sizes, **options):
        given = {"engine": "vllm", "max_model_len": 16384} | options
        entries = [{"name": size, "path": str(tmp_path / size), **given} for size in sizes]
        return Config.from_dict({"model_specs": entries})

    return configured


def engines(config):
    return [engine_of(config, spec) for spec in config.model_specs]


@pytest.mark.parametrize(
    ("size", "parameters", "token"),
    [
        ("0.5b", 494_032_768, 2 * 24 * 2 * 64 * 2),  # keys and values, layers, heads, width, bytes
        ("7b", 7_615_616_512, 2 * 28 * 4 * 128 * 2),
        ("32b", 32_763_876_352, 2 * 64 * 8 * 128 * 2),
    ],
)
def test_weights_and_keys_and_values_follow_from_the_configuration(models, size, parameters, token):
    need = need_of(*engines(models(size)))
    assert (need.weights, need.token) == (2 * parameters, token)
    assert need.row == 16384 * token
    hidden, inner, *_, vocabulary, _ = SHAPES[size]
    activations = 8192 * (2 * hidden + 3 * inner) * 2 + 8 * 256 * vocabulary
    assert need.activations == activations
    assert need.fixed == need.weights + activations + OVERHEAD
    half = need_of(*engines(models(size, tensor_parallel_size=2)))
    assert (half.weights, half.token) == (parameters, token // 2)


def test_activations_of_a_7b_model_by_hand():
    assert activations_of(3584, 18944, 152064, 2, 8192, 256) == 1_048_576_000 + 311_427_072


def test_two_models_that_fit_share_the_gpu_by_equal_rows(models):
    config = models("32b", "0.5b")
    plan = DevicePlan.of("cuda:0", 80 * GIB, [need_of(engine) for engine in engines(config)])
    # 77.31e9 planned, less 68.44e9 and 2.64e9 that are fixed, over rows of 4.29e9 and 0.20e9 bytes
    assert plan.rows == pytest.approx(6_228_355_328 / (4_294_967_296 + 201_326_592), abs=1e-6)
    assert plan.shares == {"32b": 0.867, "0.5b": 0.034}
    assert plan.settings["32b"] == {"gpu_memory_utilization": 0.867, "max_model_len": 2816}
    assert plan.verdict == "they fit, with 1 row of full length each"
    for need in plan.needs:
        assert plan.shares[need.name] * 80 * GIB >= need.fixed + need.row


def test_two_models_that_do_not_fit_take_turns(models):
    plan = DevicePlan.of("cuda:0", 80 * GIB, [need_of(engine) for engine in engines(models("32b", "7b"))])
    assert plan.rows < 1
    assert plan.verdict == "they need 85.1 of 72.0 GiB with one row each: load them by turns"
    assert plan.settings == {"32b": {"swap": True}, "7b": {"swap": True}}
    swapped = [need_of(engine) for engine in engines(models("32b", "7b", swap=True))]
    plan = DevicePlan.of("cuda:0", 80 * GIB, swapped)
    assert plan.verdict == "they fit by turns, with 2 rows of full length each"
    assert plan.shares == {"32b": 0.9, "7b": 0.9}
    plan = DevicePlan.of("cuda:0", 40 * GIB, swapped)
    assert "32b alone is too large" in plan.verdict
    assert plan.settings == {}


def test_rows_are_cut_to_what_fits_and_an_unknown_device_is_said():
    need = MemoryNeed("m", GIB, 2**20, 1024, 64, 0, GIB)  # rows of 1 GiB
    assert DevicePlan.of("cpu", 20 * GIB, [need]).settings == {"m": {"batch_rows": 17}}  # 0.9 * 20 - 1
    assert DevicePlan.of("cpu", 80 * GIB, [need]).settings == {}
    plan = DevicePlan.of("cuda:0", 0, [need])
    assert plan.verdict.startswith("they take 65.0 GiB at least; its memory is not known here")


def started(engine, monkeypatch):
    monkeypatch.setattr(module, "VLLMWorker", lambda name, arguments: SimpleNamespace(**arguments))
    return engine._start().gpu_memory_utilization


def test_vllm_gets_the_share_of_the_plan_unless_one_is_set(models, monkeypatch):
    mentor, intern = engines(models("32b", "0.5b"))
    assert (started(mentor, monkeypatch), started(intern, monkeypatch)) == (0.867, 0.034)
    (alone,) = engines(models("32b"))
    assert started(alone, monkeypatch) == 0.9
    given, _ = engines(models("32b", "0.5b", gpu_memory_utilization=0.4))
    assert started(given, monkeypatch) == 0.4
    for large in engines(models("32b", "7b")):
        assert started(large, monkeypatch) == 0.9  # the plan has none: vLLM says what is missing
    monkeypatch.setattr(memory, "memory_of", lambda device: 0)
    assert started(mentor, monkeypatch) == 0.9


def test_doctor_prints_the_plan(models, tmp_path, capsys):
    config = models("32b", "7b")
    path = tmp_path / "some.yaml"
    entries = [{"name": spec.name, "engine": "vllm", **spec.options} for spec in config.model_specs]
    path.write_text(json.dumps({"model_specs": entries}))
    (plan,) = examine(path).memory
    assert (plan.device, plan.capacity, len(plan.needs)) == ("cuda:0", 80 * GIB, 2)
    (plan,) = examine(path, gpu_memory=160).memory
    assert set(plan.settings["7b"]) == {"gpu_memory_utilization"}
    with pytest.raises(SystemExit) as stop:
        main(["doctor", str(path), "--gpu-memory", "80"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert "memory      cuda:0, 72.0 GiB planned of 80.0 GiB" in lines
    assert any(line.split()[:3] == ["32b", "61.0", "GiB"] for line in lines)
    assert "set         7b: swap: true" in lines
    with pytest.raises(SystemExit):
        main(["doctor", str(path), "--json"])
    assert json.loads(capsys.readouterr().out)["memory"][0]["device"] == "cuda:0"


def test_the_built_in_pair_lies_in_the_hosts_memory(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("model_specs: [{path: builtin:mentor}, {path: builtin:intern}]")
    (plan,) = examine(path).memory
    assert plan.device == "cpu"
    assert plan.capacity > GIB
    mentor = plan.needs[0]
    assert mentor.row == 2048 * 2 * 4 * 6 * 32 * 4  # tokens; keys and values, layers, heads, width, bytes
    assert mentor.fixed - mentor.weights - mentor.activations == 65536 * mentor.token  # the prefix cache
    assert mentor.total == mentor.fixed + 64 * mentor.row
