"""The models that ship with the package, as `builtin:NAME`, and the configurations of known pairs."""

from __future__ import annotations

import os
from pathlib import Path

from ensemblehub.errors import ConfigError, did_you_mean

SHIPPED = ("mentor", "intern", "guest", "prm", "judge", "selection", "statistics.json")
_PREFIXES = ("builtin:", "studio:")  # the second is the older spelling
_WEIGHTS = Path(__file__).parent / "weights"
CONFIG = Path(__file__).parent / "builtin_tandem.yaml"
PAIRS = {file.stem: file for file in sorted((Path(__file__).parent / "pairs").glob("*.yaml"))}


def pair(name: str) -> Path:
    """The configuration of a pair of public models.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PAIRS:
        raise ConfigError(did_you_mean(name, PAIRS, "pair"))
    return PAIRS[name]


def is_builtin(path: str) -> bool:
    """Whether a path names something that ships with the package."""
    return path.startswith(_PREFIXES)


def resolve(path: str) -> str:
    """`path`, with `builtin:NAME` standing for what ships with the package and `~` for the home folder.

    Raises:
        ConfigError: nothing of that name ships.
    """
    prefix = next(filter(path.startswith, _PREFIXES), None)
    if prefix is None:
        return os.path.expanduser(path)
    name = path.removeprefix(prefix)
    if name not in SHIPPED:
        raise ConfigError(did_you_mean(name, SHIPPED, "built-in model"))
    return str(_WEIGHTS / name)
