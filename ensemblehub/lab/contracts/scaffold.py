"""`ensemblehub init`: a working engine, strategy or task, its test and its configuration."""

from __future__ import annotations

import keyword
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from string import Template

from ensemblehub.artifacts import write_atomically
from ensemblehub.errors import ConfigError

KINDS = ("strategy", "engine", "task")
_PAIR = """\
model_specs:
  - {name: mentor, path: "builtin:mentor"}
  - {name: intern, path: "builtin:intern"}
"""
_YAML = {
    "strategy": f"""\
# ensemblehub ask -c $name.yaml 'A question'
{_PAIR}
ensemble:
  output_aggregation_method: $name:$cls
  output_aggregation_params: {{samples: 1}}
  generation: {{max_tokens: 256}}
""",
    "engine": """\
# ensemblehub ask -c $name.yaml 'A question'
model_specs:
  - {name: mine, engine: "$name:$cls", context: 2048}

ensemble:
  output_aggregation_method: single
  generation: {max_tokens: 256}
""",
    "task": f"""\
# ensemblehub bench $name.yaml --task $name:$cls
{_PAIR}
ensemble:
  output_aggregation_method: single
  generation: {{max_tokens: 256}}
""",
}
_TEST = '''"""`$cls` keeps its contract: the checks of `ensemblehub validate $name:$cls`."""

from ensemblehub.lab.contracts.validation import validate


def test_it_keeps_its_contract():
    assert [outcome.problem for outcome in validate("$name:$cls") if not outcome.passed] == []
'''


def class_name(name: str) -> str:
    """The class in the file `name`.py: `my_longest` -> `MyLongest`."""
    return "".join(part.capitalize() for part in name.split("_"))


def scaffold(kind: str, name: str, folder: Path) -> list[Path]:
    """Write NAME.py, test_NAME.py and NAME.yaml into a folder; returns their paths.

    Raises:
        ConfigError: the name is no module name, that of an installed module, or one of the files exists.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise ConfigError(f"{name!r} is no module name: small letters, digits and underscores")
    cls = class_name(name)
    source = resources.files("ensemblehub.lab.contracts.templates").joinpath(f"{kind}.py").read_text()
    texts = {
        f"{name}.py": source.replace(f"My{kind.capitalize()}", cls).replace('"mine"', f'"{name}"'),
        f"test_{name}.py": Template(_TEST).substitute(name=name, cls=cls),
        f"{name}.yaml": Template(_YAML[kind]).substitute(name=name, cls=cls),
    }
    paths = [folder / file for file in texts]
    if existing := [str(path) for path in paths if path.exists()]:
        raise ConfigError(f"{existing[0]} exists already: choose another name")
    if find_spec(name):
        raise ConfigError(f"a module {name} exists already, which the file would hide: choose another name")
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomically(path, text.encode())
    return paths
