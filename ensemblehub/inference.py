"""Batch inference that loses nothing: `ensemblehub infer`, or `python -m ensemblehub.inference`.

Every answer is synced to the output file before it counts.  A new start keeps the good answers of the same
items and configuration, whatever killed the last one, and answers the rest.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ensemblehub import builtin, registry
from ensemblehub.config import Config
from ensemblehub.config.sections import ModelSpec
from ensemblehub.cost import UsageLedger
from ensemblehub.data import BadExample, Example, read_items
from ensemblehub.ensemble import AsyncEnsemble, attribution, fold
from ensemblehub.errors import ArtifactError, ConfigError, did_you_mean
from ensemblehub.output import Output
from ensemblehub.schema import Cost, Event, Request, Result

SHOWN = 20  # failures printed
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
) -> Tally:
    """Answer every item of a file that the output does not hold yet, `batch_size` at a time.

    Args:
        force: start anew, over answers of another configuration too.
        console: where progress and failures are shown; standard error by default.

    Raises:
        ConfigError: the configuration or the input cannot be used; nothing was written.
        ArtifactError: the output is damaged, of another configuration, in use or not writable.
    """
    source = Source(input_path, max_examples)
    if output_path.is_file() and output_path.samefile(input_path):
        raise ConfigError(f"{output_path} is the input: choose another output")
    ensemble = AsyncEnsemble.from_config(config)
    console = console or Console(stderr=True, highlight=False)
    if force:
        source.check()  # before what is there is given up
    with Output(output_path, config, force) as output:
        matched = output.match(source.all(), max_examples)
        for line in matched.notes(output):
            console.print(line, markup=False, soft_wrap=True)
        tally = Tally(matched.total, matched.total - len(output.missing))
        with shown(tally, console) as show:
            batch = Batch(ensemble, config, output, show, show_attribution)
            try:
                asyncio.run(batch.run(source.all(), batch_size))
            except ArtifactError as error:
                raise ArtifactError(f"{error}; {tally.kept + tally.good} answers are kept") from error
            except asyncio.CancelledError:
                tally.stopped_by = tally.stopped_by or signal.SIGINT
    return tally


class Source:
    """The items of an input file, read anew whenever they are asked for; a pipe is read once and kept."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        """See that it can be read.

        Raises:
            ConfigError: it cannot.
        """
        self._path, self._limit = path, limit
        self._kept = [] if path.is_file() or path.is_dir() or not path.exists() else self._read_once()
        next(self.all(), None)

    def _read_once(self) -> list[Example | BadExample]:
        return list(islice(read_items(self._path), self._limit and self._limit + 1))

    def all(self) -> Iterator[Example | BadExample]:
        """Every item, in order."""
        return iter(self._kept) if self._kept else read_items(self._path)

    def check(self) -> None:
        """Read as far as will be asked.

        Raises:
            ConfigError: it cannot be read so far.
        """
        for _ in islice(self.all(), self._limit):
            pass


@dataclass
class Tally:
    """How far a run is.

    Attributes:
        total: items of the input, `kept` of which had a good answer before.
        stopped_by: the signal that interrupted it.
        cost: of this run.
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
        """Items without a row."""
        return self.total - self.kept - self.good - self.failed

    @property
    def exit_code(self) -> int:
        """0 all good, 1 some failed, 128 and the signal's number where interrupted."""
        return 128 + self.stopped_by if self.stopped_by else int(self.failed > 0)

    def __str__(self) -> str:
        """One line: rows, rate, cost so far, time left."""
        done, seconds = self.good + self.failed, time.perf_counter() - self.started
        parts = [
            f"{self.total - self.left}/{self.total}",
            *([f"{self.failed} failed"] if self.failed else []),
        ]
        if done:
            parts += [f"{done / seconds:.2f} rows/s", spending(self.cost)]
            parts += [f"{clock(seconds / done * self.left)} left"] if self.left else [clock(seconds)]
        return " · ".join(parts)

    def summary(self, path: Path) -> str:
        """What a person wants to know at the end."""
        parts = [
            f"{self.kept + self.good} of {self.total} answered ({self.kept} before)",
            f"{self.failed} failed",
        ]
        parts += [f"{self.left} left"]
        if self.good + self.failed:
            parts += [spending(self.cost), clock(time.perf_counter() - self.started)]
        return f"{path}: {', '.join(part for part in parts if part not in ('0 failed', '0 left'))}"


