"""Batch inference: `ensemblehub infer`, or `python -m ensemblehub.inference`.

Every answer is synced to the output file before it counts.  A new run keeps the good answers to the same
items under the same configuration, however the last run ended, and answers the rest.
"""

from __future__ import annotations

import asyncio
import runpy
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ensemblehub.concurrency import for_each
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.data import BadExample, Example, read_items
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import ArtifactError, ConfigError, error_text
from ensemblehub.output import Output
from ensemblehub.ray_cluster import Cluster
from ensemblehub.ray_data import ItemFailure, answers
from ensemblehub.results import attempt, attribution
from ensemblehub.schema import Cost, Request, Result
from ensemblehub.shards import Shard
from ensemblehub.terminal import cost_text

FAILURES_SHOWN = 20
PLAIN_SECONDS = 30.0  # between two lines of progress where there is no terminal


def infer(
    config: Config,
    input_path: Path,
    output_path: Path,
    batch_size: int = 4,
    max_examples: int | None = None,
    show_attribution: bool = False,
    force: bool = False,
    console: Console | None = None,
    shard: Shard | None = None,
    cluster: Cluster | None = None,
) -> BatchProgress:
    """Answer every item of a file that has no good answer in the output yet.

    Args:
        batch_size: Maximum number of items in progress, for each worker of a cluster.
        max_examples: Only the first so many items.
        show_attribution: Add to each row who wrote which part of the answer.
        force: Start over, also where the output has answers of another configuration.
        console: Where progress and failures are printed; standard error by default.
        shard: Only the items of this shard, into `shards/I-of-N/` beside `output_path`.
        cluster: Where Ray answers them; this process does by default.

    Raises:
        ConfigError: The configuration or the input cannot be used; nothing was written.
        ArtifactError: The output is damaged, of another configuration, in use or not writable.
    """
    source = InputFile(input_path, max_examples)
    if output_path.is_file() and output_path.samefile(input_path):
        raise ConfigError(f"{output_path} is the input: choose another output")
    AsyncEnsemble.from_config(config)  # says what cannot work, before anything is written
    console = console or Console(stderr=True, highlight=False)
    if force:
        source.check()  # before existing answers are deleted
    with Output(shard.beside(output_path) if shard else output_path, config, force) as output:

        def items() -> Iterator[Example | BadExample]:
            return (item for item in source.items() if shard is None or shard.holds(output.key(item)))

        matched = output.match(items(), max_examples)
        for line in matched.notes(output):
            console.print(line, markup=False, soft_wrap=True)
        progress = BatchProgress(matched.total, matched.total - len(output.missing))
        with displayed(progress, console) as display:
            batch = Batch(Answerer(config, show_attribution), output, display)
            try:
                if cluster:
                    batch.run_on(cluster, items(), batch_size)
                else:
                    asyncio.run(batch.run(items(), batch_size))
            except ArtifactError as error:
                raise ArtifactError(f"{error}; {progress.kept + progress.good} answers are kept") from error
            except (asyncio.CancelledError, KeyboardInterrupt):
                progress.stopped_by = progress.stopped_by or signal.SIGINT
    return progress


