"""Running a contract's checks on a class: `ensemblehub validate package.module:Class`."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensemblehub import builtin, registry
from ensemblehub.config import Config
from ensemblehub.configured import engine_of
from ensemblehub.ensemble_methods.base import Aggregation, EnsembleMethod, Selection
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.lab.contracts import engine_checks, strategy_checks, task_checks
from ensemblehub.lab.contracts.checks import CheckResult, run_all
from ensemblehub.lab.tasks.base import Task

ANSWERS = ("There are 8 bowls, so 8 + 3 = 11 mugs.", "8 + 3 = 11, so there are 11 mugs.", "11")


def validate(target: str, options: Mapping[str, Any] | None = None) -> list[CheckResult]:
    """Run the checks of the contract that a class implements.

    Args:
        target: `package.module:Class`, found from the current folder too.
        options: its YAML options.

    Raises:
        ConfigError: it cannot be loaded, its options are wrong, or it implements no contract.
    """
    if ":" not in target:
        raise ConfigError(f"{target!r} is not of the form package.module:Class")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    cls = registry.lookup({}, target, "class")
    given = dict(options or {})
    if isinstance(cls, type) and not inspect.isabstract(cls):
        if issubclass(cls, Engine):
            return asyncio.run(_engine(target, given))
        if issubclass(cls, (Selection, Aggregation)):
            return asyncio.run(_strategy(cls, given))
        if issubclass(cls, Task):
            return asyncio.run(run_all(task_checks.CHECKS, task_checks.TaskSubject(cls(**given))))
    missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
    reason = f"does not define {missing}" if missing else "is no engine, selection, aggregation or task"
    raise ConfigError(f"{target} {reason}")


async def _engine(target: str, given: dict[str, Any]) -> list[CheckResult]:
    spec = {"name": "under_test", "engine": target, **given}
    config = Config.from_dict({"model_specs": [spec]})
    engine, fresh = (engine_of(config, config.model_specs[0]) for _ in range(2))
    await engine.load()
    try:
        return await run_all(engine_checks.CHECKS, engine_checks.EngineSubject(engine, fresh=fresh))
    finally:
        await engine.close()


async def _strategy(cls: type[EnsembleMethod], given: dict[str, Any]) -> list[CheckResult]:
    checks = strategy_checks.SELECTION if issubclass(cls, Selection) else strategy_checks.AGGREGATION
    strategy: EnsembleMethod = registry.build(cls, given, cls.__name__)
    engines = engines_for(strategy)
    try:
        return await run_all(checks, strategy_checks.StrategySubject(strategy, engines))
    finally:
        for engine in engines:
            await engine.close()


def engines_for(strategy: EnsembleMethod) -> list[Engine]:
    """Engines that have what a strategy requires: scripted ones, or the built-in pair."""
    if not strategy.requires <= EchoEngine.capabilities:
        config = Config.read(builtin.CONFIG)
        return [engine_of(config, spec) for spec in config.model_specs]
    needed = strategy.min_engines if isinstance(strategy, Aggregation) else 1
    scripts = [ANSWERS[index % len(ANSWERS)] for index in range(max(needed, len(ANSWERS)))]
    options = (EchoOptions({"": script}, context=2048) for script in scripts)
    return [EchoEngine(f"model_{index}", option) for index, option in enumerate(options)]
