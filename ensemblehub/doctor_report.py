"""Print the report of `ensemblehub doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemblehub.doctor import DoctorMember, DoctorProbe, DoctorStrategy, Report
from ensemblehub.generators.memory import DevicePlan

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show(report: Report, console: Console) -> None:
    """Print a report."""
    console.print(f"[bold]{escape(report.file)}[/bold]")
    if report.members:
        console.print(_table(report.members))
    for what, strategy in (("selection", report.selection), ("aggregation", report.aggregation)):
        if strategy:
            _line(console, what, _strategy_text(what, strategy))
    for part, name in report.parts.items():
        _line(console, part, name)
    for plan in report.memory:
        _show_plan(plan, console)
    for scorer in report.scorers:
        _line(console, "scorer", "{name} ({engine}), weight {weight:g}: {model}".format(**scorer))
    for name, text in report.ensembles.items():
        _line(console, "ensemble", f"{name}: {text}")
    if report.generation:
        _line(console, "generation", _generation_text(report))
    for probe in report.probes:
        _show_probe(probe, console)
    for name, text in report.extra.items():
        _line(console, name, text)
    _show_verdict(report, console)


def _show_verdict(report: Report, console: Console) -> None:
    for note in report.notes:
        _line(console, "note", note, "yellow")
    for model in report.unseen:
        _line(console, "unseen", model, "yellow")
    for problem in report.problems:
        _line(console, "problem", problem, "red")
    seen = f", as far as can be seen without {len(report.unseen)} of its models" if report.unseen else ""
    verdict = f"[green]ok[/green]: this can run{seen}" if report.ok else "[red]not ok[/red]: this cannot run"
    console.print(f"{'verdict':<12}{verdict}")


def _show_probe(probe: DoctorProbe, console: Console) -> None:
    _line(console, "probed", probe.model)
    for finding in probe.findings:
        text = f"{finding.ability}: {' '.join(finding.sentence.split())}"
        if finding.seen:
            _line(console, "seen", text, "green")
        else:
            _line(console, "not seen", text, "red" if finding.declared else "yellow")
    if probe.options:
        _line(console, "write", json.dumps(probe.options).strip("{}").replace('"', ""))
    _line(console, "cost", probe.cost)


def _table(members: Sequence[DoctorMember]) -> Table:
    """The models, one per row, with their sums."""
    table = Table(box=None, pad_edge=False, title_justify="left")
    for column in ("model", "engine", "path"):
        table.add_column(column, overflow="fold")
    for column in ("parameters", "weights", "KV/1,000 tokens", "context"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("capabilities")
    for member in members:
        table.add_row(
            member.name,
            member.engine,
            member.path,
            f"{member.parameters:,}" if member.parameters else "?",
            _size(member.weights),
            _size(member.kv_per_1000_tokens),
            f"{member.context:,}" if member.context else "?",
            " ".join(member.capabilities),
        )
    if len(members) > 1:
        table.add_row(
            "all" if all(member.here for member in members) else "all seen",
            "",
            "",
            f"{sum(member.parameters for member in members):,}",
            _size(sum(member.weights or 0 for member in members) or None),
            _size(sum(member.kv_per_1000_tokens or 0 for member in members) or None),
            style="dim",
        )
    return table


def _show_plan(plan: DevicePlan, console: Console) -> None:
    """What the models take on a device, whether they fit, and what to set."""
    size = f"{_size(plan.planned)} planned of {_size(plan.capacity)}" if plan.capacity else "not here"
    console.print(f"{'memory':<12}{plan.device}, {size}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", width=10)
    table.add_column("model", overflow="fold")
    for column in ("weights", "KV/row", "rows", "activations", "other", "sum"):
        table.add_column(column, justify="right", no_wrap=True)
    for need in plan.needs:
        other = need.fixed - need.weights - need.activations
        rows = "1 or more" if need.rows is None else f"{need.rows:,} at most"
        sizes = [_size(count) for count in (need.weights, need.row, need.activations, other, need.total)]
        table.add_row("", need.name, *sizes[:2], rows, *sizes[2:])
    console.print(table)
    ok = not plan.capacity or plan.rows >= 1
    _line(console, "", plan.verdict, "" if ok else "yellow")
    for name, options in plan.settings.items():
        text = ", ".join(f"{option}: {json.dumps(value)}" for option, value in options.items())
        _line(console, "set", f"{name}: {text}", "" if ok else "yellow")


def _strategy_text(what: str, strategy: DoctorStrategy) -> str:
    """Method, required capabilities and number of engines."""
    parts = []
    if strategy.requires:
        lacks = "; ".join(f"{name} lacks {', '.join(missing)}" for name, missing in strategy.missing.items())
        parts.append(f"needs {', '.join(strategy.requires)} of every model ({lacks or 'all there'})")
    if what == "selection":
        parts.append(f"keeps at least {strategy.min_engines}")
    elif strategy.min_engines > 1:
        parts.append(f"needs at least {strategy.min_engines} models")
    return f"{strategy.method}: {'; '.join(parts)}" if parts else strategy.method


def _generation_text(report: Report) -> str:
    """The sampling parameters that are set."""
    return ", ".join(f"{key} {value}" for key, value in report.generation.items() if value)


def _line(console: Console, word: str, text: str, colour: str = "") -> None:
    head = f"[{colour}]{word:<12}[/{colour}]" if colour else f"{word:<12}"
    console.print(f"{head}{escape(text)}", soft_wrap=True)


def _size(count: int | None) -> str:
    """Bytes in a unit that fits; `-` for None."""
    if count is None:
        return "-"
    power = min((count.bit_length() - 1) // 10, len(UNITS) - 1)
    return f"{count / 1024**power:.{min(power, 1)}f} {UNITS[power]}"