def spending(cost: Cost) -> str:
    """FLOPs in a unit that fits, and dollars where there are any."""
    scale = next(
        (unit for unit in ((1e15, "P"), (1e12, "T"), (1e9, "G")) if cost.flops >= unit[0]), (1e6, "M")
    )
    return f"{cost.flops / scale[0]:.2f} {scale[1]}FLOPs" + (f", ${cost.usd:.4f}" if cost.usd else "")


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class Batch:
    """Items on their way through an ensemble into the output."""

    def __init__(
        self, ensemble: AsyncEnsemble, config: Config, output: Output, show: Show, attribution: bool = False
    ) -> None:
        self.ensemble, self.output, self.show, self.attribution = ensemble, output, show, attribution
        self.sampling = ensemble.sampling
        self.generation, self.stopping = config.ensemble.generation, False

    async def run(self, items: Iterable[Example | BadExample], batch_size: int) -> None:
        """Answer `items`, at most `batch_size` at a time; ends early, with what is in flight, once told to stop."""
        questions = self.questions(items)
        first = next(questions, None)
        if first is None:
            return  # without loading a model
        queue = chain([first], questions)

        async def work() -> None:
            while not self.stopping and (item := next(queue, None)):
                await self.answer(item)

        async with self.ensemble:
            self.show.begins()
            with self.interruptible():
                try:
                    async with asyncio.TaskGroup() as workers:
                        for _ in range(batch_size):
                            workers.create_task(work())
                except* (
                    ArtifactError,
                    ConfigError,
                ) as group:  # the output or the input, not one of the items
                    raise group.exceptions[0] from None

    def questions(self, items: Iterable[Example | BadExample]) -> Iterator[Example]:
        """The items that have no good row; one that asks nothing gets its row at once."""
        for item in items:
            if self.output.key(item) not in self.output.missing:
                continue
            if isinstance(item, Example):
                yield item
            else:
                self.output.add(item, error=item.reason)
                self.show.failed(item, item.reason)

    async def answer(self, item: Example) -> None:
        """Answer one item and write its row; a failure is the row's, not the batch's."""
        ledger, events, started, reason = UsageLedger(), list[Event](), time.perf_counter(), None
        try:
            async with aclosing(
                self.ensemble.stream(Request(item.prompt, self.sampling, id=item.id), ledger)
            ) as stream:
                async for event in stream:
                    events.append(event)
        except Exception as error:  # whatever goes wrong with one item must not cost the others
            reason = said(error)
        result = fold(events, ledger, time.perf_counter() - started)
        extra = {"attribution": attribution(result)} if self.attribution else {}
        self.output.add(
            item,
            predict=None if reason else self.generation.extracted(result.text),
            selected_models=self.selected(result),
            finish_reason=None if reason else result.finish,
            **extra,
            spent=[asdict(line) | {"flops": line.cost.flops} for line in result.usage.lines],
            seconds=result.seconds,
            error=reason,
        )
        self.show.answered(item, reason, result.cost)

    def selected(self, result: Result) -> list[str]:
        """The engines that took part."""
        chosen = next((choice.chosen for choice in result.choices if choice.about == "models"), None)
        return list(chosen) if chosen is not None else [engine.name for engine in self.ensemble.engines]

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C (or SIGTERM) starts no new item; the second time, what is in flight is given up."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop(number: signal.Signals) -> None:
            if self.stopping and task is not None:
                task.cancel()
            self.stopping = True
            self.show.stopping(number)

        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def said(error: Exception) -> str:
    """An error as one line."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split())
    return text if type(error).__module__ == ArtifactError.__module__ else f"{type(error).__name__}: {text}"


class Show:
    """Progress for a person: a live bar in a terminal, a line now and then elsewhere."""

    def __init__(self, tally: Tally, console: Console, bar: Progress) -> None:
        self.tally, self.console, self.bar = tally, console, bar
        self._task = bar.add_task(str(tally), total=tally.total, completed=tally.kept)
        self._last = time.perf_counter()

    def begins(self) -> None:
        """The models are loaded: rate and time left count from here."""
        self.tally.started = time.perf_counter()

    def answered(self, item: Example, reason: str | None, cost: Cost) -> None:
        """One more row is on disk."""
        self.tally.cost += cost
        if reason:
            return self.failed(item, reason)
        self.tally.good += 1
        return self._refresh()

    def failed(self, item: Example | BadExample, reason: str) -> None:
        """One more row is on disk, with an error."""
        self.tally.failed += 1
        if self.tally.failed <= SHOWN:
            more = "; further failures are only in the output" if self.tally.failed == SHOWN else ""
            self._say(f"item {item.number}: {reason}{more}")
        self._refresh()

    def stopping(self, number: signal.Signals) -> None:
        """A signal came."""
        if self.tally.stopped_by:
            self._say("giving up the items in flight")
        else:
            self._say("finishing the items in flight; once more gives them up")
        self.tally.stopped_by = number

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _refresh(self) -> None:
        self.bar.update(self._task, completed=self.tally.total - self.tally.left, description=str(self.tally))
        if not self.console.is_terminal and time.perf_counter() - self._last >= PLAIN_SECONDS:
            self._last = time.perf_counter()
            self._say(str(self.tally))


@contextmanager
def shown(tally: Tally, console: Console) -> Iterator[Show]:
    """Show a run's progress on `console`."""
    bar = Progress(
        BarColumn(), TextColumn("{task.description}", markup=False), console=console, transient=True
    )
    with bar if console.is_terminal else nullcontext():
        yield Show(tally, console, bar)


