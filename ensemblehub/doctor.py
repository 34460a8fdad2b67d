"""Check a configuration on this machine without loading weights: `ensemblehub doctor`.

Reads the models' own configuration files.  Uses no API key and no network, unless models behind APIs are
probed.  `doctor_report` prints the result.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ensemblehub import configured, registry
from ensemblehub.config import Config
from ensemblehub.config.sections import ModelSpec, RewardSpec, StrategySpec
from ensemblehub.cost import UsageLedger, UsageMeter
from ensemblehub.ensemble_methods.base import Aggregation, Selection, check_together
from ensemblehub.errors import AbsentError, EnsembleHubError
from ensemblehub.generators.base import Engine, Finding, Footprint
from ensemblehub.generators.memory import DevicePlan, plans_of
from ensemblehub.schema import Capability, ModelInfo, Piece, Request
from ensemblehub.scorers.base import Scorer

T = TypeVar("T")


@dataclass(frozen=True)
class DoctorMember:
    """A model of the configuration.

    Attributes:
        path: Folder or hub id; the engine's name where it has none.
        parameters: Number of parameters; 0 if unknown.
        weights, kv_per_1000_tokens: Memory in bytes; None if unknown or on another machine.
        context: Context length in tokens; 0 if unknown.
        here: Whether the model is on this machine, or behind an API.
    """

    name: str
    engine: str
    path: str
    parameters: int
    weights: int | None
    kv_per_1000_tokens: int | None
    context: int
    capabilities: tuple[str, ...]
    here: bool


@dataclass(frozen=True)
class DoctorStrategy:
    """A selection or an aggregation.

    Attributes:
        requires: Capabilities that every engine must have.
        missing: Required capabilities that an engine lacks, by engine.
        min_engines: Minimum number of engines that a selection keeps, or that an aggregation requires.
    """

    method: str
    params: dict[str, Any]
    requires: tuple[str, ...]
    missing: Mapping[str, tuple[str, ...]]
    min_engines: int


@dataclass(frozen=True)
class DoctorProbe:
    """Result of probing one model behind an API.

    Attributes:
        options: YAML options to add or to change.
        cost: Cost of the requests, as text.
    """

    model: str
    findings: tuple[Finding, ...]
    options: Mapping[str, Any]
    cost: str


@dataclass
class Report:
    """Findings about a configuration.

    Attributes:
        parts: Engine names by role in the aggregation (`mentor`, `intern`).
        scorers: Name, engine, weight and model of each scorer.
        ensembles: Method and models of the file's other ensembles, by name.
        generation: Sampling parameters.
        probes: Results of probing, one for each model behind an API.
        memory: Memory plan of each device with models.
        extra: Lines of `registry.DOCTOR_LINES`, by name.
        notes: Warnings, such as keys that have no effect.
        unseen: Models that are not on this machine, one line each.
        problems: Errors that keep the configuration from running.
    """

    file: str
    members: list[DoctorMember] = field(default_factory=list)
    selection: DoctorStrategy | None = None
    aggregation: DoctorStrategy | None = None
    parts: dict[str, str] = field(default_factory=dict)
    scorers: list[dict[str, Any]] = field(default_factory=list)
    ensembles: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    probes: list[DoctorProbe] = field(default_factory=list)
    memory: list[DevicePlan] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the configuration can run."""
        return not self.problems

    def record(self) -> dict[str, Any]:
        """The report as a JSON record, with the entries of `extra` at top level."""
        fields = asdict(self)
        return {"ok": self.ok, **fields, **fields.pop("extra")}

    def attempt(self, make: Callable[..., T], *arguments: Any) -> T | None:
        """Return `make(*arguments)`; on an error record it as a problem, or as unseen, and return None."""
        try:
            return make(*arguments)
        except AbsentError as error:
            found, text = self.unseen, f"not on this machine: {error}"
        except EnsembleHubError as error:
            found, text = self.problems, " ".join(str(error).split())
        if text not in found:  # several ensembles have their scorers in common
            found.append(text)
        return None


