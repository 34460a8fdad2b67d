"""Architectures: what the table says is what the engine does, and nothing runs that writes other text in silence."""

import asyncio
import json
import logging

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import transformers

from benchmarks import architectures as benchmark
from benchmarks.tiny_configs import tiny
from ensemblehub.cost import UsageLedger
from ensemblehub.doctor import examine
from ensemblehub.errors import ConfigError
from ensemblehub.generators.hf import architectures as hf_architectures
from ensemblehub.generators.hf.architectures import SAME, entry_of, support_of
from ensemblehub.generators.hf.engine import HFEngine, HFOptions


def saved(kind, folder, **changes):
    benchmark.save(tiny(kind, changes), folder)
    return str(folder)


def configured(kind, folder, **changes):
    """A folder without weights."""
    tiny(kind, changes).save_pretrained(folder)
    return str(folder)


def loaded(path, **options):
    engine = HFEngine("tiny", HFOptions(path, device="cpu", **options))

    async def main():
        await engine.load()
        try:
            return await benchmark.written(engine, benchmark.LONG, UsageLedger())
        finally:
            await engine.close()

    return asyncio.run(main())


def expected(path):
    network = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    return benchmark.expected(network, benchmark.LONG)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "mpt"])
def test_what_runs_under_eager_alone_falls_back_to_it_and_says_so_once(kind, tmp_path, caplog):
    path = saved(kind, tmp_path)
    with caplog.at_level(logging.WARNING, "ensemblehub"):
        benchmark.compare(kind, loaded(path), expected(path))
    said = [record.getMessage() for record in caplog.records if record.name.startswith("ensemblehub")]
    assert said == [
        f"tiny: {kind} runs with attn_implementation: eager (sdpa: transformers has no sdpa for it)"
    ]
    (tmp_path / "some.yaml").write_text(f"model_specs:\n- {{path: '{path}', name: m}}\n")
    report = examine(tmp_path / "some.yaml")
    assert report.ok
    assert sum("runs with attn_implementation: eager" in note for note in report.notes) == 1


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("gpt_neo", {}, "'gpt_neo'"),
        ("bloom", {}, "'bloom'"),
        ("falcon", {"alibi": True}, "'falcon' with alibi: True"),
        ("openai-gpt", {}, "'openai-gpt'"),
        ("rwkv", {}, "'rwkv': transformers has no sdpa for it; the model keeps no keys and values"),
        ("bert", {"is_decoder": False}, "'bert' with is_decoder: False"),
        ("bart", {}, "'bart'"),
        ("mamba", {}, "layers of kind linear_attention"),
    ],
)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_what_writes_other_text_is_refused_by_name_before_weights_load(kind, changes, says, kernel, tmp_path):
    path = configured(kind, tmp_path, **changes)
    with pytest.raises(ConfigError, match=says) as refused:
        HFEngine("tiny", HFOptions(path, attn_implementation=kernel))
    assert "\n" not in str(refused.value)
    (tmp_path / "some.yaml").write_text(
        f"model_specs:\n- {{path: '{path}', attn_implementation: {kernel}}}\n"
    )
    report = examine(tmp_path / "some.yaml")
    assert len(report.problems) == 1
    assert kind in report.problems[0] or "linear_attention" in report.problems[0]


def test_the_line_with_the_most_conditions_holds():
    assert entry_of(tiny("falcon"))["when"] == {}
    assert entry_of(tiny("falcon", {"alibi": True}))["when"] == {"alibi": True}
    assert support_of(tiny("llama"), "eager").kernel == "eager"
    assert support_of(tiny("llama"), "flash_attention_2").kernel == "sdpa"
    own = tiny("llama")
    own.auto_map = {"AutoModelForCausalLM": "modeling_own.Own"}
    assert not support_of(own, "sdpa").known


@pytest.mark.parametrize("kind", ["llama", "gemma2", "llama4_text"])
def test_an_architecture_that_is_not_in_the_table_is_compared_when_it_is_loaded(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_architectures, "_lines", dict)
    path = saved(kind, tmp_path)
    engine = HFEngine("tiny", HFOptions(path, device="cpu"))
    assert "never compared" in engine.notes[0]
    benchmark.compare(kind, loaded(path), expected(path))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("gpt_neo", "logprobs differ by"),
        ("bart", "logprobs differ by"),
        ("rwkv", "no keys and values"),
        ("bloom", "cannot run"),
    ],
)
def test_one_that_differs_then_is_refused_in_one_line(kind, says, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_architectures, "_lines", dict)
    path = saved(kind, tmp_path)
    with pytest.raises(ConfigError, match=says) as refused:
        loaded(path, attn_implementation="eager")
    assert kind in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_table_is_whole_and_a_run_of_it_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    table = json.loads(hf_architectures.TABLE.read_text())
    if table["transformers"] == transformers.__version__:
        assert {line["kind"] for line in table["architectures"]} == set(benchmark.NAMES)
    for line in table["architectures"]:
        assert "untried" in line or {"sdpa", "eager"} <= line.keys()
    for kind in (
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
        "mixtral",
        "phi3",
        "gemma3_text",
        "gemma4_text",
        "olmo2",
    ):
        assert any(line["kind"] == kind and line["sdpa"] == SAME for line in table["architectures"])
    out = tmp_path / "ensemblehub/generators/hf/architectures.json"
    out.parent.mkdir(parents=True)
    (tmp_path / "results/engines").mkdir(parents=True)
    out.write_text('{"transformers": "", "architectures": []}')
    monkeypatch.setattr("sys.argv", ["architectures", "llama", "gpt_neo", "--out", str(tmp_path)])
    assert benchmark.main() == 0
    first = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["kind"] for line in first] == ["llama", "gpt_neo"]
    assert json.loads(out.read_text())["architectures"][1]["sdpa"] == SAME
    assert benchmark.main() == 0
    assert capsys.readouterr().out == ""
    assert "| `llama` |" in (tmp_path / benchmark.REPORT).read_text()
