"""Every kind of judge on collected data: how good, how calibrated, where it fails, what it looks at.

Trained on `train`, thresholds from `calibration`, figures from `test`.  Two are named the best, both on
`calibration`: the one with the lowest Brier score, and the one with the best cascade, its own cost included.
    Paper Tables 9 and 14;
failure types of the reference's report.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub.artifacts import write_atomically
from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.lab import metrics
from ensemblehub.lab.judges.training import KINDS, median_rule, train_judge
from ensemblehub.lab.markdown import table
from ensemblehub.lab.pipeline import calibration, cascade, replay
from ensemblehub.lab.pipeline.pipeline import Pipeline
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.lab.plots import pyplot
from ensemblehub.tandem.artifact import RULES
from ensemblehub.tandem.features import FEATURE_NAMES
from ensemblehub.tandem.judges import Judge, ReadingBatch

JudgeFigures = dict[str, Any]
NAMES = (*KINDS, *RULES)
ROUTING = ("correct_routing", "false_early_stop", "false_continuation", "unavoidable_wrong")
COSTS = ("train s", "ms a reading", "FLOPs", "targets missed")
COLUMNS = (
    *("judge", "AUC", "F1", "Brier", "calibration error", "accuracy", "cost_vs_mentor"),
    *ROUTING,
    *COSTS,
)
RESAMPLES = 400
AUC, ERROR = 0.80, 0.05  # the targets, with a Brier score below the base rate's


@dataclass(frozen=True)
class Data:
    """What judges learn from, are calibrated on and are measured on."""

    train: Collected
    calibration: Collected
    test: Collected

    @classmethod
    def of(cls, pipeline: Pipeline) -> Data:
        """The collected splits of an experiment, no question in two of them.

        Raises:
            ArtifactError: one is missing or damaged, they were collected at unlike levels, or share
                questions.
        """
        return cls(pipeline.learning("train"), pipeline.learning("calibration"), pipeline.collected("test"))

    @property
    def levels(self) -> list[str]:
        """Level 0 first."""
        return list(self.train.levels)


def run(pipeline: Pipeline, kinds: Sequence[str] = (), say: Callable[[str], None] = lambda _: None) -> str:
    """Train and measure every kind; writes `classifiers.md`, `.json` and `.svg` beside the other results.

    Raises:
        ConfigError: no such kind.
        ArtifactError: something was not collected, or there is nothing to learn.
    """
    for kind in kinds:
        if kind not in NAMES:
            raise ConfigError(did_you_mean(kind, NAMES, "judge"))
    data = Data.of(pipeline)
    rows = list[JudgeFigures]()
    curves = dict[str, NDArray[np.float64]]()
    _, tandem = pipeline.ensemble()
    for split in (data.train, data.calibration, data.test):
        pipeline.check_levels(split, tandem)
        split.check_sizes()
    visited = [checkpoint.level for checkpoint in tandem.checkpoints]
    for kind in kinds or NAMES:
        say(f"{kind} ...")
        judge, seconds = made(kind, data)
        row, said = measured(judge, data, visited, pipeline, tandem.fallback)
        rows.append({"judge": kind, **row, "train s": round(seconds, 1)})
        curves[kind] = said
    trained = [row for row in rows if row["judge"] not in RULES] or rows
    best = min(trained, key=lambda row: row["validation_brier"])["judge"]
    labels = labels_of(data.test, data.levels)
    plot(curves, labels, pipeline.folder / "classifiers.svg")
    text = markdown(pipeline, data, rows, best)
    write_atomically(pipeline.folder / "classifiers.md", text)
    record = {"best": best, "best_run": best_run(rows), "n": len(data.test.rows)}
    record |= {"base_rate_brier": rows[0]["brier_base_rate"], "rows": rows}
    write_atomically(pipeline.folder / "classifiers.json", json.dumps(record, indent=1) + "\n")
    return text


def made(kind: str, data: Data) -> tuple[Judge, float]:
    """A judge of that kind, and the seconds that training it took;
    a rule's limit is the training data's median.
    """
    started = time.perf_counter()
    if kind in RULES:
        return median_rule(kind, data.train.features), time.perf_counter() - started
    tokens = replay.table(data.train, data.levels, lambda run: run.mentor_tokens)
    labels = labels_of(data.train, data.levels).reshape(tokens.shape)
    judge, _ = train_judge(kind, data.train.features, labels, tokens, sequences=data.train.sequences)
    return judge, time.perf_counter() - started


def measured(
    judge: Judge, data: Data, visited: list[str], pipeline: Pipeline, fallback: cascade.Fallback
) -> tuple[JudgeFigures, NDArray[np.float64]]:
    """A judge's figures on the test split, and its probabilities there."""
    levels, readings = data.levels, replay.readings(data.test, data.levels)
    labels, question = labels_of(data.test, levels), np.repeat(np.arange(len(data.test.rows)), len(levels))
    started = time.perf_counter()
    said = judge.probabilities_of(readings)
    each = (time.perf_counter() - started) / len(said)
    figures: JudgeFigures = dict(metrics.judge_report(labels, said))
    figures |= {f"{name}_interval": bounds for name, bounds in intervals(labels, said, question).items()}
    held = judge.probabilities_of(replay.readings(data.calibration, levels))
    figures["validation_brier"] = float(np.mean((held - labels_of(data.calibration, levels)) ** 2))
    aim = calibration.Objective.parse(pipeline.settings.aim)
    chosen = calibration.calibrate(replay.outcomes(data.calibration, judge, visited, fallback), aim)
    outcomes = replay.outcomes(data.test, judge, visited, fallback)
    run = cascade.replay(outcomes, chosen.thresholds)
    steps = np.array([row.level for row in data.test.rows])
    figures |= {
        "validation_accuracy": chosen.expected["cross_validated_accuracy"],
        "validation_cost": chosen.expected["cross_validated_cost"],
        "accuracy": float(run.correct.mean()),
        "accuracy_interval": list(metrics.wilson_interval(float(run.correct.sum()), len(run.correct))),
        "cost_vs_mentor": float(run.cost.sum() / outcomes.mentor_cost.sum()),
        "failures": failures(outcomes, run),
        "importance": importance(judge, readings, labels),
        "by_level": {
            str(value): {
                "n": int((steps == value).sum()),
                "accuracy": float(run.correct[steps == value].mean()),
                "brier": float(np.mean(((said - labels) ** 2).reshape(-1, len(levels))[steps == value])),
            }
            for value in np.unique(steps)
        },
        "ms a reading": 1e3 * each,
        "FLOPs": judge.flops,
    }
    return figures, said


