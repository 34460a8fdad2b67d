"""The strategy that docs/toolkit.md shows works as it is."""

import asyncio
import re
import sys
import types
from pathlib import Path

import pytest

from ensemblehub import registry
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.errors import ConfigError
from ensemblehub.generators.echo import EchoEngine, EchoOptions

PAGE = Path(__file__).parents[2] / "docs/toolkit.md"


@pytest.fixture
def strategy(monkeypatch):
    module = types.ModuleType("my_module")
    monkeypatch.setitem(sys.modules, "my_module", module)
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1], module.__dict__)
    return registry.lookup(registry.AGGREGATIONS, "my_module:Longest", "aggregation")


def engines(*replies):
    return [EchoEngine(f"m{at}", EchoOptions({"": reply})) for at, reply in enumerate(replies)]


def test_the_longest_answer_is_given_and_the_others_are_discarded(strategy):
    result = asyncio.run(AsyncEnsemble(engines("a b c", "a"), All(), strategy()).generate("?"))
    assert result.text == "a b c"
    assert result.cost.discarded_tokens == 1


def test_its_options_and_engines_are_checked(strategy):
    with pytest.raises(ConfigError, match=r"my_module: option 'samples'.*got 0"):
        AsyncEnsemble(engines("a", "b"), All(), strategy(samples=0))
    with pytest.raises(ConfigError, match="needs at least 2 engines"):
        AsyncEnsemble(engines("a"), All(), strategy())