def configured(
    file: Path | None,
    changes: Sequence[str] = (),
    models: Sequence[str] = (),
    selection: str | None = None,
    aggregation: str | None = None,
    max_tokens: int | None = None,
) -> Config:
    """A configuration from a file, from flags, or from a file that flags change.

    Args:
        file: without it, `models` are the configuration; without them too, it is the built-in pair's.
        models: `path:engine:device`, the engine and the device optional.
        max_tokens: of an answer; a question that leaves no room for so many is refused.
        selection, aggregation: methods; a method that is not the file's starts with its default options.

    Raises:
        ConfigError: as `Config.read`, or a model that names an unknown engine.
    """
    specs = _specs(models)
    if specs and file is None:
        if changes:
            raise ConfigError("--set changes a file: give --config")
        config = Config(model_specs=specs)
    else:
        config = Config.read(file or builtin.CONFIG, changes)
    section = config.ensemble
    update: dict[str, Any] = {}
    if selection not in (None, section.model_selection_method):
        update |= {"model_selection_method": selection, "model_selection_params": {}}
    if aggregation not in (None, section.output_aggregation_method):
        update |= {"output_aggregation_method": aggregation, "output_aggregation_params": {}}
    if max_tokens is not None:
        update["generation"] = section.generation.model_copy(
            update={"max_tokens": max_tokens, "fit_context": False}
        )
    models_update = {"model_specs": specs} if specs else {}
    return config.model_copy(update={"ensemble": section.model_copy(update=update), **models_update})


def _specs(texts: Iterable[str]) -> list[ModelSpec]:
    """Models from `path:engine:device`; a path may hold colons (`builtin:intern`), and so may a device (`cuda:0`)."""
    specs: list[ModelSpec] = []
    for text in texts:
        engines = "|".join(map(re.escape, registry.ENGINES))
        found = re.fullmatch(rf"(?P<path>.+?)(:(?P<engine>{engines})(:(?P<device>.+))?)?", text, re.DOTALL)
        path = found["path"] if found else ""
        _, colon, rest = path.removeprefix("builtin:").partition(":")
        if not path or colon:
            raise ConfigError(
                f"--model_specs {text}: {did_you_mean(rest.partition(':')[0], registry.ENGINES, 'engine')}"
            )
        name = base = re.split(r"[/:]", path.rstrip("/"))[-1]
        taken = {spec.name for spec in specs}
        number = 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        options = {"path": path, "device": found["device"]} if found and found["device"] else {"path": path}
        engine = (found and found["engine"]) or "hf"
        specs.append(ModelSpec.model_validate({"name": name, "engine": engine, **options}))
    return specs


if __name__ == "__main__":
    from ensemblehub.cli import main

    main(["infer", *sys.argv[1:]])
