"""`ensemblehub bench`: every cell on the same questions, into one result folder."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ensemblehub.artifacts import write_atomically
from ensemblehub.board import QUESTION, kept_questions
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.lab.bench import report
from ensemblehub.lab.bench.answers import Bench, Errors, Questions
from ensemblehub.lab.bench.calls import Calls
from ensemblehub.lab.bench.cells import Cell
from ensemblehub.lab.bench.report import CellAnswers
from ensemblehub.lab.bench.rows import ANSWERS, journals
from ensemblehub.lab.journal import differences, told
from ensemblehub.lab.pipeline import splits
from ensemblehub.lab.tasks import task_named
from ensemblehub.ray_cluster import Cluster
from ensemblehub.shards import Shard


def questions_of(
    name: str,
    split: str,
    data: Path | None,
    prompt: str | None,
    limit: int | None,
    samples: int = 1,
    shard: Shard | None = None,
) -> Questions:
    """The first `limit` questions of a benchmark's split.

    Args:
        data: See `task_named`.
        prompt: Prompt profile of the task; None takes its default.
        shard: Only those of this shard.

    Raises:
        ConfigError: No such task, split or profile, or the data cannot be read.
    """
    task = task_named(name, data, prompt)
    items = list(task.items(split, limit))
    if not items:
        raise ConfigError(f"{task.name} has no questions in its split {split!r}")
    items = [item for item in items if shard is None or shard.holds(splits.asked(item))]
    if not items:
        raise ConfigError(f"no question of {task.name} is in shard {shard}: use fewer shards")
    return Questions(task, split, items, samples)


def bench(
    cells: Sequence[Cell],
    questions: Questions,
    folder: Path,
    force: bool = False,
    errors: Errors = "stop",
    cluster: Cluster | None = None,
    reuse: bool = False,
) -> str:
    """Ask every cell what it has not answered yet, and write the report; returns the table.

    The report is also written when the run is interrupted or stops, over what is there.

    Args:
        force: Start the cells anew.
        errors, cluster: See `Bench`.
        reuse: Make a call that several cells make alike once; kept in `calls.sqlite`.

    Raises:
        ArtifactError: Another bench writes into the folder, or it holds other questions.
        EnsembleHubError: The run stopped; says how many answers are kept.
    """
    asks, text = questions.asks, ""
    check_samples(cells, questions.samples)
    grading = questions.task.grading()
    names = [cell.file for cell in cells]
    with locked(folder):
        check_folder(folder, names, questions)
        write_questions(folder / "questions.jsonl", questions)
        calls = Calls(folder / "calls.sqlite", force) if reuse else None
        running = Bench(questions, folder / ANSWERS, force, errors, cluster, calls)
        try:
            for cell in cells:
                running.answered(cell)
        finally:
            if calls:
                calls.close()
            text = report.write(folder, names, {ask.id for ask in asks}, grading, reuse)
    return text


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a result folder, and keep other benches out of it.

    Raises:
        ArtifactError: It cannot be made, or another bench writes into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            hint = "wait for it, or choose another --out"
            raise ArtifactError(f"another bench is writing {folder}: {hint}") from error
        yield
    finally:
        os.close(handle)


def check_samples(cells: Sequence[Cell], samples: int) -> None:
    """Check that several samples of a question can differ.

    Raises:
        ConfigError: A cell is greedy.
    """
    for cell in cells:
        if samples > 1 and cell.config.ensemble.generation.sampling().temperature == 0:
            hint = "add -s ensemble.generation.temperature=0.8"
            raise ConfigError(f"{cell.name} is greedy: {samples} samples would be the same; {hint}")


def check_folder(folder: Path, names: Sequence[str], questions: Questions) -> None:
    """Check that the other cells of a folder answer the same benchmark.

    Raises:
        ArtifactError: They do not; says what differs.
    """
    now = dict(questions.about)
    for name, path in journals(folder).items():
        if name in names:
            continue
        found = CellAnswers.read(path)
        if differing := list(differences(found.about, now)):
            raise ArtifactError(f"{path} answers something else: {told(differing)}; choose another --out")


def write_questions(path: Path, questions: Questions) -> None:
    """Add the questions to the folder's own copy of them, which the board shows."""
    asked = {item.id: {key: getattr(item, key) for key in QUESTION} for item in questions.items}
    known = kept_questions(path) | asked
    lines = [json.dumps(entry, ensure_ascii=False) for entry in known.values()]
    write_atomically(path, "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n")
