"""`learned`: the cheapest model that is predicted to answer correctly.

`ensemblehub train --selection` measures which model answers which question correctly and at what cost.  For
each model, a logistic regression predicts it from the smallest model's reading of the question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import FiniteFloat

from ensemblehub import builtin
from ensemblehub.artifacts import content_of, parsed, write_atomically
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods import question
from ensemblehub.ensemble_methods.base import Selection
from ensemblehub.ensemble_methods.roles import by_name, require
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Cost, Request
from ensemblehub.tandem.features import FEATURE_NAMES, sequences
from ensemblehub.tandem.judges import Logistic, Reading

COMMAND = "ensemblehub train --selection"
FORMAT, FILE = 1, "selection.json"


@dataclass(frozen=True)
class LearnedModel:
    """One model's predictor.

    Attributes:
        model: which one (`Engine.model`).
        cost: mean cost of its answers in the training data, in the artifact's unit.
        predictor: gives the probability that it answers correctly, from the reader's features of the
            question.
        threshold: the probability that suffices.
        metrics: its accuracy, and how good the predictor is on held-out questions.
    """

    model: str
    cost: float
    predictor: Logistic
    threshold: float = 0.5
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LearnedSelection:
    """The trained selection, on disk a folder with `selection.json`.

    Attributes:
        reader: name of the engine that reads the question.
        members: by engine name.
        data: what it was made from.
    """

    reader: str
    members: Mapping[str, LearnedModel]
    data: Mapping[str, Any] = field(default_factory=dict)

    def probabilities(self, reading: Reading) -> dict[str, float]:
        """The probability that each model answers correctly, the cheapest model first."""
        order = sorted(self.members, key=lambda name: self.members[name].cost)
        return {name: self.members[name].predictor.probability(reading) for name in order}

    def save(self, folder: Path) -> None:
        """Write the folder; the file appears whole."""
        members = {name: _written(member) for name, member in self.members.items()}
        record = {
            "format": FORMAT,
            "reader": self.reader,
            "features": list(FEATURE_NAMES),
            "members": members,
            "data": dict(self.data),
        }
        write_atomically(folder / FILE, json.dumps(record, indent=1) + "\n")


def _written(member: LearnedModel) -> dict[str, Any]:
    arrays, options = member.predictor.state()
    predictor = {"options": options, "arrays": {name: array.tolist() for name, array in arrays.items()}}
    return {**vars(member), "metrics": dict(member.metrics), "predictor": predictor}


@dataclass(frozen=True)
class _Predictor:
    options: dict[str, Any]
    arrays: dict[str, list[Any]]


@dataclass(frozen=True)
class _ModelRecord:
    model: str
    cost: FiniteFloat
    predictor: _Predictor
    threshold: FiniteFloat
    metrics: dict[str, Any]


@dataclass(frozen=True)
class _SelectionRecord:
    """`selection.json` as it is read; see `LearnedSelection`."""

    format: int
    reader: str
    features: list[str]
    members: dict[str, _ModelRecord]
    data: dict[str, Any]


def load(folder: Path) -> LearnedSelection:
    """Read a saved selection.

    Raises:
        ArtifactError: it is missing, damaged, or of another format; one line that names the folder.
    """
    if not (folder / FILE).exists():
        raise ArtifactError(f"no learned selection in {folder}: run `{COMMAND}`")
    named, again = f"the selection in {folder}", f"run `{COMMAND}` again"
    text = content_of(folder / FILE, again)
    if parsed(dict[str, Any], text, named, again).get("format") not in (None, FORMAT):
        raise ArtifactError(f"{named} was made by another version: {again}")
    record = parsed(_SelectionRecord, text, named, again)
    if record.features != list(FEATURE_NAMES):
        raise ArtifactError(f"{named} was made by another version: {again}")
    try:
        members = {name: _restored(member) for name, member in record.members.items()}
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ArtifactError(f"{named} is damaged ({' '.join(str(error).split())}): {again}") from error
    return LearnedSelection(record.reader, members, record.data)


def _restored(saved: _ModelRecord) -> LearnedModel:
    arrays = {name: np.array(values) for name, values in saved.predictor.arrays.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("weights that are not finite")
    predictor = Logistic.restored(arrays, saved.predictor.options)
    return LearnedModel(saved.model, saved.cost, predictor, saved.threshold, saved.metrics)


@dataclass(frozen=True)
class Learned(Selection):
    """Select the cheapest model whose predicted probability of a correct answer suffices, else the best one.

    Requires `score` of the model that reads the question, and an artifact that was trained for these
    models.

    Use when there are questions with answers to train on, which show what each model fails at.  Not when
    the questions do not show it: on 300 of built-in math it is no better than a random choice (49.0 %
    against 48.7 %; the mentor alone has 88.0 %).

    Attributes:
        artifact: folder that `ensemblehub train --selection` filled (`builtin:NAME` stands for one that
            ships).
        threshold: the probability that suffices, for every model; by default each model's own, chosen on
            calibration data for `experiment.aim`.
    """

    artifact: str = ""
    threshold: float | None = None

    async def select(self, request: Request, engines: Sequence[Engine], ledger: UsageLedger) -> list[Engine]:
        reader = by_name(engines, self.made.reader, "selection learned: reader")
        tokens = await question.read(reader, request, ledger.meter("select"))
        said = self.made.probabilities(Reading(0, len(tokens), *sequences(tokens)))
        ledger.add("selection", "select", Cost(decode_flops=self.flops, calls=1))
        there = {engine.name: engine for engine in engines}
        known = {name: probability for name, probability in said.items() if name in there}
        enough = [name for name, probability in known.items() if probability >= self.limit(name)]
        return [there[enough[0] if enough else max(known, key=lambda name: known[name])]]

    def limit(self, name: str) -> float:
        """The probability that suffices for one model."""
        return self.made.members[name].threshold if self.threshold is None else self.threshold

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        reader = by_name(engines, self.made.reader, "selection learned: reader")
        require(reader, frozenset({"score"}), "selection learned (reader)")
        for engine in engines:
            member = self.made.members.get(engine.name)
            if member is None or member.model != engine.model:
                made = member.model if member else ", ".join(self.made.members)
                raise ArtifactError(
                    f"the selection in {self.artifact} was made for {made}, "
                    f"not {engine.name!r} ({engine.model}): run `{COMMAND}`"
                )

    @property
    def flops(self) -> float:
        """FLOPs of all predictors."""
        return sum(member.predictor.flops for member in self.made.members.values())

    @cached_property
    def made(self) -> LearnedSelection:
        """The artifact."""
        if not self.artifact:
            raise ConfigError(f"selection learned needs `artifact: FOLDER`, which `{COMMAND}` fills")
        return load(Path(builtin.resolve(self.artifact)))
