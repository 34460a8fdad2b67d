"""From collected runs to what a judge's thresholds would have brought (`calibration.py`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub.cost import ModelInfo, Price
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.lab.pipeline.cascade import Fallback, Floats, Outcomes
from ensemblehub.lab.pipeline.records import Collected, Row, Run
from ensemblehub.tandem.judges import Judge, ReadingBatch

log = logging.getLogger(__name__)

TokenCount = Callable[[Run], float]
MENTOR_TOKENS: tuple[TokenCount, TokenCount] = (lambda run: run.mentor_read, lambda run: run.mentor_tokens)
INTERN_TOKENS: tuple[TokenCount, TokenCount] = (lambda run: run.intern_read, lambda run: run.intern_tokens)


def outcomes(
    data: Collected, judge: Judge, levels: list[str], fallback: Fallback, drafted: bool = False
) -> Outcomes:
    """Everything that thresholds for `levels` are chosen from; costs in FLOPs.

    Args:
        drafted: the first level is judged by what the criterion said of the draft when it was collected.
    """
    mentor, intern = data.info("mentor"), data.info("intern")
    tokens = table(data, levels, lambda run: run.mentor_tokens)
    read = table(data, levels, lambda run: run.intern_read)
    closing = np.array([[row.closing] for row in data.rows])
    # every checkpoint reads the template's end, and the token before it for the prediction of the next one
    again = np.vectorize(intern.flops)(read - closing - 1, read)
    shown = table(data, levels, lambda run: run.intern_read if run.cut is None else run.cut)
    again[:, :-1] *= np.diff(shown, axis=1) > 0  # but nothing where the insight is that of the level before
    last = np.vectorize(intern.flops)(read - 1, read)  # the answer needs the last token's logits once more
    earlier = np.cumsum(again, axis=1) - again
    found = Outcomes(
        probabilities=judge.probabilities_of(readings(data, levels)).reshape(len(data.rows), len(levels)),
        correct=table(data, levels, lambda run: run.correct).astype(bool),
        cost=table(data, levels, lambda run: run.flops(mentor, intern)),
        judging=earlier + last + judge.flops * np.arange(1 - drafted, len(levels) + 1 - drafted),
        reached=table(data, levels, lambda run: run.reading_flops(mentor, intern)),
        mentor_correct=np.array([row.runs["mentor"].correct for row in data.rows]),
        mentor_cost=np.array([row.runs["mentor"].flops(mentor, intern) for row in data.rows]),
        visited=np.concatenate([np.ones((len(tokens), 1), bool), np.diff(tokens, axis=1) > 0], axis=1),
        fallback=fallback,
        again=last,
    )
    if not drafted:
        return found
    said = [(draft.probability, draft.flops, draft.question_flops) for draft in data.drafts]
    found.probabilities[:, 0], asking, question = np.array(said).reshape(-1, 3).T
    writing = found.cost[:, 0] - np.where(question > 0, question, again[:, 0])
    return _with_drafts(found, writing, asking)


def _with_drafts(found: Outcomes, writing: Floats, asking: Floats) -> Outcomes:
    """Outcomes whose first level is a draft, from those whose first level is a reading of the question.

    Args:
        writing: what the draft costs beyond a checkpoint at the first level, (n,): all of it, since a
            judge wants predictions of the whole prompt, and reads again what the draft has read; but not
            the question, where the criterion has read that as a judge does.
        asking: what its criterion costs, (n,).
    """
    reached, judging = found.reached.copy(), found.judging + (writing + asking)[:, None]
    reached[:, 0], judging[:, 0] = found.cost[:, 0], asking
    again = None if found.again is None else found.again * (np.arange(found.again.shape[1]) > 0)
    return replace(found, reached=reached, judging=judging, drafted=True, again=again)


def prices(mentor: ModelInfo, intern: ModelInfo) -> tuple[Price, Price]:
    """Prices of both models; an intern without one, which runs here, costs no dollars.

    Raises:
        ConfigError: the mentor has no price, or one of 0.
    """
    if mentor.price is None or not is_charged(mentor):
        raise ConfigError("a budget in dollars needs the mentor's `price`")
    return mentor.price, intern.price or Price(0, 0)


def is_charged(info: ModelInfo) -> bool:
    """Whether a model has a price above 0."""
    return info.price is not None and bool(info.price.prompt or info.price.completion)


def check_sizes(pair: Iterable[Engine], counted: str, instead: str = "") -> None:
    """Check that the costs of models can be counted in FLOPs.

    Args:
        counted: who counts them.
        instead: what else would do.

    Raises:
        ConfigError: the size of a model is unknown.
    """
    for engine in pair:
        if not engine.info.active:
            raise ConfigError(
                f"{counted}, and the size of the model {engine.name!r} is unknown: set its `parameters`{instead}"
            )


def warn_of_unknown_sizes(pair: Iterable[Engine]) -> None:
    """Warn of each model whose costs cannot be counted in FLOPs."""
    for engine in pair:
        if not engine.info.active:
            log.warning(
                "the size of the model %r is unknown, and so are costs in FLOPs: set its `parameters` first",
                engine.name,
            )


def in_dollars(
    outcomes: Outcomes, data: Collected, levels: list[str], mentor: Price, intern: Price
) -> Outcomes:
    """The same with costs in US dollars: of every prompt that is sent and every token that is written.

    An intern with a price reads the whole prompt at every checkpoint; a provider's cache is not counted on.
    """

    def dollars(price: Price, read: NDArray[Any], written: NDArray[Any]) -> Floats:
        return np.asarray((price.prompt * read + price.completion * written) / 1e6)

    insight = dollars(mentor, *(table(data, levels, of) for of in MENTOR_TOKENS))
    answer = dollars(intern, *(table(data, levels, of) for of in INTERN_TOKENS))
    alone = dollars(mentor, *(table(data, ["mentor"], of)[:, 0] for of in MENTOR_TOKENS))
    judging = dollars(
        intern, np.cumsum(table(data, levels, INTERN_TOKENS[0]), axis=1), np.zeros(answer.shape)
    )
    found = replace(
        outcomes,
        cost=insight + answer,
        judging=judging,
        reached=insight,
        mentor_cost=alone,
        unit="usd",
        again=None,
    )
    if not outcomes.drafted:
        return found
    used = np.array(
        [(d.mentor_read, d.mentor_tokens, d.intern_read, d.intern_tokens) for d in data.drafts]
    ).reshape(-1, 4)
    writing = answer[:, 0] - judging[:, 0]
    return _with_drafts(found, writing, dollars(mentor, *used[:, :2].T) + dollars(intern, *used[:, 2:].T))


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
