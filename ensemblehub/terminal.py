"""A run shown in the terminal: who writes what, the judge at each checkpoint, usage and cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.schema import Chat, Choice, Cost, Event, Request, Result, Verdict
from ensemblehub.tandem.explanation import why

COLOURS = {"insight": "cyan", "answer": "green"}
UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def flops_text(flops: float) -> str:
    """FLOPs with three significant digits in the unit that fits: `1.48 TFLOPs`."""
    rounded = float(f"{flops:.3g}")
    for size, prefix in UNITS:
        if rounded >= size:
            number = rounded / size
            return f"{number:.{2 - (number >= 10) - (number >= 100)}f} {prefix}FLOPs"
    return f"{flops:.0f} FLOPs"


def cost_text(cost: Cost) -> str:
    """FLOPs, and dollars where there are any: `1.48 TFLOPs, $0.0100`."""
    return flops_text(cost.flops) + (f", ${cost.usd:.4f}" if cost.usd else "")


class Screen:
    """Prints events as they come."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._author = ""

    def show(self, event: Event) -> None:
        """Print one event."""
        if isinstance(event, Verdict):
            self._line(verdict_text(event), "green" if event.sufficient else "yellow", "judge")
        elif isinstance(event, Choice):
            self._line(choice_text(event), "cyan", "choice")
        else:
            author = f"{event.engine} · {event.purpose}"
            if author != self._author:
                self.console.print(Text(f"{self._separator}{author}", "bold"))
                self._author = author
            self.console.print(Text(event.text, COLOURS.get(event.purpose, "")), end="")

    @property
    def _separator(self) -> str:
        return "\n" if self._author else ""

    def _line(self, text: str, colour: str, author: str) -> None:
        self.console.print(Text(self._separator + text, colour))
        self._author = author


def choice_text(choice: Choice) -> str:
    """Return the chosen engine as text, with scores and reason if there are any."""
    scores = ", ".join(f"{name} {score:.3g}" for name, score in choice.scores)
    line = f"[{choice.about}] {', '.join(choice.chosen)}" + (f"  ({scores})" if scores else "")
    return f"{line}: {choice.reason}" if choice.reason else line


def verdict_text(verdict: Verdict) -> str:
    """A judge's probability as a bar, beside its threshold."""
    bar = "█" * round(20 * verdict.probability)
    comparison = f"{verdict.probability:.2f} against {verdict.threshold:.2f}"
    decision = "sufficient" if verdict.sufficient else "not yet"
    checkpoint = f"{verdict.level:<7}{verdict.mentor_tokens:>5} mentor tokens"
    return f"[judge] {checkpoint}  {bar:░<20} {comparison}: {decision}"


def usage_table(result: Result, estimate: tuple[float, float, float] | None) -> Table:
    """Usage by engine and purpose.

    Args:
        estimate: For Tandem, the FLOPs that the mentor alone would have taken: mean and 95 % interval.
    """
    table = Table(title="usage and cost", title_justify="left")
    priced = result.cost.usd > 0
    for column in ("engine", "purpose"):
        table.add_column(column)
    for column in ("read", "cached", "written", "compute", *(["dollars"] if priced else []), "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in result.usage.lines:
        table.add_row(line.engine, line.purpose, *_cells(line.cost, priced))
    table.add_section()
    table.add_row("total", "", *_cells(result.cost, priced))
    if estimate:
        mean, low, high = map(flops_text, estimate)
        fraction = f"{result.cost.cold_flops / estimate[0]:.2f}"
        table.caption = (
            f"mentor alone (estimated): {mean} (95 %: {low} to {high}); "
            f"this run, without the help of earlier runs' caches: {fraction} of it"
        )
    return table


def _cells(cost: Cost, priced: bool) -> list[str]:
    tokens = (cost.prompt_tokens, cost.cached_tokens, cost.completion_tokens)
    dollars = [f"{cost.usd:.6f}"] if priced else []
    return [*(f"{count:,}" for count in tokens), flops_text(cost.flops), *dollars, f"{cost.seconds:.3f}"]


async def watch(ensemble: AsyncEnsemble, request: Request, console: Console) -> Result:
    """Answer a request, printing the events as they come."""
    result = await ensemble.generate(request, on_event=Screen(console).show)
    console.print()
    return result


async def ask(config: Config, chat: Chat, console: Console) -> dict[str, Any]:
    """Answer live on the console; returns the whole run as a JSON record."""
    generation = config.ensemble.generation
    async with AsyncEnsemble.from_config(config) as ensemble:
        for engine in ensemble.engines:
            console.print(Text(engine.describe(), "dim"))
        request = Request(chat, ensemble.sampling)
        result = await watch(ensemble, request, console)
        estimate = ensemble.aggregation.estimated_alone(request, ensemble.engines)
        console.print(usage_table(result, estimate))
        explained = why(result, estimate, config.selection.method, config.aggregation.method)
        console.print(Text(explained, "bold"))
        return {
            "answer": generation.extracted(result.text),
            "insight": result.insight,
            "finish_reason": result.finish,
            "verdicts": [asdict(verdict) for verdict in result.verdicts],
            "explanation": explained,
            "usage": [asdict(line) | {"flops": line.cost.flops} for line in result.usage.lines],
            "flops": result.cost.flops,
            "estimated_mentor_alone_flops": estimate,
            "seconds": result.seconds,
        }
