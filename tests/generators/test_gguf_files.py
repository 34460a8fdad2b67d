# ruff: noqa: E402
"""A GGUF file alone: its header, its tokenizer against llama.cpp's own, and an answer without other files."""

import asyncio
import logging
import struct

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf", reason="gguf is not installed; `make test-llamacpp` installs it")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; `make test-llamacpp` builds it")

from hf_bench import run

from benchmarks.gguf_tokenizers import chats, compare, prompts
from ensemblehub.cost import UsageLedger
from ensemblehub.errors import ConfigError
from ensemblehub.generators.llama_cpp.engine import LlamaCppEngine, LlamaCppOptions
from ensemblehub.generators.llama_cpp.gguf_export import export
from ensemblehub.generators.llama_cpp.gguf_file import GGUFFile
from ensemblehub.generators.llama_cpp.vocabulary import LlamaVocabulary
from ensemblehub.schema import Chat, Message, Request, Sampling


@pytest.fixture(scope="module")
def file(qwen, tmp_path_factory):
    """A tiny model with nothing beside it."""
    written = export(qwen, tmp_path_factory.mktemp("exported"))
    return written.rename(tmp_path_factory.mktemp("alone") / "tiny.gguf")


def engine_of(path, **options):
    return LlamaCppEngine("tiny", LlamaCppOptions(str(path), threads=1, **options))


def replaced(file, folder, **values):
    """A copy whose strings or numbers under `tokenizer.ggml.KEY` are others."""
    reader, path = gguf.GGUFReader(file), folder / "changed.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            value = values.get(name.removeprefix("tokenizer.ggml."), field.contents())
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, value, field.types[0], inner)
    for key, value in values.items():
        if f"tokenizer.ggml.{key}" not in reader.fields:
            kind = gguf.GGUFValueType.BOOL if isinstance(value, bool) else gguf.GGUFValueType.UINT32
            writer.add_key_value(f"tokenizer.ggml.{key}", value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_header_is_what_the_gguf_package_reads(file):
    ours, theirs = GGUFFile.read(file), gguf.GGUFReader(file)
    keys = [name for name in theirs.fields if not name.startswith("GGUF.")]
    assert ours.values == {key: theirs.fields[key].contents() for key in keys}
    assert [(tensor.name, tensor.shape, tensor.kind, tensor.size) for tensor in ours.tensors.values()] == [
        (tensor.name, tuple(tensor.shape.tolist()), tensor.tensor_type.name, tensor.n_bytes)
        for tensor in theirs.tensors
    ]


def test_a_damaged_header_is_one_line(file, tmp_path):
    whole = file.read_bytes()
    start = whole.index(b"token_embd")
    cut = [whole[:end] for end in (0, 3, 20, 100, start // 2, start + 12)]
    for data in [
        *cut,
        b"GGML" + whole[4:],
        struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 2**63),
        whole[:4] + b"\x09" + whole[5:],
    ]:
        (tmp_path / "bad.gguf").write_bytes(data)
        with pytest.raises(ConfigError, match=r"cannot read '.*bad\.gguf' as GGUF") as caught:
            GGUFFile.read(tmp_path / "bad.gguf")
        assert "\n" not in str(caught.value)


def test_the_file_alone_tokenizes_renders_and_ends_as_the_models_own_tokenizer(file, qwen):
    alone, given = engine_of(file), engine_of(file, tokenizer=qwen)
    assert alone.settings.checkpoint is None
    for _, text in prompts(["<|end|>", "<|user|>"]):
        assert alone.tokenizer.encode(text) == given.tokenizer.encode(text)
        assert alone.tokenizer.inside(text) == given.tokenizer.inside(text)
    for chat in chats():
        assert alone.render(Request(chat)) == given.render(Request(chat))
    assert alone.vocabulary == given.vocabulary


@pytest.mark.parametrize(
    "values",
    [
        {"pre": "gpt-2"},
        {"pre": "smollm"},
        {"pre": "qwen2"},
        {"pre": "llama-bpe", "add_bos_token": True, "bos_token_id": 2},
    ],
)
def test_ids_texts_and_ends_are_those_of_llama_cpp(file, tmp_path, values):
    found = compare(replaced(file, tmp_path, **values))
    assert sum(found["prompts"].values()) > 200
    assert (found["differ"], found["with more ends"], found["spelt otherwise"]) == ([], [], [])
    assert found["chats"] == [20, 0]
    assert found["ends"] == [["<|end|> (1)"], []]


def test_a_tokenizer_that_differs_from_llama_cpps_is_logged(file, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert engine_of(file).vocabulary.end == {1}
        assert not caplog.records
        assert engine_of(replaced(file, tmp_path, pre="deepseek-llm")).vocabulary.end == {1}
    (record,) = caplog.records
    assert "name the model's own tokenizer with `tokenizer`" in record.getMessage()


def test_ordinary_text_ends_no_answer(file, tmp_path):
    """llama.cpp ends at any token called `</s>`, also where that is a word of the vocabulary."""
    values = GGUFFile.read(file).values
    tokens, merges = (list(values[f"tokenizer.ggml.{name}"]) for name in ("tokens", "merges"))
    tokens[-1] = "</s>"
    with pytest.raises(ConfigError, match=r"cannot build the tokenizer in .*changed.*; `tokenizer` may name"):
        _ = engine_of(replaced(file, tmp_path, tokens=tokens)).tokenizer
    path = replaced(file, tmp_path, tokens=tokens, merges=merges[:-1])
    with LlamaVocabulary(path) as own:
        assert own.ends == {1, len(tokens) - 1}
    assert engine_of(path).vocabulary.end == {1}


def test_the_file_alone_answers_as_with_the_models_own_tokenizer(file, qwen):
    asked = Request(Chat((Message("user", "nine small birds"),)), Sampling(max_tokens=20))

    async def answer(engine):
        try:
            return [piece.text async for piece in engine.stream(asked, UsageLedger().meter("answer"))]
        finally:
            await engine.close()

    async def main():
        return await asyncio.gather(answer(engine_of(file)), answer(engine_of(file, tokenizer=qwen)))

    alone, given = run(main())
    assert alone == given
    assert "".join(alone)


def test_a_template_without_the_switch_renders_the_same_prompt(file):
    engine = engine_of(file)
    asked = [Request(Chat((Message("user", "rain"),), thinking)) for thinking in (None, False, True)]
    assert engine.same_prompt(asked[0], asked[1])
    assert not engine.same_prompt(asked[0], asked[2])
    counts = [engine.count(request) for request in asked]
    assert engine.shared_prompt(asked[0], asked[1]) == counts[0]
    assert 0 < engine.shared_prompt(asked[0], asked[2]) < counts[2]
