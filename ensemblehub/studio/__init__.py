"""The built-in pair: its problems, its training recipe and its weights."""

from __future__ import annotations

import os
from pathlib import Path

from ensemblehub.errors import ConfigError, did_you_mean

SHIPPED = ("mentor", "intern", "guest", "prm", "judge", "selection", "statistics.json")
_PREFIX = "studio:"
_WEIGHTS = Path(__file__).parent / "weights"
CONFIG = Path(__file__).parent / "studio_tandem.yaml"


def resolve(path: str) -> str:
    """`path`, with `studio:NAME` standing for what ships with the package and `~` for the home folder.

    Raises:
        ConfigError: nothing of that name ships.
    """
    if not path.startswith(_PREFIX):
        return os.path.expanduser(path)
    name = path.removeprefix(_PREFIX)
    if name not in SHIPPED:
        raise ConfigError(did_you_mean(name, SHIPPED, "studio model"))
    return str(_WEIGHTS / name)
