"""A YAML file that knows its lines.  Knows nothing of what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ensemblehub.errors import ConfigError

LARGEST = 2**20  # bytes; a configuration is written by hand
_BAD_VALUES = (ValueError, LookupError, AttributeError)  # PyYAML's own: `2024-99-99`, `!!int ""`, `!!timestamp x`


@dataclass(frozen=True)
class YamlFile:
    """A mapping read from a file.

    Attributes:
        node: the same as YAML sees it, with the line of every part.
    """

    path: Path
    data: dict[str, Any]
    node: yaml.Node

    @classmethod
    def read(cls, path: Path) -> YamlFile:
        """Read a file.

        Raises:
            ConfigError: one line with file and line: it cannot be read, is not YAML or not a mapping, says a key
                twice, or is too large for a configuration.
        """
        try:
            source = _source(path)
            loader = yaml.SafeLoader(source)
            node = loader.get_single_node()
            if isinstance(node, yaml.MappingNode):
                _refuse_duplicates(node)
            data = loader.construct_document(node) if node else None
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


def _source(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ConfigError(f"{path}: not a configuration: it is larger than {LARGEST:,} bytes")
    return content.decode("utf-8-sig")


def _refuse_duplicates(root: yaml.Node) -> None:
    """Refuse a key that is said twice, of which YAML would take the last in silence."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            first: dict[tuple[str, str], yaml.Node] = {}
            for key, value in node.value:
                waiting += [key, value]
                if isinstance(key, yaml.ScalarNode) and first.setdefault((key.tag, key.value), key) is not key:
                    line = first[key.tag, key.value].start_mark.line + 1
                    problem = f"key {key.value!r} is said twice, first on line {line}"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
