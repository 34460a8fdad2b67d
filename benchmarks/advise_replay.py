"""Whether what `advise` replays is what a live run answers and costs: `python -m benchmarks.advise_replay`.

The built-in pair is recorded on test questions of `builtin_math` and of `builtin_code`, as `advise` does it.  Then
every strategy that is replayed, at the middle one of its settings, answers the same questions live, configured as
`advise` would recommend it.  Counted are the questions on which the live answer is as right as the replay says, is
letter by letter one of the recorded texts, and costs as many FLOPs to a relative 1e-9, nothing reused of other
questions (`Cost.cold_flops`; for Tandem `evaluate.ColdCost`, where the first judgement reads its whole prompt).  A
seed makes the samples of votes the recorded ones; a cascade by agreement seeds its own, and is left out here.

Writes `results/advise/replay.json` and `.txt`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ensemblehub import builtin
from ensemblehub.concurrency import for_each
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.lab.advise import advice
from ensemblehub.lab.advise.choice import Criterion
from ensemblehub.lab.advise.pair import with_rule
from ensemblehub.lab.advise.record import Recorded
from ensemblehub.lab.advise.strategies import strategies
from ensemblehub.lab.advise.strategy import Changes, Floats
from ensemblehub.lab.pipeline.evaluate import ColdCost
from ensemblehub.lab.tasks import task_named
from ensemblehub.lab.tasks.base import Item, Task
from ensemblehub.results import collect

ROOT = Path(__file__).parents[1]
DRAWN_ANEW = "cascade by agreement"


@dataclass(frozen=True)
class Equality:
    """A strategy at a setting: on how many of `n` questions live and replay are equal."""

    task: str
    strategy: str
    setting: str
    n: int
    right: int
    texts: int
    cost: int

    @property
    def whole(self) -> bool:
        """Whether they are equal on all questions."""
        return self.right == self.texts == self.cost == self.n


def compared(
    config: Config, task: Task, split: str, n: int, folder: Path, limit: int, only: str = ""
) -> list[Equality]:
    """Record `n` questions in `folder`, and compare every strategy whose name holds `only` with live runs.

    Args:
        limit: questions at a time.
    """
    recorded = advice.record(config, task, split, n, 4, folder, False, Criterion("cost"), True, None)
    items = list(task.items(split, n))
    found = []
    for strategy in strategies(recorded):
        if only in strategy.name and strategy.name != DRAWN_ANEW:
            at = len(strategy.settings) // 2
            setting, changes = strategy.settings[at]
            live = asyncio.run(_live(config, changes, task, items, limit))
            equal = _equal(recorded, task, items, live, strategy.correct[:, at], strategy.cost[:, at])
            found.append(Equality(task.name, strategy.name, setting or "-", len(items), *equal))
            print(line(found[-1]), flush=True)
    return found


async def _live(
    config: Config, changes: Changes, task: Task, items: Sequence[Item], limit: int
) -> list[tuple[str, float]]:
    """Text and FLOPs of the answers of the configuration that `advise` would write."""
    made = advice.with_changes(with_rule(config), changes)
    async with AsyncEnsemble.from_config(made) as ensemble:
        sampling = task.sampling(made.ensemble.generation.sampling())
        infos = {engine.name: engine.info for engine in ensemble.engines}

        async def answered(item: Item) -> tuple[str, float]:
            ledger = UsageLedger()
            result = await collect(ensemble.stream(task.ask(item, sampling), ledger), ledger)
            if isinstance(ensemble.aggregation, Tandem):
                return result.text, ColdCost.of(ledger.calls, infos, "intern").flops
            return result.text, ledger.total.cold_flops

        return await for_each(items, answered, limit=limit)


def _equal(
    recorded: Recorded,
    task: Task,
    items: Sequence[Item],
    live: Sequence[tuple[str, float]],
    correct: Floats,
    cost: Floats,
) -> tuple[int, int, int]:
    """On how many questions rightness, a recorded text, and FLOPs are those of the live run."""
    right = texts = paid = 0
    for at, (item, (text, flops)) in enumerate(zip(items, live, strict=True)):
        runs = [*recorded.collected.rows[at].runs.values(), *(draft.run for draft in recorded.drafts[at])]
        right += task.grade(item, text).correct == bool(correct[at])
        texts += text in {run.text for run in runs}
        paid += math.isclose(flops, cost[at])
    return right, texts, paid


def line(row: Equality) -> str:
    """An equality as a person reads it."""
    equal = f"{row.right:>5} {row.texts:>5} {row.cost:>5}"
    return f"{row.task:<13} {row.strategy:<46} {row.setting:<44} {equal}  of {row.n}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=50, help="questions of each task")
    parser.add_argument("--task", action="append", help="one task alone (repeatable)")
    parser.add_argument("--only", default="", help="strategies whose name holds this")
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--out", type=Path, default=ROOT / "results/advise")
    options = parser.parse_args(arguments)
    numpy_engine = [f"model_specs.{index}.engine=numpy" for index in range(2)]
    config = Config.read(Path(builtin.CONFIG), [*numpy_engine, "ensemble.generation.seed=0"])
    started, rows = time.perf_counter(), list[Equality]()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.task or ("builtin_math", "builtin_code"):
            task = task_named(name, None, "plain")
            where = Path(folder) / name
            rows += compared(config, task, "test", options.n, where, options.concurrency, options.only)
    conditions = (
        f"{options.concurrency} questions at a time, engine numpy; numpy {np.__version__}, Python "
        f"{platform.python_version()}; {time.perf_counter() - started:.0f} s"
    )
    equal = sum(row.whole for row in rows)
    text = "\n".join(
        [
            "Questions on which a live run is as right, writes a recorded text, and costs the FLOPs of the replay",
            "",
            f"{'':<106} right text  FLOPs",
            *map(line, rows),
            "",
            f"equal on all questions: {equal} of {len(rows)} settings",
            conditions,
        ]
    )
    print(text.partition("\n\n")[2].rpartition("\n\n")[2])
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"rows": [asdict(row) for row in rows], "equal": equal, "conditions": conditions}
    (options.out / "replay.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "replay.txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
