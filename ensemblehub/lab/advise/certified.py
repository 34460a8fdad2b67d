"""A certificate of the cheapest of several strategies: chosen on one half of the questions, tested on the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensemblehub.artifacts import hash_of
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.identity import identity
from ensemblehub.errors import ConfigError
from ensemblehub.lab.advise.choice import Evaluated
from ensemblehub.lab.advise.strategy import Changes, Strategy
from ensemblehub.lab.pipeline.cascade import Indices
from ensemblehub.lab.pipeline.certificate import Bools, Promise, Settings, certified, fewest, kept, needed
from ensemblehub.lab.pipeline.certificate_command import CalibrationShares, lines
from ensemblehub.lab.pipeline.certificate_path import safest_first
from ensemblehub.tandem.certificate import Certificate
from ensemblehub.tandem.drift import histogram

CHOOSING = slice(None, None, 2)  # the questions that choose a strategy and its thresholds; the others test it


@dataclass(frozen=True)
class CertifiedStrategy:
    """A strategy at a setting that keeps a promise against the mentor.

    Attributes:
        path: the settings that were tested, safest first, (S,).
        index: the certified one among all settings of the strategy.
        seen: what it brings on the questions of the test.
        tested: True for the questions of the test, (n,).
    """

    promise: Promise
    strategy: Strategy
    path: Indices
    index: int
    seen: CalibrationShares
    tested: Bools

    @property
    def changes(self) -> Changes:
        """What it changes in the configuration."""
        return self.strategy.settings[self.index][1]

    @property
    def name(self) -> str:
        """The strategy and its setting."""
        setting = self.strategy.settings[self.index][0]
        return f"{self.strategy.name}: {setting}" if setting else self.strategy.name

    @property
    def outcome(self) -> Evaluated:
        """What it brings on the questions of the test."""
        (setting, changes), known = self.strategy.settings[self.index], (self.tested, self.index)
        correct, cost = self.strategy.correct[known], self.strategy.cost[known]
        return Evaluated(self.strategy.name, self.strategy.single, setting, changes, correct, cost, correct)

    @property
    def judged(self) -> dict[str, list[int]]:
        """The scores of the questions of the test, where the strategy has any; see `Certificate`."""
        scores = self.strategy.scores
        return {} if scores is None else {"first": histogram(scores[self.tested, self.index].tolist())}

    def save(self, config: Config, keys: Sequence[str], folder: Path, scores: Mapping[str, list[int]]) -> str:
        """Write `certificate.json` for a configuration; returns what a user reads.

        Args:
            config: the recommended configuration.
            keys: of all questions.
            scores: see `Certificate`; of the questions of the test.
        """
        ensemble = AsyncEnsemble.from_config(config)
        threshold = config.aggregation.params.get("threshold")
        given = {} if threshold is None else {"threshold": threshold}
        certificate = Certificate(
            self.promise.loss,
            self.promise.max_loss,
            self.promise.confidence,
            int(self.tested.sum()),
            ensemble.aggregation.deciding().get("thresholds", given),
            vars(self.seen),
            identity(config, ensemble.aggregation, ensemble.engines),
            {
                "data": hash_of([key for key, tested in zip(keys, self.tested, strict=True) if tested]),
                "path": hash_of([self.strategy.name, *(self.strategy.settings[at][0] for at in self.path)]),
            },
            dict(scores),
            give_up=ensemble.aggregation.deciding()["settings"].get("give_up") or {},
        )
        certificate.save(folder)
        return "\n".join(lines(certificate, self.promise, self.name))


def check_enough(n: int, promise: Promise) -> None:
    """Check that every second of `n` questions could certify something.

    Raises:
        ConfigError: they could not, whatever the answers; says how many are needed.
    """
    if n < (least := 2 * fewest(promise)):
        raise ConfigError(
            f"{n:,} questions cannot certify {promise}, however few are lost: it takes {least:,} at least, of which "
            "every second is tested"
        )


def certify(found: Sequence[Strategy], subjects: Sequence[str], promise: Promise) -> CertifiedStrategy:
    """The cheapest strategy and setting that keep a promise against the first of `found`, the mentor alone.

    On the questions of `CHOOSING`, each strategy's settings become a path, and the strategy is taken that is
    cheapest at a setting which would pass the test there.  The other questions test that path.

    Args:
        found: with thresholds that come from `CHOOSING` alone.
        subjects: of all questions.

    Raises:
        ConfigError: nothing that costs less than the mentor keeps the promise on so many questions.
    """
    if len(subjects) < 2:
        raise ConfigError("a certificate needs questions to choose by and others to test: 2 at least")
    tested = np.ones(len(subjects), bool)
    tested[CHOOSING] = False
    mentor = found[0]
    choices = list[tuple[bool, float, float, int, Indices]]()
    for rank, strategy in enumerate(found[1:], start=1):
        known = _settings(mentor, strategy, ~tested)
        losses = known.losses(promise.loss)
        path = safest_first(losses.mean(axis=0), known.shares)
        saving = [at for at in path if known.shares[at] < 1]
        passing = set(path[: kept(losses[:, path], promise)]) & set(saving)
        if passing:
            choices.append((False, min(known.shares[at] for at in passing), 0.0, rank, path))
        else:  # the one that the fewest questions would certify, or else that loses least
            sizes = [needed(losses[:, at], promise) or math.inf for at in saving]
            lost = min((float(losses[:, at].mean()) for at in saving), default=math.inf)
            choices.append((True, min(sizes, default=math.inf), lost, rank, path))
    *_, rank, path = min(choices, key=lambda entry: entry[:4])
    strategy = found[rank]
    settings = _settings(mentor, strategy, tested, path)
    try:
        chosen = certified(settings, promise)
    except ConfigError as error:
        where = f"{strategy.name}, on every second of {len(subjects):,} questions"
        raise ConfigError(f"{error} (tested: {where})") from error
    seen = CalibrationShares.of(
        settings, chosen, [subject for subject, within in zip(subjects, tested, strict=True) if within]
    )
    return CertifiedStrategy(promise, strategy, path, int(path[chosen]), seen, tested)


def _settings(
    mentor: Strategy, strategy: Strategy, known: Bools, path: Indices | slice = slice(None)
) -> Settings:
    return Settings(
        mentor.correct[known, 0] > 0,
        mentor.cost[known, 0],
        strategy.correct[known][:, path] > 0,
        strategy.cost[known][:, path],
    )
