"""From collected runs to what a judge's thresholds would have brought (`tandem/calibration.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub.lab.pipeline.cascade import Fallback, Outcomes
from ensemblehub.lab.pipeline.records import Collected, Row, Run
from ensemblehub.tandem.judges import Judge, ReadingBatch


def outcomes(data: Collected, judge: Judge, levels: list[str], fallback: Fallback) -> Outcomes:
    """Everything that thresholds for `levels` are chosen from; costs in FLOPs."""
    mentor, intern = data.info("mentor"), data.info("intern")
    tokens = table(data, levels, lambda run: run.mentor_tokens)
    read = table(data, levels, lambda run: run.intern_read)
    closing = np.array([[row.closing] for row in data.rows])
    again = np.vectorize(intern.flops)(
        read - closing, read
    )  # the template's end, read anew at every checkpoint
    last = np.vectorize(intern.flops)(read - 1, read)  # the answer needs the last token's logits once more
    earlier = np.cumsum(again, axis=1) - again
    return Outcomes(
        probabilities=judge.probabilities_of(readings(data, levels)).reshape(len(data.rows), len(levels)),
        correct=table(data, levels, lambda run: run.correct).astype(bool),
        cost=table(data, levels, lambda run: run.flops(mentor, intern)),
        judging=earlier + last + judge.flops * np.arange(1, len(levels) + 1),
        reached=table(data, levels, lambda run: run.reading_flops(mentor, intern)),
        mentor_correct=np.array([row.runs["mentor"].correct for row in data.rows]),
        mentor_cost=np.array([row.runs["mentor"].flops(mentor, intern) for row in data.rows]),
        visited=np.concatenate([np.ones((len(tokens), 1), bool), np.diff(tokens, axis=1) > 0], axis=1),
        fallback=fallback,
    )


def readings(data: Collected, levels: list[str]) -> ReadingBatch:
    """Every collected reading at `levels`, question by question, (questions · levels)."""
    index = [list(data.levels).index(level) for level in levels]
    flat = [row[at] for row in data.sequences for at in index]
    tokens = table(data, levels, lambda run: run.mentor_tokens).reshape(-1)
    return ReadingBatch(
        data.features[:, index].reshape(len(flat), -1), flat, np.tile(np.array(index), len(data.rows)), tokens
    )


def table(data: Collected, levels: list[str], value: Callable[[Run], float]) -> NDArray[Any]:
    """One value of every run, (questions, levels)."""

    def line(row: Row) -> list[float]:
        return [value(row.runs[level]) for level in levels]

    return np.array([line(row) for row in data.rows])
