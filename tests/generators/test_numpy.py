"""What the numpy engine does beyond the contract, which `test_contract.py` holds against the hf engine."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")

import numpy as np
import torch

from ensemblehub import builtin, registry
from ensemblehub.config import Config
from ensemblehub.configured import engine_of
from ensemblehub.errors import ConfigError
from ensemblehub.generators.batching.sampling import TokenSampler, choose
from ensemblehub.generators.numpy.engine import NumpyEngine, NumpyOptions
from ensemblehub.generators.numpy.sampling import TokenChooser
from ensemblehub.schema import Sampling


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, top_p=0.8),
        Sampling(temperature=1.5, top_k=3),
        Sampling(temperature=1.0, min_p=0.2),
        Sampling(logit_bias={2: 9.0}),
        Sampling(repetition_penalty=40.0),
        Sampling(min_tokens=1),
        Sampling(temperature=0.5, top_k=4, top_p=0.9, min_p=0.01),
    ],
)
def test_the_tokens_that_can_be_drawn_are_those_of_the_hf_engine(sampling):
    logits = np.array([5.0, 3.0, -1.0, 4.5, 2.0, 4.9], np.float32)
    prompt, end = [0, 3], frozenset({0})
    ours = TokenChooser(sampling, prompt, end)
    theirs = TokenSampler(sampling, prompt, end)
    count = 400 if sampling.temperature else 1
    drawn = np.bincount([ours.choose(logits.copy()) for _ in range(count)], minlength=6)
    lines = torch.tensor(np.tile(logits, (count, 1)))
    expected = np.bincount(choose([theirs] * count, lines).numpy(), minlength=6)
    assert set(np.flatnonzero(drawn)) == set(np.flatnonzero(expected))
    assert np.abs(drawn - expected).max() <= 0.12 * count


def test_written_tokens_are_penalised():
    chooser = TokenChooser(Sampling(frequency_penalty=1.0), [], frozenset())
    assert [chooser.choose(np.array([2.5, 2.0], np.float32)) for _ in range(4)] == [0, 1, 0, 1]


def test_size_and_name_are_those_of_the_hf_engine():
    for name in ("mentor", "intern"):
        spec = {"name": name, "path": f"builtin:{name}"}
        config = Config.from_dict({"model_specs": [spec | {"engine": "hf", "device": "cpu"}]})
        hf = engine_of(config, config.model_specs[0])
        ours = NumpyEngine(name, NumpyOptions(builtin.resolve(f"builtin:{name}")))
        assert (ours.info, ours.footprint, ours.model) == (hf.info, hf.footprint, hf.model)
        assert ours.tokenizer.settings()["chat_template"] == hf.tokenizer.settings()["chat_template"]
        assert ours.tokenizer.fingerprint == hf.tokenizer.fingerprint
        assert ours.vocabulary == hf.vocabulary


def test_it_runs_the_built_in_pair_where_torch_is_not_installed(monkeypatch):
    assert registry.engine_for("builtin:mentor") == "hf"
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    assert registry.engine_for("builtin:intern") == "numpy"
    assert registry.engine_for("org/model") == "hf"
    assert [spec.engine for spec in Config.read(builtin.CONFIG).model_specs] == ["numpy", "numpy"]


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot load"):
        NumpyEngine("x", NumpyOptions(str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match="built-in models only; use engine: hf"):
        NumpyEngine("x", NumpyOptions(str(tmp_path)))


def test_a_program_that_closes_nothing_ends_quietly():
    program = """
import ensemblehub as eh
spec = {"name": "mentor", "engine": "numpy", "path": "builtin:mentor"}
print(eh.Ensemble([spec], aggregation="single").generate("2 + 2?", max_tokens=3).cost.completion_tokens)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("3", "", 0)
