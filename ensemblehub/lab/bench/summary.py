"""The figures of cells: accuracy with its interval, and what an answer costs."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any, Literal

from ensemblehub.inference import clock
from ensemblehub.lab import metrics
from ensemblehub.lab.bench.rows import AnswerRow
from ensemblehub.terminal import flops_text

Summary = dict[str, Any]
CostUnit = Literal["flops", "usd"]
MEANS = ("read", "written", "flops", "cold_flops", "usd", "seconds", "wall")


def by_question(rows: Sequence[AnswerRow]) -> dict[str, list[AnswerRow]]:
    """The samples of every question, in order."""
    found: dict[str, list[AnswerRow]] = {}
    for row in rows:
        found.setdefault(row.question, []).append(row)
    return found


def shares(rows: Sequence[AnswerRow]) -> dict[str, float]:
    """Share of right answers, by question."""
    return {name: sum(row.correct for row in of) / len(of) for name, of in by_question(rows).items()}


def accuracy(rows: Sequence[AnswerRow]) -> tuple[float, float, float]:
    """Mean accuracy over questions, and its 95 % interval, clustered by question."""
    right = list(shares(rows).values())
    low, high = metrics.clustered_interval(right, round(len(rows) / max(1, len(right))))
    return sum(right) / len(right) if right else 0.0, low, high


def is_known(unit: CostUnit, rows: Sequence[AnswerRow], priced: Collection[str] = ()) -> bool:
    """Whether the cost of every call is known in a unit; where it is not of one, a row's is too low.

    Args:
        priced: Engines with a price, whose calls may cost nothing.
    """
    return all(
        line[unit] or not _computed(line) or (unit == "usd" and line["engine"] in priced)
        for row in rows
        for line in row.usage
    )


def _computed(line: dict[str, Any]) -> int:
    return int(line["prompt_tokens"] - line["cached_tokens"] + line["completion_tokens"])


def summary(name: str, rows: Sequence[AnswerRow], asked: int) -> Summary:
    """A line of `summary.json`: costs are means per answer, shares and accuracies are fractions;
    FLOPs that are unknown (of models behind APIs) are None.

    Args:
        asked: Number of answers when all are there.
    """
    questions = by_question(rows)
    value, low, high = accuracy(rows)
    mean = {key: sum(getattr(row, key) for row in rows) / len(rows) for key in MEANS}
    insights = [row for row in rows if row.insight]
    return {
        "method": name,
        "n": len(questions),
        "answers": len(rows),
        "asked": asked,
        "accuracy": value,
        "accuracy_low": low,
        "accuracy_high": high,
        **pass_rates(list(questions.values())),
        **{key: mean[key] for key in ("read", "written", "usd", "seconds", "wall")},
        "tflops": mean["cold_flops"] / 1e12 or None,
        "tflops_computed": mean["flops"] / 1e12,
        "engines": tokens_by_engine(rows),
        "truncated_share": sum(row.finish == "length" for row in rows) / len(rows),
        "unreadable_share": sum(row.graded is None for row in rows) / len(rows),
        "wrong_form_share": sum(not row.in_form for row in rows) / len(rows),
        **{f"{name}_share": sum(row.suites[name] for row in rows) / len(rows) for name in suites(rows)},
        "leak_share": sum(row.leak for row in insights) / len(insights) if insights else None,
        "errors": sum(bool(row.error) for row in rows),
        "levels": levels(rows),
    }


def suites(rows: Sequence[AnswerRow]) -> list[str]:
    """The sets of tests that every answer was run against; none where the benchmark has one set."""
    return [name for name in rows[0].suites if all(name in row.suites for row in rows)] if rows else []


def pass_rates(questions: Sequence[Sequence[AnswerRow]]) -> Summary:
    """`pass@k` for powers of two and the number of samples, where there are several."""
    most = min((len(rows) for rows in questions), default=1)
    counts = sorted({2**power for power in range(1, most.bit_length()) if 2**power <= most} | {most} - {1})
    return {
        f"pass@{k}": sum(metrics.pass_at(k, len(of), sum(row.correct for row in of)) for of in questions)
        / len(questions)
        for k in counts
    }


def tokens_by_engine(rows: Sequence[AnswerRow]) -> dict[str, dict[str, float]]:
    """Mean tokens computed and generated per answer, by `engine purpose`."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        for line in row.usage:
            entry = found.setdefault(f"{line['engine']} {line['purpose']}", {"read": 0.0, "written": 0.0})
            entry["read"] += (line["prompt_tokens"] - line["cached_tokens"]) / len(rows)
            entry["written"] += line["completion_tokens"] / len(rows)
    return found


def levels(rows: Sequence[AnswerRow]) -> dict[str, int]:
    """How often a judge stopped at each level, and how often it found none sufficient; empty without one."""
    found: dict[str, int] = {}
    for row in rows:
        if row.verdicts:
            last = row.verdicts[-1]
            name = last["level"] if last["sufficient"] else "none sufficient"
            found[name] = found.get(name, 0) + 1
    return found


class Tally:
    """What is known of a cell while it runs: accuracy, rate, cost and time left, as one line.

    Attributes:
        rows: The answers so far, those of earlier runs first.
    """

    def __init__(self, rows: Sequence[AnswerRow], total: int) -> None:
        self.rows = list(rows)
        self._kept = len(rows)
        self._total = total
        self.begin()

    def begin(self) -> None:
        """Start to measure the rate, once the models are loaded."""
        self._started = time.perf_counter()

    def __str__(self) -> str:
        if not self.rows:
            return ""
        value, low, high = accuracy(self.rows)
        flops, usd = sum(row.flops for row in self.rows), sum(row.usd for row in self.rows)
        parts = [f"{value:.1%} right [{100 * low:.1f}, {100 * high:.1f}]"]
        if new := len(self.rows) - self._kept:
            rate = new / (time.perf_counter() - self._started)
            left = self._total - len(self.rows)
            parts += [f"{rate:.3g} answers/s", *([f"{clock(left / rate)} left"] if left else [])]
        parts += [flops_text(flops)] if flops else []
        parts += [f"${usd:.4f}"] if usd else []
        return " · ".join(parts)
