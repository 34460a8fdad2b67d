"""Judges: rules, saved folders, and what is said about another pair."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemblehub.errors import ArtifactError, ConfigError, RequestError
from ensemblehub.tandem.artifact import JudgeArtifact, load_judge, resolve_judge
from ensemblehub.tandem.curves import Curve
from ensemblehub.tandem.features import features
from ensemblehub.tandem.judges import MLP, Inputs, Logistic, Reading
from ensemblehub.tandem.trees import GradientBoosting, Trees

safetensors = pytest.importorskip("safetensors.numpy")
LEVELS = {"none": 0, "low": 24, "medium": 64}


def reading(level=1, tokens=24, perplexity=(1.0, 2.0, 3.0), entropy=(0.5, 0.1, 0.6)):
    return Reading(level, tokens, np.array(perplexity), np.array(entropy))


def network(curve=None):
    random, inputs = np.random.default_rng(0), Inputs(levels=3)
    shapes = [(64, inputs.width), (32, 64), (1, 32)]
    layers = tuple(
        (random.normal(0, 0.3, s).astype(np.float32), random.normal(0, 0.1, s[0]).astype(np.float32))
        for s in shapes
    )
    isotonic = Curve("isotonic", np.array([[-2.0, 0.0, 3.0], [0.1, 0.4, 0.9]]))
    return MLP(
        inputs, random.normal(size=inputs.width), np.full(inputs.width, 1.7), layers, curve or isotonic
    )


def artifact(judge=None, **changes):
    made = {
        "mentor": "big",
        "intern": "small",
        "prompts": "abc",
        "levels": LEVELS,
        "data": {"split": "train", "n": 7},
    }
    return JudgeArtifact(judge or network(), **(made | changes))


# Rules


def test_entropy_rule_suffices_exactly_when_the_mean_is_at_most_the_limit():
    found = resolve_judge("entropy:0.4", list(LEVELS))
    assert found.thresholds == {"none": 0.5, "low": 0.5, "medium": 0.5}
    assert found.judge.probability(reading()) == pytest.approx(0.5)  # mean entropy 0.4
    assert found.judge.probability(reading(entropy=(0.39, 0.39, 0.39))) > 0.5
    assert found.judge.probability(reading(entropy=(0.41, 0.41, 0.41))) < 0.5
    assert found.judge.probability(reading(entropy=(0.0, 0.0, 0.0))) == 1.0


def test_perplexity_rule_reads_perplexity():
    assert resolve_judge("perplexity:2", list(LEVELS)).judge.probability(reading()) == pytest.approx(0.5)


@given(st.floats(0.01, 100), st.floats(0.01, 0.99), st.floats(0, 100))
def test_a_threshold_is_a_limit_in_the_rule_s_own_unit(limit, threshold, mean):
    rule = resolve_judge(f"entropy:{limit}", list(LEVELS)).judge
    own = limit * (1 / threshold - 1)
    if abs(mean - own) > 1e-4 * own:
        assert (rule.probability(reading(entropy=[mean])) >= threshold) == (mean <= own)


def test_fixed_answers_at_its_level_and_else_from_the_last():
    found = resolve_judge("fixed:low", list(LEVELS))
    said = [found.judge.probability(Reading(level, 0)) for level in range(3)]
    assert said == [0.5, 1.0, 1.0]
    assert set(found.thresholds.values()) == {1.0}
    assert not found.judge.reads


@pytest.mark.parametrize(
    ("judge", "match"),
    [
        ("entropy:much", "needs a number above 0, got 'much'"),
        ("entropy:-1", "needs a number above 0"),
        ("perplexity:nan", "needs a number above 0"),
        ("fixed:lwo", "did you mean 'low'"),
    ],
)
def test_rules_that_cannot_be(judge, match):
    with pytest.raises(ConfigError, match=match):
        resolve_judge(judge, list(LEVELS))


def test_an_empty_reading_is_not_judged():
    with pytest.raises((RequestError, IndexError)):
        network().probability(Reading(0, 0))


# The network


def test_logistic_by_hand():
    inputs = Inputs(levels=2, log_perplexity=False)
    weight = np.zeros((1, inputs.width), np.float32)
    weight[0, 0], weight[0, 17], weight[0, 18] = 2.0, 1.0, 0.5  # perplexity mean, level 1, mentor tokens
    judge = Logistic(inputs, np.zeros(inputs.width), np.ones(inputs.width), ((weight, np.float32([-8.0])),))
    logit = 2 * 2.0 + 1 + 0.5 * 4 - 8
    assert judge.probability(reading(level=1, tokens=4)) == pytest.approx(1 / (1 + np.exp(-logit)))
    assert judge.flops == 2 * 19 + 2 * 19 + 1


def test_many_readings_at_once_equal_one_at_a_time():
    judge, random = network(), np.random.default_rng(1)
    readings = [
        [Reading(level, 30 * level, 1 + random.random(50), random.random(50)) for level in range(3)]
        for _ in range(4)
    ]
    table = np.array(
        [[features(value.perplexity, value.entropy) for value in row] for row in readings], np.float32
    )
    at_once = judge.probabilities(table, np.arange(3), np.array([[0, 30, 60]] * 4))
    assert at_once.shape == (4, 3)
    assert at_once == pytest.approx(
        np.array([[judge.probability(value) for value in row] for row in readings]), abs=1e-12
    )


def test_platt_and_isotonic_curves_by_hand():
    logits = np.array([-1.0, 0.0, 2.0, 9.0])
    assert Curve("platt", np.array([[2.0], [1.0]]))(logits)[0] == pytest.approx(1 / (1 + np.e))
    isotonic = Curve("isotonic", np.array([[0.0, 2.0, 4.0], [0.2, 0.6, 0.6]]))
    assert isotonic(np.array([-1.0, 1.0, 3.0, 9.0])) == pytest.approx([0.2, 0.4, 0.6, 0.6])


# The folder


@pytest.mark.parametrize("curve", [None, Curve("platt", np.array([[0.7], [0.1]])), Curve()])
def test_a_saved_judge_says_the_same_bit_for_bit(tmp_path, curve):
    saved = artifact(
        network(curve), thresholds={"none": 1.01, "low": 0.6}, scope="insight", estimates={"length": 3}
    )
    saved.save(tmp_path / "judge")
    loaded = load_judge(tmp_path / "judge")
    assert loaded.judge.probability(reading()) == saved.judge.probability(reading())
    assert loaded.record() == saved.record()
    assert loaded.judge.flops == saved.judge.flops
    assert sorted(path.name for path in (tmp_path / "judge").iterdir()) == ["judge.json", "judge.safetensors"]


def test_rules_can_be_saved_too(tmp_path):
    for spec in ("entropy:1.5", "perplexity:4", "fixed:low"):
        rule = resolve_judge(spec, list(LEVELS))
        rule.save(tmp_path)
        assert load_judge(tmp_path).judge == rule.judge


def test_new_thresholds_leave_the_weights_alone(tmp_path):
    artifact().save(tmp_path)
    before = (tmp_path / "judge.safetensors").read_bytes()
    artifact(thresholds={"none": 0.2}).save(tmp_path)
    assert (tmp_path / "judge.safetensors").read_bytes() == before
    assert load_judge(tmp_path).thresholds == {"none": 0.2}


def test_serving_a_judge_needs_neither_torch_nor_sklearn(tmp_path):
    artifact().save(tmp_path)
    code = (
        "import sys, pathlib, numpy as np; from ensemblehub.tandem.artifact import resolve_judge;"
        "from ensemblehub.tandem.judges import Reading;"
        f"judge = resolve_judge({str(tmp_path)!r}, []).judge;"
        "judge.probability(Reading(0, 0, np.ones(3), np.ones(3)));"
        "assert not {'torch', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_judge_names_the_folder(tmp_path):
    with pytest.raises(ArtifactError, match=r"no judge in .*nowhere: judge.json is missing"):
        load_judge(tmp_path / "nowhere")


def test_a_mistyped_rule_is_no_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"^unknown judge 'entropi'; did you mean 'entropy'"):
        resolve_judge("entropi:1.0", ["none", "low"])
    with pytest.raises(ArtifactError, match=r"no judge in .*nowhere: judge.json is missing"):
        resolve_judge(str(tmp_path / "nowhere"), ["none", "low"])


def edited(folder, **changes):
    path = folder / "judge.json"
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value != "gone"}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 2}, "format 2, this version reads 1"),
        ({"format": "gone"}, "damaged"),
        ({"kind": "mpl"}, "did you mean 'mlp'"),
        ({"kind": "entropy"}, "damaged"),
        ({"mentor": "gone"}, "damaged"),
        ({"options": {"inputs": {"levels": 4}, "layers": 3, "curve": "none"}}, "damaged"),
        ({"options": {"inputs": {"levels": 3}, "layers": 4, "curve": "none"}}, "damaged"),
        ({"features": ["mean"]}, "made for other features"),
        ({"thresholds": {"low": "much"}}, "thresholds.low"),
        ({"thresholds": {"lwo": 0.5}}, "did you mean 'low'"),
        ({"thresholds": {"low": float("nan")}}, "thresholds.low"),
        ({"levels": {"none": "0"}}, "levels.none"),
        ({"estimates": {"mentor_alone_tokens": {"slope": 1.0}}}, "estimates.*intercept"),
        (
            {
                "estimates": {
                    "mentor_alone_tokens": {
                        "intercept": 1.0,
                        "slope": 1.0,
                        "low": -1.0,
                        "high": 1.0,
                        "n": 9,
                        "thinking": "off",
                    }
                }
            },
            "estimates.*thinking",
        ),
        ({"metrics": None}, "metrics"),
    ],
)
def test_an_edited_description_is_refused_in_one_line(tmp_path, changes, match):
    artifact().save(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=match) as caught:
        load_judge(tmp_path)
    assert "\n" not in str(caught.value)


def rewritten(folder, **arrays):
    """The judge with some of its arrays replaced, and the hash that goes with them."""
    path = folder / "judge.safetensors"
    content = safetensors.save({**safetensors.load(path.read_bytes()), **arrays})
    path.write_bytes(content)
    edited(folder, sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    "arrays",
    [
        {"mean": np.full(20, np.nan)},
        {"std": np.zeros(20)},
        {"std": np.ones(19)},
        {"0.weight": np.ones((64, 19), np.float32)},
        {"1.bias": np.ones((32, 1), np.float32)},
        {"2.weight": np.ones((2, 32), np.float32)},
        {"curve": np.array([[-2.0, 0.0, -3.0], [0.1, 0.4, 0.9]])},
        {"curve": np.array([[-2.0, 0.0], [0.1, 1.4]])},
        {"curve": np.ones(3)},
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_line(tmp_path, arrays):
    artifact().save(tmp_path)
    rewritten(tmp_path, **arrays)
    with pytest.raises(ArtifactError, match="is damaged") as caught:
        load_judge(tmp_path)
    assert "\n" not in str(caught.value)


def test_trees_that_never_end_are_refused(tmp_path):
    inputs = Inputs(levels=3)
    table = {"feature": [[0, -1, -1]], "left": [[1, 0, 0]], "right": [[2, 0, 0]]}
    whole = {name: np.array(rows, np.int32) for name, rows in table.items()}
    floats = {"threshold": np.zeros((1, 3)), "value": np.array([[0.0, -1.0, 1.0]])}
    artifact(GradientBoosting(inputs, Trees(**whole, **floats, start=0.0))).save(tmp_path)
    assert load_judge(tmp_path).judge.probability(reading()) > 0.5
    for name, rows in {"left": [[0, 0, 0]], "right": [[7, 0, 0]], "feature": [[99, -1, -1]]}.items():
        artifact(GradientBoosting(inputs, Trees(**whole, **floats, start=0.0))).save(tmp_path)
        rewritten(tmp_path, **{name: np.array(rows, np.int32)})
        with pytest.raises(ArtifactError, match="lead nowhere"):
            load_judge(tmp_path)


@pytest.mark.parametrize("name", ["judge.json", "judge.safetensors"])
def test_a_torn_file_is_refused(tmp_path, name):
    artifact().save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="damaged"):
        load_judge(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        load_judge(tmp_path)


# Another pair


def test_the_pair_it_was_made_for_is_fine_and_a_rule_goes_with_any():
    assert artifact().check("big", "small", "abc", strict=True, levels=LEVELS) == []
    assert resolve_judge("entropy:1", list(LEVELS)).check("any", "other", "words", strict=True) == []


def test_another_pair_warns():
    warnings = artifact().check("big", "tiny", "xyz")
    assert len(warnings) == 2
    assert "intern 'small', not 'tiny'" in warnings[0]
    assert "levels" in artifact().check("big", "small", "abc", levels={"none": 0, "low": 9})[0]


def test_another_pair_is_an_error_in_strict_mode():
    with pytest.raises(ArtifactError, match="mentor 'big', not 'huge'"):
        artifact().check("huge", "small", "abc", strict=True)
