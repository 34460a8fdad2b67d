"""Read a YAML file and keep the line of every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ensemblehub.errors import ConfigError
from ensemblehub.surrogates import has_halves, joined

LARGEST = 2**20  # bytes; a configuration is written by hand
MOST_VALUES = 100_000  # of a file, with its aliases written out
_BAD_VALUES = (
    ValueError,
    LookupError,
    AttributeError,
)  # PyYAML's own: `2024-99-99`, `!!int ""`, `!!timestamp x`


@dataclass(frozen=True)
class YamlFile:
    """A mapping read from a file.

    Attributes:
        node: The YAML node of `data`, with the line of every part.
    """

    path: Path
    data: dict[str, Any]
    node: yaml.Node

    @classmethod
    def read(cls, path: Path) -> YamlFile:
        """Read a file.

        Raises:
            ConfigError: The file cannot be read, is no YAML mapping, has a key twice, or is too large.
        """
        try:
            node, data = parsed(_source(path))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
        except (yaml.YAMLError, *_BAD_VALUES) as error:
            mark = getattr(error, "problem_mark", None)
            at = f":{mark.line + 1}" if mark else ""
            reason = " ".join(str(getattr(error, "problem", None) or error).split())
            raise ConfigError(f"{path}{at}: not YAML: {reason}") from error
        except RecursionError as error:
            raise ConfigError(f"{path}: not a configuration: it is nested too deeply") from error
        if node is None or not isinstance(data, dict):
            raise ConfigError(f"{path}: empty, or not a mapping; it needs at least `model_specs:`")
        return cls(path, data, node)

    def at(self, *where: str | int) -> str:
        """`file:line` of the value at `where` (keys and list places), or of the part of it that is there."""
        line, node = 1, self.node
        for part in where:
            if isinstance(node, yaml.MappingNode):
                pairs: Mapping[Any, tuple[yaml.Node, yaml.Node]] = {
                    key.value: (key, value) for key, value in node.value
                }
                if str(part) not in pairs:
                    break
                key, node = pairs[str(part)]
                line = key.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
        return f"{self.path}:{line}"


def parsed(source: str) -> tuple[yaml.Node | None, Any]:
    """The node and the data of a YAML text; both are None if it is empty.

    Raises:
        yaml.YAMLError: The text is not YAML, has a key twice or an unpaired surrogate.
        _BAD_VALUES: PyYAML cannot convert a value.
    """
    loader = yaml.SafeLoader(source)
    node = loader.get_single_node()
    if node is None:
        return None, None
    _check(node)
    if _expanded(node, {}) > MOST_VALUES:
        problem = f"its aliases make more than {MOST_VALUES:,} values of it"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return node, loader.construct_document(node)


def _source(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ConfigError(f"{path}: not a configuration: it is larger than {LARGEST:,} bytes")
    return content.decode("utf-8-sig")


def _check(root: yaml.Node) -> None:
    """Join escaped surrogate pairs; refuse unpaired surrogates and duplicate keys."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _refuse_duplicates(node)
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.ScalarNode) and has_halves(node.value):
            node.value = joined(node.value)
            if has_halves(node.value):
                problem = "half a surrogate pair is no text"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values of a node with every alias written out; one that contains itself has too many."""
    if id(node) not in sizes:
        sizes[id(node)] = MOST_VALUES + 1  # until it is known: an alias to what holds it
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
        parts += node.value if isinstance(node, yaml.SequenceNode) else []
        sizes[id(node)] = 1 + sum(_expanded(part, sizes) for part in parts)
    return sizes[id(node)]


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    first: dict[tuple[str, str], yaml.Node] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and first.setdefault((key.tag, key.value), key) is not key:
            line = first[key.tag, key.value].start_mark.line + 1
            problem = f"key {key.value!r} is said twice, first on line {line}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