def labels_of(data: Collected, levels: list[str]) -> NDArray[np.bool_]:
    """Whether the intern was right, question by question, (questions · levels)."""
    return replay.table(data, levels, lambda run: run.correct).astype(bool).reshape(-1)


def intervals(
    labels: NDArray[np.bool_], said: NDArray[np.float64], question: NDArray[np.int64]
) -> dict[str, list[float]]:
    """95 % bootstrap intervals of AUC, F1, Brier score and calibration error, whole questions drawn."""
    rng, count = np.random.default_rng(0), int(question.max()) + 1
    rows = np.argsort(question, kind="stable").reshape(count, -1)
    drawn: dict[str, list[float]] = {"auc": [], "f1": [], "brier": [], "calibration_error": []}
    for _ in range(RESAMPLES):
        at = rows[rng.integers(0, count, count)].reshape(-1)
        found = metrics.judge_report(labels[at], said[at])
        for name, values in drawn.items():
            values.append(found[name])
    return {
        name: [float(end) for end in np.nanpercentile(values, [2.5, 97.5])] for name, values in drawn.items()
    }


def failures(outcomes: cascade.Outcomes, run: cascade.Replay) -> dict[str, float]:
    """Shares of questions by outcome.

    Routed right; stopped too early (a later level is right); went past a level that was right; wrong at every
    level.
    """
    right, level = outcomes.correct & outcomes.visited, np.arange(outcomes.correct.shape[1])
    chosen = np.where(run.chosen < 0, outcomes.correct.shape[1], run.chosen)[:, None]
    earlier, later = (right & (level < chosen)).any(axis=1), (right & (level > chosen)).any(axis=1)
    never_right = ~right.any(axis=1)
    early = ~run.correct & later & ~never_right
    past = earlier & ~early
    return {
        "correct_routing": float((run.correct & ~past).mean()),
        "false_early_stop": float(early.mean()),
        "false_continuation": float((past & ~never_right).mean()),
        "unavoidable_wrong": float((never_right & ~run.correct).mean()),
    }


def importance(judge: Judge, readings: ReadingBatch, labels: NDArray[np.bool_]) -> dict[str, float]:
    """How much AUC is lost when one kind of input comes from another reading (permutation importance)."""
    rng = np.random.default_rng(0)
    order, half = rng.permutation(len(labels)), len(FEATURE_NAMES) // 2
    whole = metrics.judge_report(labels, judge.probabilities_of(readings))["auc"]

    def other(channel: int) -> ReadingBatch:
        columns = slice(channel * half, (channel + 1) * half)
        table = readings.table.copy()
        table[:, columns] = readings.table[order][:, columns]
        sequences = []
        for own, foreign in zip(readings.sequences, order, strict=True):
            mixed = own.copy()
            mixed[channel] = np.resize(readings.sequences[foreign][channel], own.shape[1])
            sequences.append(mixed)
        return replace(readings, table=table, sequences=sequences)

    changed = {
        "perplexity": other(0),
        "entropy": other(1),
        "level": replace(readings, level=readings.level[order]),
        "mentor_tokens": replace(readings, mentor_tokens=readings.mentor_tokens[order]),
    }
    return {
        name: whole - metrics.judge_report(labels, judge.probabilities_of(mixed))["auc"]
        for name, mixed in changed.items()
    }


