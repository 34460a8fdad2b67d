"""Which architectures the hf engine runs with the same results as transformers.

`python -m benchmarks.architectures` writes the table: it compares the engine with `model.generate` on a tiny
random model of each architecture.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ensemblehub.errors import ConfigError

TABLE = Path(__file__).with_name("architectures.json")
SAME = "same"  # tokens and logprobs are those of `generate`
KERNELS = ("sdpa", "eager")


@dataclass(frozen=True)
class Support:
    """How an architecture is supported.

    Attributes:
        kernel: implementation of attention.
        note: a remark for the user; empty where all is as asked.
        known: whether the architecture is in the table; otherwise it is compared once loaded.
    """

    kernel: str
    note: str = ""
    known: bool = True


def support_of(config: Any, wanted: str) -> Support:
    """Return how a configuration is supported: with the `wanted` kernel if its architecture allows it.

    Raises:
        ConfigError: the engine does not run the architecture as transformers does.
    """
    kind, entry = config.model_type, entry_of(config)
    wanted = wanted if wanted in KERNELS else KERNELS[0]
    if entry is None:
        note = f"architecture {kind!r} was never compared with transformers; it is when the model is loaded"
        return Support(wanted, note, known=False)
    if entry.get(wanted) == SAME:
        return Support(wanted)
    other = next((kernel for kernel in KERNELS if entry.get(kernel) == SAME), None)
    if other is None:
        reason = "; ".join(dict.fromkeys(entry[kernel] for kernel in KERNELS))
        raise ConfigError(
            f"the hf engine does not run the architecture {kind!r}{_told(entry['when'])}: {reason}"
        )
    return Support(other, f"{kind} runs with attn_implementation: {other} ({wanted}: {entry[wanted]})")


def entry_of(config: Any) -> dict[str, Any] | None:
    """The most specific entry of the table for a configuration.

    None without one, and for code that comes with a model, whatever architecture it names.
    """
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return None
    text = config.get_text_config()
    lines = [
        line
        for line in _lines().get(config.model_type, [])
        if all(getattr(text, name, None) == value for name, value in line["when"].items())
    ]
    return max(lines, key=lambda line: len(line["when"]), default=None)


@cache
def _lines() -> dict[str, list[dict[str, Any]]]:
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in json.loads(TABLE.read_text(encoding="utf-8"))["architectures"]:
        if "untried" not in line:
            lines.setdefault(line["kind"], []).append(line)
    return lines


def _told(when: dict[str, Any]) -> str:
    return f" with {', '.join(f'{name}: {value}' for name, value in when.items())}" if when else ""