class InputFile:
    """The items of an input file, read again on each pass; a pipe is read once and kept."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        """Read the first item.

        Raises:
            ConfigError: The file cannot be read.
        """
        self._path, self._limit = path, limit
        is_pipe = path.exists() and not (path.is_file() or path.is_dir())
        self._kept = list(islice(read_items(path), limit and limit + 1)) if is_pipe else []
        next(self.items(), None)

    def items(self) -> Iterator[Example | BadExample]:
        """Every item, in order."""
        return iter(self._kept) if self._kept else read_items(self._path)

    def check(self) -> None:
        """Read all items that will be asked.

        Raises:
            ConfigError: One of them cannot be read.
        """
        for _ in islice(self.items(), self._limit):
            pass


@dataclass
class BatchProgress:
    """Progress of a run.

    Attributes:
        total: Number of items of the input.
        kept: Items with a good answer from earlier runs.
        good, failed: Items answered, and failed, in this run.
        stopped_by: Signal that interrupted the run.
        cost: Cost of this run.
    """

    total: int
    kept: int
    good: int = 0
    failed: int = 0
    stopped_by: signal.Signals | None = None
    cost: Cost = field(default_factory=Cost)
    started: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> int:
        """Number of items without a row."""
        return self.total - self.kept - self.good - self.failed

    @property
    def exit_code(self) -> int:
        """0 all answered, 1 some failed, 128 + signal number if interrupted."""
        return 128 + self.stopped_by if self.stopped_by else int(self.failed > 0)

    def __str__(self) -> str:
        """One line: rows, rate, cost so far, time left."""
        done, seconds = self.good + self.failed, time.perf_counter() - self.started
        parts = [f"{self.total - self.left}/{self.total}"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if done:
            parts += [f"{done / seconds:.2f} rows/s", cost_text(self.cost)]
            parts.append(f"{clock(seconds / done * self.left)} left" if self.left else clock(seconds))
        return " · ".join(parts)

    def summary(self, path: Path) -> str:
        """Return the final line of a run that wrote to `path`."""
        parts = [f"{self.kept + self.good} of {self.total} answered ({self.kept} before)"]
        parts += [
            f"{count} {word}" for count, word in ((self.failed, "failed"), (self.left, "left")) if count
        ]
        if self.good + self.failed:
            parts += [cost_text(self.cost), clock(time.perf_counter() - self.started)]
        return f"{path}: {', '.join(parts)}"


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


@dataclass(frozen=True)
class ItemAnswer:
    """What the row of an item says beside the item, and the cost of the answer."""

    fields: dict[str, Any]
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Answerer:
    """Answers items with the ensemble of a configuration; see `ray_data.Job`."""

    config: Config
    show_attribution: bool = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Callable[[Example], Awaitable[ItemAnswer]]]:
        """Load the models; yields the function that answers an item."""
        async with AsyncEnsemble.from_config(self.config) as ensemble:
            yield partial(self.answer, ensemble)

    async def answer(self, ensemble: AsyncEnsemble, item: Example) -> ItemAnswer:
        """Answer one item; an error becomes part of the row."""
        request = Request(item.prompt, ensemble.sampling, id=item.id)
        ledger = UsageLedger()
        result, failure = await attempt(ensemble.stream(request, ledger), ledger)
        reason = error_text(failure) if failure else None  # no error of one item may cost the others
        extra = {"attribution": attribution(result)} if self.show_attribution else {}
        fields = {
            "predict": None if reason else self.config.ensemble.generation.extracted(result.text),
            "selected_models": _selected(ensemble, result),
            "finish_reason": None if reason else result.finish,
            **extra,
            "usage": [asdict(line) | {"flops": line.cost.flops} for line in result.usage.lines],
            "seconds": result.seconds,
            "error": reason,
        }
        return ItemAnswer(fields, result.cost)


def _selected(ensemble: AsyncEnsemble, result: Result) -> list[str]:
    """Names of the engines that took part."""
    chosen = next((choice.chosen for choice in result.choices if choice.about == "models"), None)
    return [engine.name for engine in ensemble.engines] if chosen is None else list(chosen)


class Batch:
    """The items of a run, what answers them and an output for the rows."""

    def __init__(self, answerer: Answerer, output: Output, display: Display) -> None:
        self.answerer = answerer
        self.output = output
        self.display = display
        self.stopping = False

    async def run(self, items: Iterable[Example | BadExample], batch_size: int) -> None:
        """Answer `items`, at most `batch_size` at a time; loads no model if there is nothing to answer."""
        questions = self.questions(items)
        first = next(questions, None)
        if first is None:
            return
        async with self.answerer.opened() as answer:

            async def work(item: Example) -> None:
                self.keep(item, await answer(item))

            self.display.begin()
            with self.interruptible():
                await for_each(chain([first], questions), work, limit=batch_size, collect=False)

    def run_on(self, cluster: Cluster, items: Iterable[Example | BadExample], batch_size: int) -> None:
        """Answer `items` on a cluster, at most `batch_size` at a time by each worker."""
        for number, (item, answered) in enumerate(
            answers(self.answerer, self.questions(items), cluster, batch_size)
        ):
            if number == 0:
                self.display.begin()
            if isinstance(answered, ItemFailure):
                answered = ItemAnswer({"error": answered.reason})
            self.keep(item, answered)

    def questions(self, items: Iterable[Example | BadExample]) -> Iterator[Example]:
        """The items without a good row, until the run is interrupted; bad items get their rows on the way."""
        for item in items:
            if self.stopping:
                return
            key = self.output.key(item)
            if key not in self.output.missing:
                continue
            self.output.missing.remove(key)
            if isinstance(item, Example):
                yield item
            else:
                self.output.add(item, error=item.reason)
                self.display.failed(item, item.reason)

    def keep(self, item: Example, answered: ItemAnswer) -> None:
        """Write the row of an item."""
        self.output.add(item, **answered.fields)
        self.display.answered(item, answered.fields["error"], answered.cost)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Finish the items in progress and start no new ones on Ctrl-C or SIGTERM; a second one cancels."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop(number: signal.Signals) -> None:
            if self.stopping and task is not None:
                task.cancel()
            self.stopping = True
            self.display.stopping(number)

        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


class Display:
    """Shows a run's progress: a live bar in a terminal, a line every half minute elsewhere."""

    def __init__(self, progress: BatchProgress, console: Console, bar: Progress) -> None:
        self.progress = progress
        self.console = console
        self.bar = bar
        self._task = bar.add_task(str(progress), total=progress.total, completed=progress.kept)
        self._last = time.perf_counter()

    def begin(self) -> None:
        """Start to measure rate and time left, once the models are loaded."""
        self.progress.started = time.perf_counter()

    def answered(self, item: Example, reason: str | None, cost: Cost) -> None:
        """Count a written row; `reason` is its error."""
        self.progress.cost += cost
        if reason:
            return self.failed(item, reason)
        self.progress.good += 1
        return self._refresh()

    def failed(self, item: Example | BadExample, reason: str) -> None:
        """Count a written row with an error."""
        self.progress.failed += 1
        if self.progress.failed <= FAILURES_SHOWN:
            last = self.progress.failed == FAILURES_SHOWN
            more = "; further failures are only in the output" if last else ""
            self._print(f"item {item.number}: {reason}{more}")
        self._refresh()

    def stopping(self, number: signal.Signals) -> None:
        """Say what a signal does."""
        cancelled = self.progress.stopped_by is not None
        self._print(
            "giving up the items in flight"
            if cancelled
            else "finishing the items in flight; once more gives them up"
        )
        self.progress.stopped_by = number

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _refresh(self) -> None:
        done = self.progress.total - self.progress.left
        self.bar.update(self._task, completed=done, description=str(self.progress))
        if not self.console.is_terminal and time.perf_counter() - self._last >= PLAIN_SECONDS:
            self._last = time.perf_counter()
            self._print(str(self.progress))


@contextmanager
def displayed(progress: BatchProgress, console: Console) -> Iterator[Display]:
    """Show a run's progress on `console`."""
    columns = (BarColumn(), TextColumn("{task.description}", markup=False))
    bar = Progress(*columns, console=console, transient=True)
    with bar if console.is_terminal else nullcontext():
        yield Display(progress, console, bar)


if __name__ == "__main__":
    sys.argv[1:1] = ["infer"]
    runpy.run_module("ensemblehub", run_name="__main__")
