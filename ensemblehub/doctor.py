"""What a configuration means on this machine: `ensemblehub doctor`.

Reads the models' configurations, but no weights; needs no API keys and asks no network, unless it is told to probe
the models behind APIs.  Knows how to explain; what can work together is checked by the strategies themselves.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemblehub import configured, registry
from ensemblehub.config import Config
from ensemblehub.config.sections import ModelSpec, RewardSpec
from ensemblehub.cost import UsageLedger, UsageMeter
from ensemblehub.ensemble_methods.base import Aggregation, Selection, check_together
from ensemblehub.errors import AbsentError, EnsembleHubError
from ensemblehub.generators.base import Engine, Finding, Footprint
from ensemblehub.schema import Capability, ModelInfo, Piece, Request
from ensemblehub.scorers.base import Scorer

T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """One model.

    Attributes:
        path: folder or hub id; the engine's kind where it has none.
        parameters: all of them; 0 where unknown.
        weights, kv_per_1000_tokens: bytes of memory; None where unknown or elsewhere.
        context: in tokens; 0 where unknown.
        can: its capabilities.
        here: whether it is on this machine; what is not has no parameters yet.
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
class Strategy:
    """A selection or an aggregation.

    Attributes:
        needs: capabilities it needs of every engine; `missing` has those an engine lacks, by engine.
        least: engines that take part at least (selection), or that it needs (aggregation).
    """

    method: str
    params: dict[str, Any]
    requires: tuple[str, ...]
    missing: Mapping[str, tuple[str, ...]]
    min_engines: int


@dataclass(frozen=True)
class Probed:
    """What a live model was seen to do.

    Attributes:
        options: YAML options to add to it, or to change.
        cost: of asking, in a sentence.
    """

    model: str
    findings: tuple[Finding, ...]
    options: Mapping[str, Any]
    cost: str


@dataclass
class Report:
    """All that was found.

    Attributes:
        parts: engine by the part it plays in the aggregation.
        scorers: name, kind, weight and model of each.
        ensembles: the other ensembles that a server offers: name, and how each is made up.
        generation: how text is generated.
        probes: what was seen of each model behind an API, where it was asked.
        extra: lines of `registry.DOCTOR_LINES`, by name.
        notes: what has no effect, or could surprise.
        unseen: models that are not on this machine, one line each.
        problems: why it cannot run; none if it can.
    """

    file: str
    members: list[Member] = field(default_factory=list)
    selection: Strategy | None = None
    aggregation: Strategy | None = None
    parts: dict[str, str] = field(default_factory=dict)
    scorers: list[dict[str, Any]] = field(default_factory=list)
    ensembles: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    probes: list[Probed] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems

    def record(self) -> dict[str, Any]:
        """For machines."""
        fields = asdict(self)
        return {"ok": self.ok, **fields, **fields.pop("extra")}

    def attempt(self, make: Callable[..., T], *arguments: Any) -> T | None:
        """What `make` returns, or None and a problem."""
        try:
            return make(*arguments)
        except AbsentError as error:
            self.unseen.append(f"not on this machine: {error}")
        except EnsembleHubError as error:
            self.problems.append(" ".join(str(error).split()))
        return None


class Unseen(Engine):
    """Stands for a model that is not on this machine; has its engine's capabilities and no card."""

    def __init__(self, name: str, capabilities: frozenset[Capability], path: str) -> None:
        self.name, self.capabilities, self.info, self.path = name, capabilities, ModelInfo(), path

    @property
    def model(self) -> str:
        return self.path

    def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        raise AbsentError(f"{self.path} is not on this machine")


class UnseenScorer(Scorer):
    """Stands for a scorer whose model is not on this machine."""

    options: ClassVar[type] = RewardSpec

    def __init__(self, name: str, options: object, engines: Sequence[Engine]) -> None:
        self.name, self.path = name, str(getattr(options, "extra", {}).get("path", name))

    @property
    def model(self) -> str:
        return self.path

    async def score(self, request: Request, texts: Sequence[str], meter: UsageMeter) -> list[float]:
        raise AbsentError(f"{self.path} is not on this machine")


