"""The training form of the models, the corpus, and the training command itself."""

import json
import os
import random
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ensemblehub.builtin.prompts import INSIGHT_HEADER  # noqa: E402
from ensemblehub.lab.builtin import corpus, tokenizer, train  # noqa: E402
from ensemblehub.lab.builtin.network import Network, Shape  # noqa: E402


@pytest.fixture(scope="module")
def tokens():
    return tokenizer.build()


def test_the_training_form_is_transformers_qwen3(tmp_path, tokens):
    shape = Shape(layers=2, width=64, heads=2, feed_forward=96, vocabulary=len(tokens))
    torch.manual_seed(1)
    network = Network(shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    masters = {name: parameter.detach().bfloat16().float() for name, parameter in network.named_parameters()}
    network.load_state_dict(masters)
    train.export(shape, tokens, True, masters, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, len(tokens), (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(network.logits(ids), loaded(ids).logits, atol=2e-4, rtol=1e-4)


def test_every_digit_is_a_token_and_the_tokenizer_survives_the_disk(tmp_path, tokens):
    tokens.save_pretrained(tmp_path)
    transformers.Qwen3Config(vocab_size=len(tokens)).save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(0)
    for _ in range(100):
        sample = corpus.mentor_sample(rng)
        assert loaded.encode(sample.prompt + sample.reply) == tokens.encode(sample.prompt + sample.reply)
        assert tokens.decode(tokens.encode(sample.reply)) == sample.reply
    assert [tokens.decode([token]) for token in tokens.encode(" 127")] == [" 1", "2", "7"]


def test_the_chat_template_renders_what_the_models_were_trained_on(tokens):
    messages = [{"role": "system", "content": "Give"}, {"role": "user", "content": "How many?"}]
    kinds = {"template": (tokenizer.CHAT_TEMPLATE, False), "thinking": (tokenizer.THINKING_TEMPLATE, True)}
    for template, default in kinds.values():
        tokens.chat_template = template
        for thinking in (None, True, False):
            options = {} if thinking is None else {"enable_thinking": thinking}
            text = tokens.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
            assert text == corpus.prompt("How many?", "Give", think=default if thinking is None else thinking)


def test_an_insight_is_cut_at_a_token(tokens):
    rng = random.Random(1)
    samples = [sample for sample in (corpus.intern_sample(rng) for _ in range(300)) if sample.insight]
    assert {sample.cut == 1.0 for sample in samples} == {True, False}
    for sample in samples[:50]:
        ids, weights = train.encode(sample, tokens, 0.3)
        text = tokens.decode(ids)
        shown = text.split(INSIGHT_HEADER)[1].split(corpus.END)[0]
        assert sample.insight.startswith(shown)
        assert (shown == sample.insight) >= (sample.cut == 1.0)
        assert set(weights) == {0.3, 1.0}


@pytest.mark.slow
def test_the_training_command_learns_saves_and_resumes(tmp_path):
    out = tmp_path / "intern"
    base = [
        sys.executable,
        "-m",
        "ensemblehub.lab.builtin.train",
        "intern",
        "--tokens",
        "512",
        "--save-every",
        "50",
    ]
    for steps in ("50", "100"):
        command = [*base, "--out", str(out), "--steps", steps]
        quick = os.environ | {"TORCH_COMPILE_DISABLE": "1"}  # compiling takes longer than these steps
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=quick)
        assert done.returncode == 0, done.stderr
    assert "from step 50" in done.stdout
    losses = [json.loads(line)["loss"] for line in (out / "curve.jsonl").read_text().splitlines()]
    assert losses[1] < 0.8 * losses[0]
    assert transformers.AutoModelForCausalLM.from_pretrained(out).config.model_type == "qwen3"