class Unseen(Engine):
    """Placeholder for a model that is not on this machine, with the capabilities of its engine."""

    def __init__(self, name: str, capabilities: frozenset[Capability], path: str) -> None:
        self.name = name
        self.capabilities = capabilities
        self.info = ModelInfo()
        self.path = path

    @property
    def model(self) -> str:
        return self.path

    def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        raise AbsentError(f"{self.path} is not on this machine")


class UnseenScorer(Scorer):
    """Placeholder for a scorer whose model is not on this machine."""

    options: ClassVar[type] = RewardSpec

    def __init__(self, name: str, options: object, engines: Sequence[Engine]) -> None:
        self.name, self.path = name, str(getattr(options, "extra", {}).get("path", name))

    @property
    def model(self) -> str:
        return self.path

    async def score(self, request: Request, texts: Sequence[str], meter: UsageMeter) -> list[float]:
        raise AbsentError(f"{self.path} is not on this machine")


def offline() -> None:
    """Restrict the Hugging Face libraries to their cache; must be called before they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def examine(
    path: Path, changes: Sequence[str] = (), probe: bool = False, gpu_memory: float | None = None
) -> Report:
    """Check a configuration file.

    Args:
        changes: `key.key=value`, as in `Config.read`.
        probe: Send test requests, which cost tokens, to the models behind APIs.
        gpu_memory: Memory of the GPUs in GiB for the memory plan, instead of those that are here.
    """
    report = Report(str(path))
    config = report.attempt(Config.read, path, changes)
    if config is None:
        return report
    created = [(_engine(report, config, spec), spec) for spec in config.model_specs]
    report.members = [_member(engine, spec) for engine, spec in created if engine is not None]
    engines = {engine.name: engine for engine, _ in created if engine is not None}
    ensemble = _ensemble(report, config, engines)
    _describe(report, config, ensemble)
    _generation(report, config, ensemble.engines)
    report.notes += report.attempt(lambda: config.notes) or []
    report.notes += [f"{engine.name}: {note}" for engine in engines.values() for note in engine.notes]
    for name in config.ensembles:
        other = config.named(name)
        ensemble = _ensemble(report, other, engines)
        if ensemble.is_complete:
            names = ", ".join(engine.name for engine in ensemble.engines)
            report.ensembles[name] = f"{other.aggregation.method} over {names}"
    if config.reward_specs and report.aggregation and not report.scorers:
        report.notes.append(f"reward_specs: the aggregation {config.aggregation.method!r} asks no scorer")
    report.memory = plans_of(list(engines.values()), int(2**30 * (gpu_memory or 0)))
    report.extra = {name: line() for name, line in registry.DOCTOR_LINES.items()}
    if probe:
        asyncio.run(_probe(report, list(engines.values())))
    return report


def _engine(report: Report, config: Config, spec: ModelSpec) -> Engine | None:
    before = len(report.unseen)
    engine = report.attempt(configured.engine_of, config, spec)
    if len(report.unseen) == before:
        return engine
    capabilities = registry.lookup(registry.ENGINES, spec.engine, "engine").capabilities
    return Unseen(spec.name, capabilities, str(spec.extra.get("path")))


def _member(engine: Engine, spec: ModelSpec) -> DoctorMember:
    memory = engine.footprint or Footprint(0, 0)
    return DoctorMember(
        name=engine.name,
        engine=spec.engine,
        path=str(spec.extra.get("path", spec.engine)),
        parameters=engine.info.parameters,
        weights=memory.weights or None,
        kv_per_1000_tokens=1000 * memory.token or None,
        context=engine.info.context,
        capabilities=tuple(sorted(engine.capabilities)),
        here=not isinstance(engine, Unseen),
    )


@dataclass(frozen=True)
class _Ensemble:
    """What could be created of an ensemble; `is_complete` if everything could."""

    engines: list[Engine]
    selection: Selection | None
    aggregation: Aggregation | None
    is_complete: bool


def _ensemble(report: Report, config: Config, engines: Mapping[str, Engine]) -> _Ensemble:
    """Create an ensemble of the file and check that its parts work together."""
    members = [engines[spec.name] for spec in config.members if spec.name in engines]
    selection = report.attempt(configured.selection_of, config)
    aggregation = report.attempt(configured.aggregation_of, config)
    if members and aggregation:
        aggregation = _with_scorers(report, config, aggregation, members)
    is_complete = bool(selection and aggregation and len(members) == len(config.members))
    if is_complete:
        report.attempt(_check, config, members, selection, aggregation)
    return _Ensemble(members, selection, aggregation, is_complete)


def _with_scorers(
    report: Report, config: Config, aggregation: Aggregation, engines: Sequence[Engine]
) -> Aggregation:
    """The aggregation with the file's scorers, if it uses any."""
    if not aggregation.uses_scorers:
        return aggregation
    scorers = []
    report.scorers = []  # another ensemble's are the same
    for spec in config.reward_specs:
        scorer = report.attempt(configured.scorer_of, config, spec, engines)
        scorers.append(scorer or UnseenScorer(spec.name, spec, engines))
        fields = {"name": spec.name, "engine": spec.engine, "weight": spec.weight}
        report.scorers.append({**fields, "model": scorers[-1].model})
    return aggregation.with_scorers(configured.pool_of(config, scorers))


