"""The catalog: the configured ensembles by name, and each of their models alone, over one set of engines.

A request chooses among these and may change an option within the operator's bounds; it never loads a model.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from ensemblehub import configured, registry
from ensemblehub.api.certified import CertificateWatch
from ensemblehub.api.problems import Problem
from ensemblehub.api.protocol import EnsembleOptions
from ensemblehub.config import DEFAULT, Config
from ensemblehub.config.sections import Bound, StrategySpec
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.base import Aggregation, Selection, check_together
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.single import Single
from ensemblehub.ensemble_methods.roles import largest
from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Request
from ensemblehub.scorers.base import Scorer

_MAX_VARIANTS = 64  # ensembles with changed options that are kept


@dataclass(frozen=True)
class Served:
    """An ensemble or a single model that answers under a name.

    Attributes:
        alone: it is one model by itself.
        bounds: options of the aggregation that a request may set.
        members: models that a request may leave out or require; None for all.
        base: what it was before a request changed it.
        watch: whether its certificate still holds; None without one.
    """

    name: str
    ensemble: AsyncEnsemble
    selection: str
    aggregation: StrategySpec
    alone: bool = False
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    members: Sequence[str] | None = None
    base: AsyncEnsemble | None = None
    watch: CertificateWatch | None = None

    @property
    def reader(self) -> Engine:
        """The engine in whose tokens a raw prompt is read."""
        return self.ensemble.aggregation.reader(self.ensemble.engines)

    def answerers(self, capability: Capability) -> Sequence[Engine]:
        """Engines that may write the answer, each all of it; see `Aggregation.answerers`."""
        return self.ensemble.aggregation.answerers(self.ensemble.engines, capability)

    def estimated_alone(self, request: Request) -> tuple[float, float, float] | None:
        """Return the estimated FLOPs of the mentor alone: mean and 95 % interval, or None if unknown."""
        for ensemble in (self.ensemble, self.base):
            if ensemble is not None:
                estimate = ensemble.aggregation.estimated_alone(request, ensemble.engines)
                if estimate is not None:
                    return estimate
        return None


class Catalog:
    """All that one configuration serves.

    Raises:
        ConfigError: an ensemble cannot work; raised before any weights load.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.engines: list[Engine] = [configured.engine_of(config, spec) for spec in config.model_specs]
        names = [DEFAULT, *config.ensembles]
        scoring = any(configured.aggregation_of(config.named(name)).uses_scorers for name in names)
        specs = config.reward_specs if scoring else []
        self.scorers = [configured.scorer_of(config, spec, self.engines) for spec in specs]
        served = [self._ensemble(name) for name in names] + [self._alone(engine) for engine in self.engines]
        self.served = {entry.name: entry for entry in served}
        if len(self.served) < len(served):
            text = f"a model is called {DEFAULT!r}, which is the name of the ensemble; give it another"
            raise ConfigError(text)
        if config.server.on_drift == "mentor":
            for entry in self.ensembles:
                if entry.watch:
                    self._mentor_of(entry)
        self._variant = lru_cache(_MAX_VARIANTS)(self._build_variant)
        self._narrowed = lru_cache(_MAX_VARIANTS)(narrowed)

    @property
    def ensembles(self) -> list[Served]:
        """The configured ensembles, the default first."""
        return [served for served in self.served.values() if not served.alone]

    @property
    def watches(self) -> list[CertificateWatch]:
        """The certificates of the configured ensembles that have one."""
        return [served.watch for served in self.ensembles if served.watch]

    async def load(self) -> None:
        """Load the weights of every engine and scorer."""
        await asyncio.gather(*(part.load() for part in self._parts))

    async def close(self) -> None:
        """Free every engine and scorer."""
        await asyncio.gather(*(part.close() for part in self._parts))

    @property
    def _parts(self) -> list[Engine | Scorer]:
        return [*self.engines, *self.scorers]

    def find(self, name: str) -> Served:
        """The entry called `name`.

        Raises:
            Problem: 404, with the nearest name.
        """
        if name not in self.served:
            raise Problem(404, did_you_mean(name, self.served, "model"), "model_not_found", "model")
        return self.served[name]

    def chosen(self, name: str, options: EnsembleOptions | None, effort: str | None = None) -> Served:
        """The entry that a request asks for: `name`, or the method it names, with the parameters it changes.

        Args:
            effort: how far a Tandem goes; it has no effect elsewhere.

        Raises:
            Problem: it names or changes what it may not.
        """
        served, options = self.find(name), options or EnsembleOptions()
        if options.method is not None:
            served = self._method(served, options.method)
        params = {name: value for name, value in options.params.items() if value is not None}
        for name, value in params.items():
            self._check_param(served, name, value)
        level = _effort(served, effort) if effort else None
        if served.watch and not served.watch.holds and self.config.server.on_drift == "mentor":
            return self._mentor_of(served)
        found = served.ensemble
        if params or level is not None:
            level = None if "effort" in params else level
            found = self._variant(served.name, json.dumps(params, sort_keys=True), level)
        if options.exclude or options.require:
            found = self._with_members(served, found, options)
        return served if found is served.ensemble else replace(served, ensemble=found, base=served.ensemble)

    def _with_members(
        self, served: Served, ensemble: AsyncEnsemble, options: EnsembleOptions
    ) -> AsyncEnsemble:
        """The ensemble with the members that a request asks for.

        Raises:
            Problem: there are no such members, the operator does not allow it, or the rest cannot answer.
        """
        names = [engine.name for engine in ensemble.engines]
        for field_name in ("exclude", "require"):
            for name in getattr(options, field_name):
                at = f"ensemble.{field_name}"
                if name not in names:
                    raise Problem(400, did_you_mean(name, names, "member"), "invalid_value", at)
                if served.alone or (served.members is not None and name not in served.members):
                    allowed = ", ".join(served.members or ()) or "none"
                    text = f"a request may not {field_name} {name!r} here; it may: {allowed}"
                    raise Problem(400, text, "out_of_bounds", at)
        if both := sorted(set(options.exclude) & set(options.require)):
            raise Problem(400, f"{both[0]!r} cannot be left out and required", None, "ensemble.exclude")
        rest = tuple(name for name in names if name not in options.exclude)
        if not rest:
            raise Problem(400, "no member is left to answer", "unsupported", "ensemble.exclude")
        try:
            return self._narrowed(ensemble, rest, tuple(sorted(set(options.require))))
        except ConfigError as error:
            text = f"{served.name!r} cannot answer so: {error}"
            raise Problem(400, text, "unsupported", "ensemble.exclude") from error

    def pinned(self, served: Served, names: Sequence[str]) -> Served:
        """The entry with the named members alone, no selection among them; itself where they cannot answer."""
        rest = tuple(engine.name for engine in served.ensemble.engines if engine.name in names)
        try:
            ensemble = self._narrowed(served.ensemble, rest, rest) if rest else served.ensemble
        except ConfigError:  # others were dropped after a failure
            return served
        if ensemble is served.ensemble:
            return served
        return replace(served, ensemble=ensemble, base=served.base or served.ensemble)

    def _mentor_of(self, served: Served) -> Served:
        """The mentor alone in the place of a strategy: the first part, or the largest model of the file.

        Raises:
            ConfigError: Which one it is cannot be told, or nothing else is served.
        """
        engines, option = served.ensemble.engines, "server.on_drift: mentor"
        parts = list(served.ensemble.aggregation.parts(engines).values())
        mentor = self.served[(parts[0] if parts else largest(self.engines, None, option)).name]
        alone = isinstance(served.ensemble.aggregation, Single)
        if alone and {engine.name for engine in engines} == {mentor.name}:
            text = f"{served.name!r} is {mentor.name} already; add the mentor to `model_specs`"
            raise ConfigError(f"{option}: {text}")
        return replace(served, ensemble=mentor.ensemble, selection="all", aggregation=mentor.aggregation)

    def _method(self, served: Served, method: str) -> Served:
        if served.alone:
            text = f"{served.name!r} is one model; a method goes with an ensemble"
            raise Problem(400, text, None, "ensemble.method")
        by_method = {ensemble.aggregation.method: ensemble for ensemble in reversed(self.ensembles)}
        known = by_method | {ensemble.name: ensemble for ensemble in self.ensembles}
        if method not in known:
            text = f"not configured here: {did_you_mean(method, known, 'method')}"
            raise Problem(400, text, None, "ensemble.method")
        return known[method]

    def _check_param(self, served: Served, name: str, value: Any) -> None:
        """Refuse an option or a value that the operator does not let a request set."""
        bound, at = served.bounds.get(name), f"ensemble.params.{name}"
        if bound is None:
            allowed = ", ".join(served.bounds) or "none"
            text = f"a request may not set {name!r} of {served.name!r}; it may set: {allowed}"
            raise Problem(400, text, None, at)
        if not bound.admits(value):
            raise Problem(400, f"{name} must be {bound}, not {json.dumps(value)}", "out_of_bounds", at)

    def _build_variant(self, name: str, params: str, effort: str | None) -> AsyncEnsemble:
        """An ensemble with changed options of its aggregation (as JSON) and limited to an effort level."""
        served = self.served[name]
        spec = served.aggregation
        kind = type(served.ensemble.aggregation)
        options = {**spec.params, **json.loads(params)}
        aggregation: Aggregation = registry.build(kind, options, f"aggregation {spec.method!r}")
        return served.ensemble.with_aggregation(aggregation.with_effort(effort) if effort else aggregation)

    def _ensemble(self, name: str) -> Served:
        config = self.config.named(name)
        ensemble = AsyncEnsemble.from_config(config, self.engines, self.scorers)
        bounds = config.ensemble.request_params
        for option in bounds:
            if not hasattr(ensemble.aggregation, option):
                method = config.aggregation.method
                raise ConfigError(f"{name}: request_params: {method!r} has no option {option!r}")
        names = [engine.name for engine in ensemble.engines]
        for model in config.ensemble.request_members or ():
            if model not in names:
                raise ConfigError(f"{name}: request_members: {did_you_mean(model, names, 'member')}")
        return Served(
            name,
            ensemble,
            config.selection.method,
            config.aggregation,
            bounds=bounds,
            members=config.ensemble.request_members,
            watch=CertificateWatch.of(name, config, ensemble),
        )

    def _alone(self, engine: Engine) -> Served:
        ensemble = AsyncEnsemble([engine], All(), Single())
        ensemble.configure(self.config)
        return Served(engine.name, ensemble, "all", StrategySpec(method="single"), alone=True)


