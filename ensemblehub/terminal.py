"""A ride in the terminal: mentor and intern in their own colours, the judge at each checkpoint, the bill."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble, fold
from ensemblehub.schema import Chat, Choice, Cost, Event, Request, Result, Verdict

COLOURS = {"insight": "cyan", "answer": "green"}


class Screen:
    """Prints events as they come."""

    def __init__(self, console: Console) -> None:
        self.console, self.author = console, ""

    def show(self, event: Event) -> None:
        """Print one event."""
        if isinstance(event, Verdict):
            self.verdict(event)
            return
        if isinstance(event, Choice):
            self.choice(event)
            return
        author = f"{event.engine} · {event.purpose}"
        if author != self.author:
            self.console.print(f"\n[bold]{author}[/bold]" if self.author else f"[bold]{author}[/bold]")
            self.author = author
        self.console.print(Text(event.text, COLOURS.get(event.purpose, "")), end="")

    def choice(self, choice: Choice) -> None:
        """Print who was chosen, with the scores and the reason where there are any."""
        scores = ", ".join(f"{name} {score:.3g}" for name, score in choice.scores)
        line = f"[{choice.about}] {', '.join(choice.chosen)}" + (f"  ({scores})" if scores else "")
        line += f": {choice.reason}" if choice.reason else ""
        self.console.print(Text(("\n" if self.author else "") + line, "cyan"))
        self.author = "choice"

    def verdict(self, verdict: Verdict) -> None:
        """Print a judge's word as a bar."""
        filled = round(20 * verdict.probability)
        colour, word = ("green", "sufficient") if verdict.sufficient else ("yellow", "not yet")
        line = f"[judge] {verdict.level:<7}{verdict.mentor_tokens:>5} mentor tokens  {'█' * filled:░<20} "
        line += f"{verdict.probability:.2f} against {verdict.threshold:.2f}: {word}"
        self.console.print(Text(("\n" if self.author else "") + line, colour))
        self.author = "judge"


def bill(result: Result, estimate: tuple[float, float, float] | None) -> Table:
    """The bill by engine and purpose; for Tandem, beside what the mentor alone would have cost."""
    table = Table(title="the bill", title_justify="left")
    for column in ("engine", "purpose", "read", "cached", "written", "MFLOPs", "seconds"):
        table.add_column(column, justify="left" if column in ("engine", "purpose") else "right")
    for line in result.usage.lines:
        table.add_row(line.engine, line.purpose, *_cells(line.cost))
    table.add_section()
    table.add_row("all", "", *_cells(result.cost))
    if estimate:
        mean, low, high = (value / 1e6 for value in estimate)
        table.caption = (
            f"estimated for the mentor alone: {mean:.1f} MFLOPs (95 %: {low:.1f} to {high:.1f}); "
            f"this ride, without what earlier ones left in caches: {result.cost.cold_flops / estimate[0]:.2f} of it"
        )
    return table


def _cells(cost: Cost) -> list[str]:
    return [
        str(cost.prompt_tokens),
        str(cost.cached_tokens),
        str(cost.completion_tokens),
        f"{cost.flops / 1e6:.1f}",
        f"{cost.seconds:.3f}",
    ]


async def watch(ensemble: AsyncEnsemble, request: Request, console: Console) -> Result:
    """Ride while printing; the whole result at the end."""
    screen, ledger, events, started = Screen(console), UsageLedger(), list[Event](), time.perf_counter()
    async with aclosing(ensemble.stream(request, ledger)) as stream:
        async for event in stream:
            events.append(event)
            screen.show(event)
    console.print()
    return fold(events, ledger, time.perf_counter() - started)


async def ask(config: Config, chat: Chat, console: Console) -> dict[str, Any]:
    """Answer live on the console; returns the whole ride as a JSON record."""
    generation = config.ensemble.generation
    async with AsyncEnsemble.from_config(config) as ensemble:
        for engine in ensemble.engines:
            console.print(Text(engine.describe(), "dim"))
        request = Request(chat, ensemble.sampling)
        result = await watch(ensemble, request, console)
        estimate = ensemble.aggregation.estimated_alone(request, ensemble.engines)
        console.print(bill(result, estimate))
        return {
            "answer": generation.extracted(result.text),
            "insight": result.insight,
            "finish_reason": result.finish,
            "verdicts": [asdict(verdict) for verdict in result.verdicts],
            "spent": [asdict(line) | {"flops": line.cost.flops} for line in result.usage.lines],
            "flops": result.cost.flops,
            "estimated_mentor_alone_flops": estimate,
            "seconds": result.seconds,
        }
