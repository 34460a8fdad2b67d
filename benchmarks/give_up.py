"""What `give_up` gains where it is chosen with the thresholds: `python -m benchmarks.give_up`.

On the collected splits of the built-in pair, without and with one probability below which the mentor is stopped
(`calibration.Grid`), at level `none` alone and at every level.  Thresholds and probability are chosen on the split
calibration within the file's budget, or on the split train and certified on calibration; accuracy and cost are those
of the replay on the split test, with differences paired by question and their 95 % bootstrap intervals.  No model is
called.

Writes `results/give_up/give_up.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.errors import ConfigError
from ensemblehub.lab import metrics
from ensemblehub.lab.markdown import table
from ensemblehub.lab.pipeline import replay as collected
from ensemblehub.lab.pipeline.calibration import Objective, by_level, search
from ensemblehub.lab.pipeline.cascade import Fallback, Floats, Outcomes, Replay, replay
from ensemblehub.lab.pipeline.certificate import Loss, Promise, certified
from ensemblehub.lab.pipeline.certificate_command import training_outcomes
from ensemblehub.lab.pipeline.certificate_path import along, path_of
from ensemblehub.lab.pipeline.pipeline import Pipeline

ROOT = Path(__file__).parents[1]
CODE = ROOT / "results/builtin_code"
DRAFT = ROOT / "results/builtin_code_draft"
JUDGE = "ensemble.output_aggregation_params.judge"
EXPERIMENTS = {
    "math": (Path(builtin.CONFIG), (f"experiment.results={ROOT}/results/builtin_math",)),
    "code": (
        Path(builtin.CONFIG),
        ("experiment.task=builtin_code", f"experiment.results={CODE}", f"{JUDGE}={CODE}/judge"),
    ),
    "code, draft": (
        DRAFT / "draft.yaml",
        (f"experiment.results={DRAFT}", f"{JUDGE}={DRAFT}/judge"),
    ),
}
FALLBACKS: tuple[Fallback, ...] = ("best", "mentor")
Found = dict[str, Any]
Where = Literal["never", "none", "all"]


@dataclass(frozen=True)
class Splits:
    """What the levels bring on the questions of every split, for one experiment."""

    levels: list[str]
    train: Outcomes
    calibration: Outcomes
    test: Outcomes
    budget: Objective

    @classmethod
    def of(cls, config: Path, changes: Sequence[str]) -> Splits:
        """Judge the collected splits of an experiment."""
        pipeline = Pipeline(Config.read(config, changes))
        artifact, tandem, data = pipeline.calibration()
        levels = [checkpoint.level for checkpoint in tandem.checkpoints]
        train = training_outcomes(pipeline, artifact, pipeline.learning("train"), levels, tandem)
        held, test = (
            collected.outcomes(part, artifact.judge, levels, "best", bool(tandem.draft))
            for part in (data, pipeline.collected("test"))
        )
        return cls(levels, train, held, test, Objective.parse(pipeline.settings.aim))

    def with_fallback(self, fallback: Fallback) -> Splits:
        """The same where `fallback` answers if no level suffices."""
        train, held, test = (
            replace(part, fallback=fallback) for part in (self.train, self.calibration, self.test)
        )
        return replace(self, train=train, calibration=held, test=test)

    def asked(self, where: Where) -> Floats:
        """The levels at which giving up is tried, as `Grid.of` takes them."""
        tried = {"never": [], "none": self.levels[:1], "all": self.levels}[where]
        return np.array([np.nan if level in tried else 0.0 for level in self.levels])


def for_budget(splits: Splits, where: Where) -> Floats:
    """Thresholds and give-up limits within the budget, (2, L)."""
    return search(splits.calibration, splits.budget, splits.asked(where))


def for_promise(promise: Promise) -> Callable[[Splits, Where], Floats]:
    """How certified thresholds and give-up limits are found, (2, L)."""

    def found(splits: Splits, where: Where) -> Floats:
        path = path_of(splits.train, promise.loss, splits.asked(where))
        chosen: Floats = path[certified(along(splits.calibration, path), promise)]
        return chosen

    return found


def rows(name: str, splits: Splits, max_loss: float) -> Iterator[Found]:
    """Every choice for one experiment, on its test questions."""
    aims = {f"budget {splits.budget.value:g}": for_budget}
    aims |= {f"{loss}, {max_loss:g}": for_promise(Promise(max_loss, loss=loss)) for loss in get_args(Loss)}
    for fallback in FALLBACKS:
        own = splits.with_fallback(fallback)
        for aim, choose in aims.items():
            without: Replay | None = None
            for where in get_args(Where):
                about = {"data": name, "n": len(own.test.cost), "aim": aim, "fallback": fallback}
                try:
                    thresholds, below = choose(own, where)
                except ConfigError as error:
                    print(name, aim, fallback, where, error, flush=True)
                    yield about | {"give_up_at": where, "refused": str(error)}
                    continue
                run = replay(own.test.giving_up(below), thresholds)
                limits = dict(
                    zip(("thresholds", "give_up"), by_level(own.levels, thresholds, below), strict=True)
                )
                yield about | {"give_up_at": where} | limits | measured(own.test, run, without)
                print(name, aim, fallback, where, thresholds, below, flush=True)
                without = run if where == "never" else without


def measured(outcomes: Outcomes, run: Replay, base: Replay | None) -> Found:
    """Accuracy and cost of a replay, and how much more they are than those of `base`, with 95 % intervals."""
    mentor = outcomes.mentor_cost.mean()
    found: Found = {"lost": float((outcomes.mentor_correct & ~run.correct).mean())}
    found |= {"accuracy": float(run.correct.mean()), "cost": float(run.cost.mean() / mentor)}
    if base is None:
        return found
    for name, own, other in (
        ("accuracy", run.correct * 1.0, base.correct * 1.0),
        ("cost", run.cost / mentor, base.cost / mentor),
    ):
        found[f"{name}_difference"] = float((own - other).mean())
        found[f"{name}_interval"] = list(metrics.paired_bootstrap(own, other))
    return found


def markdown(found: Sequence[Found]) -> str:
    """The rows as a table."""
    header = [
        "data",
        "aim",
        "fallback",
        "`give_up` at",
        "below",
        "accuracy",
        "lost",
        "cost",
        "accuracy more",
        "cost more",
    ]
    return table(header, [_cells(row) for row in found]) + "\n"


def _cells(row: Found) -> list[str]:
    about = [row["data"], row["aim"], f"`{row['fallback']}`", row["give_up_at"]]
    if "refused" in row:
        return [*about, "refused", *["–"] * 5]
    below = f"{max(row['give_up'].values()):.2f}" if row["give_up"] else "–"
    cells = [*about, below, f"{row['accuracy']:.1%}", f"{row['lost']:.1%}", f"{row['cost']:.3f}"]
    if "cost_difference" not in row:
        return [*cells, "–", "–"]
    for name, scale, digits in (("accuracy", 100, "+.1f"), ("cost", 1, "+.3f")):
        values = (row[f"{name}_difference"], *row[f"{name}_interval"])
        mean, low, high = (f"{scale * value:{digits}}" for value in values)
        cells.append(f"{mean} [{low}, {high}]")
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max-loss", type=float, default=0.03)
    parser.add_argument("--out", type=Path, default=ROOT / "results/give_up")
    options = parser.parse_args(arguments)
    found = list[Found]()
    for name, experiment in EXPERIMENTS.items():
        found += rows(name, Splits.of(*experiment), options.max_loss)
    print(markdown(found), end="")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "give_up.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "give_up.md").write_text(markdown(found))


if __name__ == "__main__":
    main()
