import copy
from pathlib import Path

import pytest

from ensemblehub.api.catalog import Catalog
from ensemblehub.api.problems import Problem
from ensemblehub.api.protocol import EnsembleOptions
from ensemblehub.config import Config
from ensemblehub.config.sections import Bound
from ensemblehub.ensemble_methods.output_aggregation.single import Single
from ensemblehub.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "server" / "several.yaml"
ECHO = {
    "model_specs": [
        {"name": name, "engine": "echo", "parameters": place} for place, name in enumerate("abc", 1)
    ],
    "ensemble": {
        "output_aggregation_method": "tandem",
        "output_aggregation_params": {"levels": {"low": 2, "high": 4}, "judge": "fixed:high", "mentor": "c"},
        "request_params": {
            "judge": {"choices": ["fixed:low", "fixed:high"]},
            "thresholds": {"minimum": 0, "maximum": 1},
        },
    },
    "ensembles": {
        "turns": {
            "models": ["c", "a"],
            "output_aggregation_method": "loop",
            "request_params": {"max_new_tokens_per_round": {"minimum": 2, "maximum": 8}},
        }
    },
}


@pytest.fixture
def catalog():
    return Catalog(Config.model_validate(ECHO))


def options(**given):
    return EnsembleOptions.model_validate(given)


def test_the_example_serves_ensembles_and_models_over_one_set_of_engines():
    catalog = Catalog(Config.read(EXAMPLE))
    assert list(catalog.served) == ["ensemble", "turns", "together", "mentor", "intern", "guest"]
    engines = {name: served.ensemble.engines for name, served in catalog.served.items()}
    assert engines["ensemble"][0] is engines["turns"][0] is engines["mentor"][0]
    assert [engine.name for engine in engines["together"]] == ["intern", "guest"]
    assert catalog.served["ensemble"].ensemble.on_error == "drop"


def test_a_model_is_served_alone_under_its_name(catalog):
    served = catalog.find("b")
    assert served.alone
    assert isinstance(served.ensemble.aggregation, Single)
    assert [engine.name for engine in served.ensemble.engines] == ["b"]


def test_an_unknown_name_gets_the_nearest(catalog):
    with pytest.raises(Problem, match="did you mean 'turns'") as refused:
        catalog.find("turn")
    assert refused.value.status_code == 404


def test_a_request_chooses_a_configured_method_by_its_name_or_the_ensembles(catalog):
    for method in ("loop", "turns"):
        assert catalog.chosen("ensemble", options(method=method)) is catalog.served["turns"]
    assert catalog.chosen("turns", options(method="tandem")) is catalog.served["ensemble"]
    with pytest.raises(Problem, match="not configured here: unknown method 'gac'"):
        catalog.chosen("ensemble", options(method="gac"))
    with pytest.raises(Problem, match="one model"):
        catalog.chosen("a", options(method="loop"))


def test_a_request_changes_parameters_within_the_bounds_and_nothing_else(catalog):
    changed = catalog.chosen("turns", options(params={"max_new_tokens_per_round": 4}))
    assert changed.ensemble.aggregation.max_new_tokens_per_round == 4
    assert catalog.served["turns"].ensemble.aggregation.max_new_tokens_per_round == 500
    assert changed.ensemble.engines == catalog.served["turns"].ensemble.engines
    assert (
        catalog.chosen("turns", options(params={"max_new_tokens_per_round": 4})).ensemble is changed.ensemble
    )
    both = catalog.chosen("ensemble", options(params={"judge": "fixed:low", "thresholds": {"low": 0.5}}))
    assert both.ensemble.aggregation.mentor == "c"  # what is not changed stays
    assert both.ensemble.aggregation.level_thresholds["low"] == 0.5


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("turns", {"max_new_tokens_per_round": 9}, "at least 2 and at most 8"),
        ("turns", {"max_new_tokens_per_round": True}, "at least 2"),
        ("turns", {"max_new_tokens_per_round": "4"}, "at least 2"),
        ("turns", {"max_rounds": 3}, "may set: max_new_tokens_per_round"),
        ("ensemble", {"judge": "/some/folder"}, "one of fixed:low, fixed:high"),
        ("ensemble", {"judge": ["fixed:low"]}, "one of fixed:low"),
        ("ensemble", {"thresholds": {"low": 2}}, "at most 1"),
        ("ensemble", {"thresholds": {}}, "at least 0"),
        ("ensemble", {"mentor": "a"}, "may not set 'mentor'"),
        ("a", {"engine": "b"}, "may set: none"),
    ],
)
def test_what_is_out_of_bounds_is_refused(catalog, name, params, says):
    with pytest.raises(Problem, match=says) as refused:
        catalog.chosen(name, options(params=params))
    assert refused.value.status_code == 400


def test_a_value_within_the_bounds_that_makes_no_sense_is_refused_too(catalog):
    with pytest.raises(ConfigError, match="unknown level 'lo'; did you mean 'low'"):
        catalog.chosen("ensemble", options(params={"thresholds": {"lo": 0.5}}))


def test_changed_ensembles_are_kept_in_bounds_as_well(catalog):
    for number in range(200):
        catalog.chosen("ensemble", options(params={"thresholds": {"low": number / 1000}}))
    assert catalog._variant.cache_info().currsize == 64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ensembles": {"a": {}}}, "'a' is the name of a model"),
        ({"ensembles": {"x": {"models": ["d"]}}}, "unknown model 'd'"),
        ({"ensembles": {"x": {"output_aggregation_method": "tandem", "models": ["a"]}}}, "both would be 'a'"),
        ({"ensembles": {"x": {"request_params": {"no": {"minimum": 1}}}}}, "has no option 'no'"),
        ({"ensembles": {"x": {"request_params": {"engine": {}}}}}, "give `choices`, or"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_loads(change, says):
    with pytest.raises((ConfigError, ValueError), match=says):
        Catalog(Config.model_validate(copy.deepcopy(ECHO) | change))


@pytest.mark.parametrize(
    ("bound", "inside", "outside"),
    [
        (Bound(minimum=0), [0, 1.5, {"x": 2}], [-1, None, "1", {"x": -1}, {}, [1], float("nan")]),
        (Bound(maximum=3), [3, -2], [3.1, True]),
        (Bound(choices=["a", 2]), ["a", 2, {"x": "a"}], ["b", 3, ["a"], {"x": "b"}]),
    ],
)
def test_bounds(bound, inside, outside):
    assert all(map(bound.admits, inside))
    assert not any(map(bound.admits, outside))