def markdown(pipeline: Pipeline, data: Data, rows: Sequence[JudgeFigures], best: str) -> str:
    """Return the tables as Markdown."""
    count, base = len(data.test.rows), rows[0]["brier_base_rate"]
    briers = ", ".join(f"{row['judge']} {row['validation_brier']:.4f}" for row in rows)
    validations = ", ".join(f"{row['judge']} {validated(row)}" for row in rows)
    losses = ([row["judge"], *(f"{value:.3f}" for value in row["importance"].values())] for row in rows)
    by_level = (
        [
            row["judge"],
            *(f"{level['accuracy']:.1%}, {level['brier']:.3f}" for level in row["by_level"].values()),
        ]
        for row in rows
    )
    parts = [
        f"# {pipeline.settings.task}: every classifier",
        table(COLUMNS, map(cells, rows)),
        f"{count} test questions at {len(data.levels)} levels, 95 % bootstrap intervals by question. Trained on "
        f"{len(data.train.rows)} questions; thresholds for `{pipeline.settings.aim}` from "
        f"{len(data.calibration.rows)} of calibration; accuracy and cost are replayed on the test questions. Brier "
        f"score of the base rate: {base:.4f}. Calibration error in 15 equal-mass bins; a rule's output is a scale, "
        "not a probability. Targets: AUC at least 0.80, calibration error at most 0.05, Brier below the base rate's.",
        f"Lowest Brier score on calibration: **{best}** ({briers}).",
        f"Best run on calibration, cross-validated, with what judging costs: **{best_run(rows)}** ({validations}).",
        "AUC lost when an input comes from another reading:",
        table(("judge", "perplexity", "entropy", "level", "mentor_tokens"), losses),
        "Accuracy of the cascade, and Brier score, by difficulty:",
        table(["judge", *(f"level {level}" for level in rows[0]["by_level"])], by_level),
    ]
    return "\n\n".join(parts) + "\n"


def best_run(rows: Sequence[JudgeFigures]) -> str:
    """The judge whose cascade is most accurate on calibration questions that its thresholds were not chosen
    on.

    Of equal ones, the cheapest.
    """

    def merit(row: JudgeFigures) -> tuple[float, float]:
        return row["validation_accuracy"] or 0, -(row["validation_cost"] or 1)

    return str(max(rows, key=merit)["judge"])


def validated(row: JudgeFigures) -> str:
    """Accuracy and cost of the cross-validated cascade."""
    if row["validation_accuracy"] is None:
        return "misses the objective"
    return f"{row['validation_accuracy']:.1%} at {row['validation_cost']:.3f}"


def cells(row: JudgeFigures) -> list[str]:
    """One line of the first table."""

    def ranged(name: str) -> str:
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"

    return [
        row["judge"],
        *(ranged(name) for name in ("auc", "f1", "brier", "calibration_error")),
        f"{row['accuracy']:.1%} [{row['accuracy_interval'][0]:.1%}, {row['accuracy_interval'][1]:.1%}]",
        f"{row['cost_vs_mentor']:.3f}",
        *(f"{share:.1%}" for share in row["failures"].values()),
        f"{row['train s']:g}",
        f"{row['ms a reading']:.3f}",
        f"{row['FLOPs']:,.0f}",
        ", ".join(missed(row)) or "none",
    ]


def missed(row: JudgeFigures) -> list[str]:
    """Return the targets that a judge misses."""
    found = ["AUC"] if not row["auc"] >= AUC else []
    found += ["calibration"] if row["calibration_error"] > ERROR else []
    return found + (["Brier"] if row["brier"] >= row["brier_base_rate"] else [])


def plot(curves: dict[str, NDArray[np.float64]], labels: NDArray[np.bool_], path: Path) -> None:
    """Plot the reliability diagram: observed frequency against predicted probability, in 15 equal-mass bins."""
    plt = pyplot()
    columns = 5
    figure, grid = plt.subplots(
        -(-len(curves) // columns),
        columns,
        figsize=(12, 2.6 * -(-len(curves) // columns)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes, (kind, said) in zip(grid.flat, curves.items(), strict=False):
        bins = np.array_split(np.argsort(said, kind="stable"), 15)
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axes.plot(
            [said[part].mean() for part in bins], [labels[part].mean() for part in bins], "o-", markersize=3
        )
        axes.set(title=kind, xlim=(0, 1), ylim=(0, 1))
    for axes in list(grid.flat)[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("said")
    figure.supylabel("came true")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