@dataclass(frozen=True)
class Requiring(Selection):
    """Another selection, in which required engines take the places of those that it prefers least.

    Attributes:
        names: the required engines.
    """

    selection: Selection
    names: tuple[str, ...]

    async def select(self, request: Request, engines: Sequence[Engine], ledger: UsageLedger) -> list[Engine]:
        required = [engine for engine in engines if engine.name in self.names]
        if len(required) == len(engines):
            return required
        chosen = await self.selection.select(request, engines, ledger)
        places = max(0, len(chosen) - len(required))
        others = [engine for engine in chosen if engine not in required][:places]
        kept = [engine for engine in chosen if engine in required or engine in others]
        return [*kept, *(engine for engine in required if engine not in kept)]

    def min_engines(self, engines: Sequence[Engine]) -> int:
        return max(self.selection.min_engines(engines), len(self.names))

    def check(self, engines: Sequence[Engine]) -> None:
        if len(self.names) < len(engines):
            self.selection.check(engines)


def narrowed(ensemble: AsyncEnsemble, names: Sequence[str], require: tuple[str, ...]) -> AsyncEnsemble:
    """The ensemble with the named members alone.

    Raises:
        ConfigError: they cannot answer together.
    """
    other = copy.copy(ensemble)
    other.engines = [engine for engine in ensemble.engines if engine.name in names]
    if require:
        other.selection = Requiring(ensemble.selection, require)
    check_together(other.engines, other.selection, other.aggregation)
    other.sampling = other.generation.sampling(other.context)
    return other


def _effort(served: Served, name: str) -> str | None:
    """The effort level of an ensemble for OpenAI's `reasoning_effort`; None where it has no levels.

    The level of that name, else by position: the first for `minimal` and `low`, the middle one for `medium`,
    the last for `high` and beyond.

    Raises:
        Problem: there is no such effort.
    """
    efforts = served.ensemble.aggregation.efforts
    levels, last = efforts[1:], len(efforts) - 2
    positions = {"minimal": 0, "low": 0, "medium": last // 2, "high": last, "xhigh": last, "max": last}
    known = {"none", *positions, *levels}
    if name not in known:
        raise Problem(400, did_you_mean(name, known, "effort"), "invalid_value", "reasoning_effort")
    if not efforts:
        return None
    return name if name in efforts else levels[positions[name]]
