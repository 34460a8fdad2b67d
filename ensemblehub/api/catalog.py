"""What is served: the configured ensembles by name, and each of their models alone, over one set of engines.

A request chooses among these and may change an option within the operator's bounds; it can never load a model.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ensemblehub import configured, registry
from ensemblehub.api.problems import Problem
from ensemblehub.api.protocol import EnsembleOptions
from ensemblehub.config import DEFAULT, Config
from ensemblehub.config.sections import Bound, StrategySpec
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.single import Single
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Request
from ensemblehub.tandem.insights import LEVEL_0

_VARIANTS = 64  # changed ensembles that are kept


@dataclass(frozen=True)
class Served:
    """Something that answers under a name.

    Attributes:
        alone: it is one model by itself.
        bounds: options of the aggregation that a request may set.
        base: what it was before a request changed it.
    """

    name: str
    ensemble: AsyncEnsemble
    selection: str
    aggregation: StrategySpec
    alone: bool = False
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    base: AsyncEnsemble | None = None

    @property
    def reader(self) -> Engine:
        """The engine in whose tokens a raw prompt is read."""
        return self.ensemble.aggregation.reader(self.ensemble.engines)

    def estimated_alone(self, request: Request) -> tuple[float, float, float] | None:
        """Estimated FLOPs of the mentor alone: expected, and a 95 % interval; None where nothing tells."""
        made = [self.ensemble, self.base] if self.base else [self.ensemble]
        found = (one.aggregation.estimated_alone(request, one.engines) for one in made)
        return next((estimate for estimate in found if estimate is not None), None)


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
        self.served = {one.name: one for one in served}
        if len(self.served) < len(served):
            raise ConfigError(
                f"a model is called {DEFAULT!r}, which is the name of the ensemble; give it another"
            )
        self._varied: OrderedDict[tuple[str, str], AsyncEnsemble] = OrderedDict()

    @property
    def ensembles(self) -> list[Served]:
        """Those that are not one model alone, the default first."""
        return [one for one in self.served.values() if not one.alone]

    async def load(self) -> None:
        """Load the weights of every engine and scorer."""
        await asyncio.gather(
            *(engine.load() for engine in self.engines), *(one.load() for one in self.scorers)
        )

    async def close(self) -> None:
        """Free every engine and scorer."""
        await asyncio.gather(
            *(engine.close() for engine in self.engines), *(one.close() for one in self.scorers)
        )

    def find(self, name: str) -> Served:
        """What is served as `name`.

        Raises:
            Problem: 404, with the nearest name.
        """
        if name not in self.served:
            raise Problem(404, did_you_mean(name, self.served, "model"), "model_not_found", "model")
        return self.served[name]

    def chosen(self, name: str, options: EnsembleOptions | None, effort: str | None = None) -> Served:
        """What a request asks: `name`, or the method it names, with the parameters it changes.

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
            self._allowed(served, name, value)
        if effort:
            params = {**_effort(served, effort), **params}
        return self._changed(served, params) if params else served

    def _method(self, served: Served, method: str) -> Served:
        if served.alone:
            raise Problem(
                400, f"{served.name!r} is one model; a method goes with an ensemble", None, "ensemble.method"
            )
        by_method = {one.aggregation.method: one for one in reversed(self.ensembles)}
        known = by_method | {one.name: one for one in self.ensembles}
        if method not in known:
            raise Problem(
                400, f"not configured here: {did_you_mean(method, known, 'method')}", None, "ensemble.method"
            )
        return known[method]

    def _allowed(self, served: Served, name: str, value: Any) -> None:
        """Refuse an option that the operator does not let a request set, or not so."""
        bound, at = served.bounds.get(name), f"ensemble.params.{name}"
        if bound is None:
            allowed = ", ".join(served.bounds) or "none"
            raise Problem(
                400, f"a request may not set {name!r} of {served.name!r}; it may set: {allowed}", None, at
            )
        if not bound.admits(value):
            raise Problem(400, f"{name} must be {bound}, not {json.dumps(value)}", "out_of_bounds", at)

    def _changed(self, served: Served, params: Mapping[str, Any]) -> Served:
        key = (served.name, json.dumps(params, sort_keys=True))
        if key not in self._varied:
            kind = type(served.ensemble.aggregation)
            spec = StrategySpec(
                method=served.aggregation.method, params={**served.aggregation.params, **params}
            )
            aggregation = registry.build(kind, spec.params, f"aggregation {spec.method!r}")
            self._varied[key] = served.ensemble.with_aggregation(aggregation)
            while len(self._varied) > _VARIANTS:
                self._varied.popitem(last=False)
        self._varied.move_to_end(key)
        return replace(served, ensemble=self._varied[key], base=served.ensemble)

    def _ensemble(self, name: str) -> Served:
        config = self.config.named(name)
        ensemble = AsyncEnsemble.from_config(config, self.engines, self.scorers)
        bounds = config.ensemble.request_params
        for option in bounds:
            if not hasattr(ensemble.aggregation, option):
                raise ConfigError(
                    f"{name}: request_params: {config.aggregation.method!r} has no option {option!r}"
                )
        return Served(name, ensemble, config.selection.method, config.aggregation, bounds=bounds)

    def _alone(self, engine: Engine) -> Served:
        ensemble = AsyncEnsemble([engine], All(), Single())
        ensemble.configure(self.config)
        return Served(engine.name, ensemble, "all", StrategySpec(method="single"), alone=True)


def _effort(served: Served, effort: str) -> dict[str, str]:
    """The option of a Tandem for OpenAI's `reasoning_effort`; no option elsewhere.

    The level of that name, else by place: the first for `minimal` and `low`, the middle one for `medium`, the last for
    `high` and beyond.  It is never above the level that is configured.

    Raises:
        Problem: it is no effort.
    """
    aggregation = served.ensemble.aggregation
    levels = list(aggregation.index)[1:] if isinstance(aggregation, Tandem) else []
    last = len(levels) - 1
    places = {"minimal": 0, "low": 0, "medium": last // 2, "high": last, "xhigh": last, "max": last}
    if effort not in (LEVEL_0, *places, *levels):
        text = did_you_mean(effort, {LEVEL_0, *places, *levels}, "effort")
        raise Problem(400, text, "invalid_value", "reasoning_effort")
    if not isinstance(aggregation, Tandem):
        return {}
    wanted = effort if effort in aggregation.index else levels[places[effort]]
    return {"effort": min(wanted, aggregation.effort or wanted, key=lambda level: aggregation.index[level])}
