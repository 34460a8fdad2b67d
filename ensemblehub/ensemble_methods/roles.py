"""Which engine plays which role: by name, else by size; and whether it has the capabilities for it."""

from __future__ import annotations

from collections.abc import Sequence

from ensemblehub.errors import CapabilityError, ConfigError, did_you_mean
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability


def require(engine: Engine, requires: frozenset[Capability] | set[Capability], strategy: str) -> None:
    """Raise a `CapabilityError` unless `engine` has all capabilities that `strategy` requires of it."""
    missing: list[Capability] = sorted(requires - engine.capabilities)
    if missing:
        reasons = [reason for capability in missing if (reason := engine.why_not(capability))]
        lacks = f"{strategy} needs {', '.join(missing)} of engine {engine.name!r}, which it lacks"
        raise CapabilityError("; ".join([lacks, *reasons]))


def check_k(k: int, engines: Sequence[Engine], strategy: str) -> None:
    """Check that `k` of `engines` can be chosen.

    Raises:
        ConfigError: k is below 1 or above the number of engines.
    """
    if not 1 <= k <= len(engines):
        raise ConfigError(f"{strategy}: k must be from 1 to {len(engines)}, the number of models, not {k}")


def by_name(engines: Sequence[Engine], name: str, role: str) -> Engine:
    """The engine called `name`.

    Raises:
        ConfigError: there is none; names the role that asked for it.
    """
    for engine in engines:
        if engine.name == name:
            return engine
    raise ConfigError(f"{role}: {did_you_mean(name, [engine.name for engine in engines], 'engine')}")


def by_size(engines: Sequence[Engine], role: str) -> list[Engine]:
    """The engines from the largest to the smallest by parameters; equals keep the order of the configuration.

    Args:
        role: what depends on the order, for a message: `switch`, or `tandem: mentor` where an option of that
            name settles it.

    Raises:
        ConfigError: there are several engines, and the size of one is unknown.
    """
    unknown = [engine.name for engine in engines if not engine.info.parameters]
    if unknown and len(engines) > 1:
        strategy, _, option = role.partition(": ")
        name = f"name the engine with `{option}`, or " if option else ""
        raise ConfigError(
            f"{strategy} goes by the models' sizes, "
            f"and the size of {', '.join(map(repr, unknown))} is unknown: "
            f"{name}set `parameters` of the model in model_specs"
        )
    return sorted(engines, key=lambda engine: -engine.info.parameters)


def largest(engines: Sequence[Engine], name: str | None, role: str) -> Engine:
    """The engine called `name`; without a name the largest.

    Raises:
        ConfigError: see `by_name` and `by_size`.
    """
    return by_name(engines, name, role) if name else by_size(engines, role)[0]


def smallest(engines: Sequence[Engine], name: str | None, role: str) -> Engine:
    """The engine called `name`; without a name the smallest; errors as `largest`."""
    return by_name(engines, name, role) if name else by_size(engines, role)[-1]


def large_and_small(
    engines: Sequence[Engine], large: str | None, small: str | None, strategy: str
) -> tuple[Engine, Engine]:
    """The engines called `large` and `small`; without a name the largest and the smallest of the others.

    Raises:
        ConfigError: see `largest`; or one engine would be both.
    """
    named = by_name(engines, small, f"{strategy}: small") if small else None
    others = [engine for engine in engines if engine is not named] or engines
    first = largest(engines if large else others, large, f"{strategy}: large")
    others = [engine for engine in engines if engine is not first] or engines
    second = named or smallest(others, None, f"{strategy}: small")
    if first is second:
        raise ConfigError(f"{strategy} needs a large and a small engine, but both would be {first.name!r}")
    return first, second