def _check(config: Config, engines: Sequence[Engine], selection: Selection, aggregation: Aggregation) -> None:
    with config.within("ensemble"):
        check_together(engines, selection, aggregation)


def _describe(report: Report, config: Config, ensemble: _Ensemble) -> None:
    """Add the strategies and the roles of the engines to the report."""
    engines, aggregation = ensemble.engines, ensemble.aggregation
    if engines and (selection := ensemble.selection):
        kept = min(selection.min_engines(engines), len(engines))
        report.selection = _strategy(selection, config.selection, engines, kept)
    if engines and aggregation:
        report.aggregation = _strategy(aggregation, config.aggregation, engines, aggregation.min_engines)
    can_run = ensemble.is_complete and report.ok
    if can_run and aggregation and all(member.here for member in report.members):  # roles may depend on sizes
        parts = report.attempt(aggregation.parts, engines) or {}
        report.parts = {part: engine.name for part, engine in parts.items()}


def _strategy(
    strategy: Selection | Aggregation, spec: StrategySpec, engines: Sequence[Engine], min_engines: int
) -> DoctorStrategy:
    missing = {engine.name: tuple(sorted(strategy.requires - engine.capabilities)) for engine in engines}
    lacking = {name: lacks for name, lacks in missing.items() if lacks}
    return DoctorStrategy(spec.method, spec.params, tuple(sorted(strategy.requires)), lacking, min_engines)


def _generation(report: Report, config: Config, engines: Sequence[Engine]) -> None:
    """Add the sampling parameters, with a note for each context that `max_tokens` exceeds."""
    contexts = {engine.name: engine.info.context for engine in engines if engine.info.context}
    sampling = config.ensemble.generation.sampling(min(contexts.values(), default=0))
    report.generation = asdict(replace(sampling, logit_bias={}))
    for name, context in contexts.items():
        if sampling.max_tokens >= context:
            limit = f"{sampling.max_tokens:,} are more than the context of {name!r}, {context:,} tokens,"
            text = f"{limit} leaves behind any prompt: answers are cut to what it leaves"
            report.notes.append(f"ensemble.generation.max_tokens: {text}")


async def _probe(report: Report, engines: Sequence[Engine]) -> None:
    """Probe live models; an ability that the options declare and that was not seen is a problem."""
    for engine in engines:
        ledger = UsageLedger()
        findings = tuple(await engine.probe(ledger))
        if not findings:
            continue
        options = {name: value for finding in findings for name, value in finding.options.items()}
        report.probes.append(DoctorProbe(engine.describe(), findings, options, _cost_text(ledger)))
        report.problems += [
            f"{engine.name}: {finding.ability}: {' '.join(finding.sentence.split())}"
            for finding in findings
            if finding.declared and not finding.seen
        ]
    if not report.probes:
        report.notes.append("--probe asks models behind APIs, and there is none in this file")


def _cost_text(ledger: UsageLedger) -> str:
    cost = ledger.total
    tokens = f"{cost.prompt_tokens} tokens read and {cost.completion_tokens} written"
    dollars = f", ${cost.usd:.6f}" if cost.usd else ""
    estimated = any(call.cost.estimated for call in ledger.calls if call.cost.prompt_tokens)
    return f"{cost.calls} requests, {tokens}{dollars}{', estimated in part' if estimated else ''}"
