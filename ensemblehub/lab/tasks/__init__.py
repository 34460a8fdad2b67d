"""Benchmarks, one per file: where the questions come from, how they are asked and split, how answers are
graded.

Adding a benchmark is a file and a line in `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ensemblehub import registry
from ensemblehub.errors import ConfigError
from ensemblehub.lab.tasks.base import PLAIN, Task

TASKS = {
    "builtin_math": "ensemblehub.lab.tasks.builtin_math:BuiltinMath",
    "builtin_code": "ensemblehub.lab.tasks.builtin_code:BuiltinCode",
    "math": "ensemblehub.lab.tasks.hendrycks_math:MATH",
    "math500": "ensemblehub.lab.tasks.math500:MATH500",
    "gsm8k": "ensemblehub.lab.tasks.gsm8k:GSM8K",
    "aime24": "ensemblehub.lab.tasks.aime24:AIME24",
    "amc23": "ensemblehub.lab.tasks.amc23:AMC23",
    "humaneval": "ensemblehub.lab.tasks.humaneval:HumanEval",
    "humaneval_plus": "ensemblehub.lab.tasks.humaneval_plus:HumanEvalPlus",
    "mbpp": "ensemblehub.lab.tasks.mbpp:MBPP",
    "mbpp_plus": "ensemblehub.lab.tasks.mbpp_plus:MBPPPlus",
}
REFERENCE_NAMES = {"hendrycks_math": "math"}  # the reference toolkit's


def task_class(name: str) -> Callable[..., Task]:
    """The class of the benchmark named in a configuration, also by an older name or as
    `package.module:Class`.

    Raises:
        ConfigError: unknown name, with the nearest known one.
    """
    from ensemblehub.config.old_keys import current  # the sandbox is also imported without yaml and pydantic

    cls: Callable[..., Task] = registry.lookup(
        TASKS, REFERENCE_NAMES.get(name, current("task", name)), "task"
    )
    return cls


def task_named(name: str, data: Path | None = None, prompt: str | None = None) -> Task:
    """The benchmark named in a configuration.

    Args:
        data: file or folder that it reads; None: `data/`, else the hub.
        prompt: name of one of its prompt profiles (`Task.prompts`); None: `plain`.

    Raises:
        ConfigError: unknown name or profile, or a benchmark that reads no files.
    """
    cls = task_class(name)
    options = getattr(cls, "__dataclass_fields__", {})
    if data is not None:
        if "data" not in options:
            raise ConfigError(f"task {name!r} makes its own questions: it reads no data")
        if not data.exists() and "{split}" not in data.name:
            raise ConfigError(f"{data}: no such file or folder")
    if "prompt" not in options and prompt not in (None, PLAIN):
        raise ConfigError(f"task {name!r} has one prompt, {PLAIN!r}")
    given = {"data": data, "prompt": prompt}
    return cls(**{key: value for key, value in given.items() if value is not None and key in options})
