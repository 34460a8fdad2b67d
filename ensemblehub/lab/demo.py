"""`ensemblehub demo`: one run of Tandem in the terminal, then a small evaluation with its table and plot."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.lab.pipeline.report import labelled
from ensemblehub.terminal import ask


def comparison(rows: list[dict[str, Any]]) -> Table:
    """Return the rows of `summary.json` as a table that fits a terminal."""
    table = Table(
        title="tokens by author, and cost relative to the mentor with and without thinking",
        title_justify="left",
    )
    for column in ("method", "accuracy", "95 %", "mentor", "intern", "thinking", "no thinking"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in labelled(rows):
        interval = f"{100 * row['accuracy_low']:.0f}–{100 * row['accuracy_high']:.0f}"
        tokens = [f"{row['mentor_tokens']:.0f}", f"{row['intern_tokens']:.0f}"]
        costs = [
            "–" if row[key] is None else f"{row[key]:.2f}" for key in ("cost_vs_mentor", "cost_vs_concise")
        ]
        cells = [row["method"], f"{row['accuracy']:.1%}", interval, *tokens, *costs]
        table.add_row(*cells, style="bold" if row["method"] == "tandem" else None)
    return table


def run(config: Config, limit: int | None, question: int) -> None:
    """Run one test question live, then evaluate `limit` questions and write their table and plot.

    Args:
        limit: None takes 100 questions of models that ship with the package, 8 of others.
    """
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    ships = all(builtin.is_builtin(str(spec.extra.get("path"))) for spec in config.members)
    limit = limit or (100 if ships else 8)
    console = Console(highlight=False)
    section = config.experiment.model_copy(update={"results": Path("saves/demo")})
    pipeline = Pipeline(config.model_copy(update={"experiment": section}))
    item = pipeline.items("test", question + 1)[question]
    console.rule("one run")
    console.print(Text(f"{item.text}\n", "bold"))
    asyncio.run(ask(config, pipeline.task.request(item), console))
    console.print(Text(f"right answer: {item.answer}"))
    console.rule(f"{limit} test questions: Tandem live and every baseline")
    pipeline.collect("test", limit, force=True)
    pipeline.evaluate(limit, force=True, checks=False)
    pipeline.report()
    console.print(comparison(json.loads((section.results / "summary.json").read_text())))
    files = sorted(file.name for file in section.results.iterdir() if file.is_file())
    console.print(f"table, per-question file and plot: {section.results}/ ({', '.join(files)})")
