"""Roles that go by the models' sizes."""

import pytest

from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.output_aggregation.fuse import Fuse
from ensemblehub.ensemble_methods.output_aggregation.progressive import Progressive
from ensemblehub.ensemble_methods.output_aggregation.switch import Switch
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import ConfigError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.lab.pipeline.selection import smallest


def sized(**sizes):
    return [EchoEngine(name, EchoOptions(parameters=size)) for name, size in sizes.items()]


UNKNOWN = sized(local=7_000_000_000, gpt=0)


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        (Tandem(), "tandem goes by .*'gpt' is unknown: name the engine with `mentor`, or set `parameters`"),
        (Fuse(), "fuse goes by .*'gpt' is unknown: name the engine with `fuser`"),
        (Switch(), "switch goes by .*'gpt' is unknown: set `parameters` of the model"),
        (Progressive(), "progressive goes by .*'gpt' is unknown: set `parameters`"),
    ],
)
def test_an_unknown_size_decides_no_role(strategy, says):
    with pytest.raises(ConfigError, match=says):
        strategy.check(UNKNOWN)


def test_a_named_role_needs_no_size():
    local, gpt = UNKNOWN
    assert Tandem(mentor="gpt").roles(UNKNOWN) == (gpt, local)
    assert Tandem(intern="local").roles(UNKNOWN) == (gpt, local)
    assert Fuse(fuser="gpt").parts(UNKNOWN) == {"fuser": gpt}
    three = [*UNKNOWN, *sized(small=1)]
    assert Tandem(mentor="gpt").roles(three) == (gpt, three[2])
    with pytest.raises(ConfigError, match="'gpt' is unknown: name the engine with `mentor`"):
        Tandem(intern="small").roles(three)
    with pytest.raises(ConfigError, match="both would be 'gpt'"):
        Tandem(mentor="gpt", intern="gpt").roles(UNKNOWN)


def test_known_sizes_decide():
    small, large, middle = engines = sized(small=1, large=3, middle=2)
    assert Tandem().roles(engines) == (large, small)
    assert Tandem(mentor="small").roles(engines) == (small, middle)
    assert Tandem(intern="large").roles(engines) == (middle, large)
    assert Switch().parts(engines) == Progressive().parts(engines) == {"large": large, "small": small}
    assert smallest(engines) is small
    with pytest.raises(ConfigError, match="learned goes by"):
        smallest(UNKNOWN)


def test_an_api_model_without_a_size_in_its_name_is_refused_before_anything_is_asked():
    specs = [
        {"name": "gpt-4o", "engine": "openai", "path": "openai/gpt-4o"},
        {"name": "qwen", "engine": "openai", "path": "qwen2.5-7b-instruct"},
    ]
    data = {"model_specs": specs, "ensemble": {"output_aggregation_method": "tandem"}}
    data["ensemble"]["output_aggregation_params"] = {"judge": "fixed:low"}
    with pytest.raises(ConfigError, match="the size of 'gpt-4o' is unknown: name the engine with `mentor`"):
        AsyncEnsemble.from_config(Config.model_validate(data))
    data["ensemble"]["output_aggregation_params"]["mentor"] = "gpt-4o"
    ensemble = AsyncEnsemble.from_config(Config.model_validate(data))
    assert [engine.name for engine in ensemble.aggregation.roles(ensemble.engines)] == ["gpt-4o", "qwen"]
