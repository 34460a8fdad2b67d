"""Where text comes from: one module or package per engine."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def exports(module: str, *names: str) -> Callable[[str], Any]:
    """A package's `__getattr__` that gives `names` of `module`, which is imported when first asked for."""

    def attribute(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module {module.rpartition('.')[0]!r} has no attribute {name!r}")

    return attribute