def offline() -> None:
    """Let the Hugging Face libraries of this process answer from the cache alone; call it before they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def examine(path: Path, changes: Sequence[str] = (), probe: bool = False) -> Report:
    """Explain a configuration file; with `probe`, ask the models behind APIs what they can do, which costs tokens."""
    report = Report(str(path))
    config = report.attempt(Config.read, path, changes)
    if config is None:
        return report
    made = [(_engine(report, config, spec), spec) for spec in config.model_specs]
    report.members = [_member(engine, spec) for engine, spec in made if engine is not None]
    engines = {engine.name: engine for engine, _ in made if engine is not None}
    members = _members_of(config, engines)
    selection = report.attempt(configured.selection_of, config)
    aggregation = report.attempt(configured.aggregation_of, config)
    if members and selection:
        min_engines = min(selection.min_engines(members), len(members))
        report.selection = _strategy(
            selection, config.selection.method, config.selection.params, members, min_engines
        )
    if members and aggregation:
        aggregation = _judged(report, config, aggregation, members)
        chosen = config.aggregation
        report.aggregation = _strategy(
            aggregation, chosen.method, chosen.params, members, aggregation.min_engines
        )
    if selection and aggregation and len(members) == len(config.members):
        report.attempt(_check, config, members, selection, aggregation)
        told = report.ok and all(member.here for member in report.members)  # parts may go by size
        parts = report.attempt(aggregation.parts, members) if told else None
        report.parts = {part: engine.name for part, engine in (parts or {}).items()}
    _generation(report, config, members)
    report.notes += report.attempt(lambda: config.notes) or []
    report.notes += [f"{engine.name}: {note}" for engine in engines.values() for note in engine.notes]
    for name in config.ensembles:
        _also(report, config.named(name), name, engines)
    report.extra = {name: line() for name, line in registry.DOCTOR_LINES.items()}
    if probe:
        asyncio.run(_probe(report, list(engines.values())))
    return report


async def _probe(report: Report, engines: Sequence[Engine]) -> None:
    """Ask live models; what the options count on and was not seen is a problem."""
    for engine in engines:
        ledger = UsageLedger()
        findings = tuple(await engine.probe(ledger))
        if not findings:
            continue
        options = {name: value for one in findings for name, value in one.options.items()}
        report.probes.append(Probed(engine.describe(), findings, options, _spent(ledger)))
        wrong = [one for one in findings if one.declared and not one.seen]
        report.problems += [
            f"{engine.name}: {one.ability}: {' '.join(one.sentence.split())}" for one in wrong
        ]
    if not report.probes:
        report.notes.append("--probe asks models behind APIs, and there is none in this file")


def _spent(ledger: UsageLedger) -> str:
    cost = ledger.total
    money = f", ${cost.usd:.6f}" if cost.usd else ""
    some = [call.cost for call in ledger.calls if call.cost.prompt_tokens]
    guess = ", estimated in part" if any(one.estimated for one in some) else ""
    return f"{cost.calls} requests, {cost.prompt_tokens} tokens read and {cost.completion_tokens} written{money}{guess}"


def _members_of(config: Config, engines: Mapping[str, Engine]) -> list[Engine]:
    return [engines[spec.name] for spec in config.members if spec.name in engines]


def _also(report: Report, config: Config, name: str, engines: Mapping[str, Engine]) -> None:
    """Examine another ensemble of the file."""
    members = _members_of(config, engines)
    selection = report.attempt(configured.selection_of, config)
    aggregation = report.attempt(configured.aggregation_of, config)
    if selection and aggregation and len(members) == len(config.members):
        report.attempt(_check, config, members, selection, _judged(report, config, aggregation, members))
        report.ensembles[name] = (
            f"{config.aggregation.method} over {', '.join(engine.name for engine in members)}"
        )


def _engine(report: Report, config: Config, spec: ModelSpec) -> Engine | None:
    before = len(report.unseen)
    engine = report.attempt(configured.engine_of, config, spec)
    if len(report.unseen) == before:
        return engine
    kind = registry.lookup(registry.ENGINES, spec.engine, "engine")
    return Unseen(spec.name, kind.capabilities, str(spec.extra.get("path")))


def _member(engine: Engine, spec: ModelSpec) -> Member:
    memory, info = engine.footprint or Footprint(0, 0), engine.info
    return Member(
        engine.name,
        spec.engine,
        str(spec.extra.get("path", spec.engine)),
        info.parameters,
        memory.weights or None,
        1000 * memory.token or None,
        info.context,
        tuple(sorted(engine.capabilities)),
        not isinstance(engine, Unseen),
    )


def _strategy(
    strategy: Selection | Aggregation,
    method: str,
    params: dict[str, Any],
    engines: Sequence[Engine],
    min_engines: int,
) -> Strategy:
    missing = {engine.name: tuple(sorted(strategy.requires - engine.capabilities)) for engine in engines}
    lacking = {name: lacks for name, lacks in missing.items() if lacks}
    return Strategy(method, dict(params), tuple(sorted(strategy.requires)), lacking, min_engines)


def _judged(
    report: Report, config: Config, aggregation: Aggregation, engines: Sequence[Engine]
) -> Aggregation:
    """The aggregation with its scorers, where it asks any."""
    if not aggregation.uses_scorers:
        if config.reward_specs:
            report.notes.append(f"reward_specs: the aggregation {config.aggregation.method!r} asks no scorer")
        return aggregation
    scorers = []
    for spec in config.reward_specs:
        scorer = report.attempt(configured.scorer_of, config, spec, engines) or UnseenScorer(
            spec.name, spec, engines
        )
        scorers.append(scorer)
        report.scorers.append(
            {"name": spec.name, "engine": spec.engine, "weight": spec.weight, "model": scorer.model}
        )
    return aggregation.with_scorers(configured.pool_of(config, scorers))


def _check(config: Config, engines: Sequence[Engine], selection: Selection, aggregation: Aggregation) -> None:
    with config.within("ensemble"):
        check_together(engines, selection, aggregation)


def _generation(report: Report, config: Config, engines: Sequence[Engine]) -> None:
    contexts = {engine.name: engine.info.context for engine in engines if engine.info.context}
    sampling = config.ensemble.generation.sampling(min(contexts.values(), default=0))
    report.generation = asdict(replace(sampling, logit_bias={}))
    for name, context in contexts.items():
        if sampling.max_tokens >= context:
            report.notes.append(
                f"ensemble.generation.max_tokens: {sampling.max_tokens:,} are more than the context of {name!r}, "
                f"{context:,} tokens, leaves behind any prompt: answers are cut to what it leaves"
            )


def show(report: Report, console: Console) -> None:
    """Print a report."""
    console.print(f"[bold]{escape(report.file)}[/bold]")
    if report.members:
        console.print(_members(report.members))
    for what, strategy in (("selection", report.selection), ("aggregation", report.aggregation)):
        if strategy:
            _line(console, what, _told(what, strategy))
    for part, name in report.parts.items():
        _line(console, part, name)
    for scorer in report.scorers:
        _line(console, "scorer", "{name} ({engine}), weight {weight:g}: {model}".format(**scorer))
    for name, made in report.ensembles.items():
        _line(console, "ensemble", f"{name}: {made}")
    if report.generation:
        told = {
            key: value for key, value in report.generation.items() if value not in (None, (), {}, 0, False)
        }
        _line(console, "generation", ", ".join(f"{key} {value}" for key, value in told.items()))
    for one in report.probes:
        _probed(one, console)
    for name, text in report.extra.items():
        _line(console, name, text)
    for colour, word, lines in (
        ("yellow", "note", report.notes),
        ("yellow", "unseen", report.unseen),
        ("red", "problem", report.problems),
    ):
        for line in lines:
            _line(console, word, line, colour)
    seen = f", as far as can be seen without {len(report.unseen)} of its models" if report.unseen else ""
    verdict = f"[green]ok[/green]: this can run{seen}" if report.ok else "[red]not ok[/red]: this cannot run"
    console.print(f"{'verdict':<12}{verdict}")


def _probed(probed: Probed, console: Console) -> None:
    _line(console, "probed", probed.model)
    for one in probed.findings:
        word, colour = ("seen", "green") if one.seen else ("not seen", "red" if one.declared else "yellow")
        _line(console, word, f"{one.ability}: {' '.join(one.sentence.split())}", colour)
    if probed.options:
        _line(console, "write", json.dumps(probed.options).strip("{}").replace('"', ""))
    _line(console, "cost", probed.cost)


def _members(members: Sequence[Member]) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left")
    for column in ("model", "engine", "path"):
        table.add_column(column, overflow="fold")
    for column in ("parameters", "weights", "KV/1,000 tokens", "context"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("can")
    for one in members:
        table.add_row(
            one.name,
            one.engine,
            one.path,
            f"{one.parameters:,}" if one.parameters else "?",
            _size(one.weights),
            _size(one.kv_per_1000_tokens),
            f"{one.context:,}" if one.context else "?",
            " ".join(one.capabilities),
        )
    if len(members) > 1:
        weights, cache = (sum(values) for values in zip(*map(_memory, members), strict=True))
        parameters = f"{sum(one.parameters for one in members):,}"
        every = "all" if all(one.here for one in members) else "all seen"
        table.add_row(
            every, "", "", parameters, _size(weights or None), _size(cache or None), "", "", style="dim"
        )
    return table


def _memory(member: Member) -> tuple[int, int]:
    return member.weights or 0, member.kv_per_1000_tokens or 0


def _told(what: str, strategy: Strategy) -> str:
    requires = ", ".join(strategy.requires)
    lacks = "; ".join(f"{name} lacks {', '.join(missing)}" for name, missing in strategy.missing.items())
    parts = [f"needs {requires} of every model ({lacks or 'all there'})"] if requires else []
    if what == "selection":
        parts.append(f"keeps at least {strategy.min_engines}")
    elif strategy.min_engines > 1:
        parts.append(f"needs at least {strategy.min_engines} models")
    return ": ".join([strategy.method, "; ".join(parts)] if parts else [strategy.method])


def _line(console: Console, word: str, text: str, colour: str = "") -> None:
    head = f"[{colour}]{word:<12}[/{colour}]" if colour else f"{word:<12}"
    console.print(f"{head}{escape(text)}", soft_wrap=True)


def _size(count: int | None) -> str:
    """Bytes in a unit that fits; `-` for None."""
    if count is None:
        return "-"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.{min(power, 1)}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
