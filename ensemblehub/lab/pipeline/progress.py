"""A progress bar on standard error; where that is no terminal, a line every half minute and at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_SECONDS = 30.0  # between two lines


@contextmanager
def progress(
    what: str, total: int, done: int = 0, figures: Callable[[], str] = str
) -> Iterator[Callable[..., None]]:
    """Show `done` of `total`; yields the function that counts one more.

    Args:
        figures: What else there is to say, asked anew at every step.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
        *(() if figures is not str else (TimeRemainingColumn(),)),
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    last = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done, figures=figures())

        def say() -> None:
            line = f"{what} {bar.tasks[0].completed:.0f}/{total} {figures()}"
            console.print(line.rstrip(), markup=False)

        def step(*_: object) -> None:
            nonlocal last
            bar.update(task, advance=1, figures=figures())
            if not console.is_terminal and time.perf_counter() - last >= PLAIN_SECONDS:
                last = time.perf_counter()
                say()

        try:
            yield step
        finally:
            if not console.is_terminal:
                say()
