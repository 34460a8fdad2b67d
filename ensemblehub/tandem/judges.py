"""Judges: the probability that an insight is sufficient, from the intern's reading of it.

Inference is plain numpy; `lab/judges` trains judges, `artifact.py` saves and loads them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemblehub.cost import Cost, UsageLedger
from ensemblehub.errors import ConfigError, RequestError
from ensemblehub.tandem.curves import Curve
from ensemblehub.tandem.features import FEATURE_NAMES, features

Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Reading:
    """The intern's reading at one checkpoint.

    Attributes:
        level: index of the level, 0 being level 0 (before any mentor token).
        mentor_tokens: mentor tokens read so far.
        perplexity, entropy: per token (see `features.sequences`), shape (tokens,); a judge with
            `reads = False` looks at neither.
        question: the same two of the question's tokens, for a judge of drafts that reads them, too.
    """

    level: int
    mentor_tokens: int
    perplexity: Floats = field(default_factory=lambda: np.zeros(0))
    entropy: Floats = field(default_factory=lambda: np.zeros(0))
    question: tuple[Floats, Floats] | None = None

    @property
    def table(self) -> NDArray[np.float32]:
        """Its features in the precision of collected data, (16,), or (32,) with those of the question."""
        parts = [(self.perplexity, self.entropy), *([self.question] if self.question else [])]
        return np.concatenate([features(*part) for part in parts]).astype(np.float32)


@dataclass(frozen=True)
class ReadingBatch:
    """Many readings, one below the other.

    Attributes:
        table: their features, (n, 16 or 32); `sequences`: per reading (2, tokens), perplexity and entropy.
        level, mentor_tokens: as in `Reading`, (n,).
    """

    table: NDArray[Any]
    sequences: Sequence[NDArray[Any]]
    level: NDArray[Any]
    mentor_tokens: NDArray[Any]

    @classmethod
    def of(cls, reading: Reading) -> ReadingBatch:
        """Return a batch of one reading, in the precision of collected data."""
        sequence = np.stack([reading.perplexity, reading.entropy]).astype(np.float16)
        if not sequence.shape[1]:
            raise RequestError("there is nothing to judge: the question is empty")
        return cls(
            reading.table[None], [sequence], np.array([reading.level]), np.array([reading.mentor_tokens])
        )

    def part(self, at: NDArray[Any]) -> ReadingBatch:
        """Those at the given indices, or where a mask holds."""
        chosen = np.arange(len(self.level))[at]
        return ReadingBatch(
            self.table[chosen],
            [self.sequences[index] for index in chosen],
            self.level[chosen],
            self.mentor_tokens[chosen],
        )


SUFFICES = 0.5  # a rule's number at its limit


class Judge(ABC):
    """Predicts the probability that the intern answers correctly from its prompt.

    Attributes:
        kind: its name in the table `JUDGES` and in saved artifacts.
        reads: False if the intern need not read anything for it.
        reads_question: it judges a draft by the question's tokens as well.
        flops: FLOPs of one call, without the few per token that the features take.
        criterion: what its number is where it was not trained to be a probability.
    """

    kind: ClassVar[str]
    reads: ClassVar[bool] = True
    criterion: ClassVar[str] = ""
    reads_question: bool = False
    flops: float = 0.0

    @abstractmethod
    def probabilities_of(self, readings: ReadingBatch) -> Floats:
        """Probabilities, 0 to 1, that each reading's insight is sufficient, (n,)."""

    def probability(self, reading: Reading) -> float:
        """The probability of one reading.

        Raises:
            RequestError: the reading is empty, and this judge looks at it.
        """
        return float(self.probabilities_of(ReadingBatch.of(reading))[0])

    def measured(self, reading: Reading, ledger: UsageLedger) -> float:
        """The probability of one reading; its cost is added to the ledger."""
        started = time.perf_counter()
        probability = self.probability(reading)
        seconds = time.perf_counter() - started
        ledger.add("judge", "judge", Cost(decode_flops=self.flops, seconds=seconds, calls=1))
        return probability

    @abstractmethod
    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the judge's state: arrays, and options as JSON values."""

    @classmethod
    @abstractmethod
    def restored(cls, arrays: Arrays, options: Mapping[str, Any], /) -> Self:
        """The inverse of `state`.

        Raises:
            KeyError, TypeError, ValueError: something is missing or does not fit.
        """


class FeatureJudge(Judge):
    """A judge over the features: one function for many collected readings and for a live one."""

    @abstractmethod
    def probabilities(self, table: ArrayLike, level: ArrayLike, mentor_tokens: ArrayLike) -> Floats:
        """Probabilities of many readings at once.

        Args:
            table: features, shape (..., 16), or (..., 32) for one that reads the question beside a draft.
            level, mentor_tokens: as in `Reading`, shapes that broadcast to (...).

        Returns:
            float64 of shape (...).
        """

    def probabilities_of(self, readings: ReadingBatch) -> Floats:
        return self.probabilities(readings.table, readings.level, readings.mentor_tokens)

    def probability(self, reading: Reading) -> float:
        return float(self.probabilities(reading.table, reading.level, reading.mentor_tokens))


@dataclass(frozen=True)
class ScalarRule(FeatureJudge):
    """Sufficient when the mean of one sequence over the tokens read is at most `limit`; needs no labels.

    Its probability is `limit / (limit + mean)`: it falls as the mean rises and is 0.5 exactly where the mean
    is the limit, so that "probability ≥ 0.5" is "mean ≤ limit".  A threshold p stands for a limit of
    `limit · (1 / p − 1)` in the rule's own unit.
    """

    column: ClassVar[int]
    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0 or not np.isfinite(self.limit):
            raise ConfigError(f"judge `{self.kind}:X` needs a number above 0, got {self.limit}")

    def probabilities(self, table: ArrayLike, level: ArrayLike, mentor_tokens: ArrayLike) -> Floats:
        mean = np.asarray(table, np.float64)[..., self.column]
        return np.asarray(self.limit / (self.limit + mean))

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        return {}, {"limit": self.limit}

    @classmethod
    def restored(cls, _arrays: Arrays, options: Mapping[str, Any], /) -> Self:
        return cls(float(options["limit"]))


@dataclass(frozen=True)
class EntropyRule(ScalarRule):
    """Sufficient when the intern's mean entropy (nats) is at most `limit`."""

    kind: ClassVar[str] = "entropy"
    criterion: ClassVar[str] = "entropy"
    column: ClassVar[int] = FEATURE_NAMES.index("entropy_mean")


@dataclass(frozen=True)
class PerplexityRule(ScalarRule):
    """Sufficient when the intern's mean per-token perplexity (clipped at 1,000) is at most `limit`."""

    kind: ClassVar[str] = "perplexity"
    criterion: ClassVar[str] = "perplexity"
    column: ClassVar[int] = FEATURE_NAMES.index("perplexity_mean")


@dataclass(frozen=True)
class Fixed(Judge):
    """Answers at the level with index `level`, whatever was read.

    Its probability rises to 1 at that level, so that a mentor who ends earlier leaves the last checkpoint as
    the best one.
    """

    kind: ClassVar[str] = "fixed"
    criterion: ClassVar[str] = "fixed"
    reads: ClassVar[bool] = False
    level: int

    def probabilities_of(self, readings: ReadingBatch) -> Floats:
        return np.minimum(1.0, (readings.level + 1) / (self.level + 1))

    def probability(self, reading: Reading) -> float:
        return min(1.0, (reading.level + 1) / (self.level + 1))

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        return {}, {"level": self.level}

    @classmethod
    def restored(cls, _arrays: Arrays, options: Mapping[str, Any], /) -> Self:
        level = int(options["level"])
        if level < 0:
            raise ValueError(f"level {level}")
        return cls(level)


@dataclass(frozen=True)
class Inputs:
    """Inputs of a trained judge besides the 16 features of what it judges.

    Attributes:
        levels: number of levels it was trained on, level 0 included.
        level: add the level, one-hot.
        length: add the number of mentor tokens.
        log_perplexity: take sign(x)·log(1 + |x|) of the perplexity features, whose tails are heavy.
        question: add the 16 features of the question.
    """

    levels: int
    level: bool = True
    length: bool = True
    log_perplexity: bool = True
    question: bool = False

    @property
    def width(self) -> int:
        """Number of columns of `matrix`."""
        return len(FEATURE_NAMES) * (1 + self.question) + self.level * self.levels + self.length

    def matrix(self, table: ArrayLike, level: ArrayLike, mentor_tokens: ArrayLike) -> Floats:
        """Inputs before standardisation, (..., width); arguments as `FeatureJudge.probabilities`."""
        table = np.array(table, np.float64)
        if self.log_perplexity:
            heavy = np.arange(table.shape[-1]) % len(FEATURE_NAMES) < len(FEATURE_NAMES) // 2
            table[..., heavy] = np.sign(table[..., heavy]) * np.log1p(np.abs(table[..., heavy]))
        columns = [table]
        if self.level:
            index = np.broadcast_to(np.asarray(level), table.shape[:-1])
            columns.append((index[..., None] == np.arange(self.levels)).astype(np.float64))
        if self.length:
            columns.append(
                np.broadcast_to(np.asarray(mentor_tokens, np.float64), table.shape[:-1])[..., None]
            )
        return np.concatenate(columns, axis=-1)


class FeatureClassifier(FeatureJudge):
    """A trained judge over the features with a calibrated output."""

    inputs: Inputs
    curve: Curve

    @property
    def reads_question(self) -> bool:  # type: ignore[override]
        """Whether it was trained on drafts with their questions."""
        return self.inputs.question

    @abstractmethod
    def outputs(self, matrix: Floats) -> Floats:
        """Outputs before calibration, (...), for inputs of shape (..., width)."""

    def logits(self, readings: ReadingBatch) -> Floats:
        """Outputs before calibration, float64 of shape (n,)."""
        return self.outputs(self.inputs.matrix(readings.table, readings.level, readings.mentor_tokens))

    def probabilities(self, table: ArrayLike, level: ArrayLike, mentor_tokens: ArrayLike) -> Floats:
        return self.curve(self.outputs(self.inputs.matrix(table, level, mentor_tokens)))


@dataclass(frozen=True)
class Classifier(FeatureClassifier):
    """A trained network over standardised features with a calibrated output.

    Attributes:
        mean, std: of the inputs on the training questions, shape (width,).
        layers: (weight (out, in), bias (out,)) with ReLU in between; a single layer is logistic regression.
    """

    inputs: Inputs
    mean: Floats
    std: Floats
    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    curve: Curve = field(default_factory=Curve)

    @property
    def flops(self) -> float:  # type: ignore[override]
        """FLOPs of one call: two per weight, two per standardised input."""
        return float(2 * self.inputs.width + sum(2 * weight.size + bias.size for weight, bias in self.layers))

    def outputs(self, matrix: Floats) -> Floats:
        values = (matrix - self.mean) / self.std
        for weight, bias in self.layers[:-1]:
            values = np.maximum(values @ weight.T + bias, 0.0)
        weight, bias = self.layers[-1]
        return np.asarray((values @ weight.T + bias)[..., 0])

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        arrays: Arrays = {"mean": self.mean, "std": self.std, "curve": self.curve.knots}
        for index, (weight, bias) in enumerate(self.layers):
            arrays |= {f"{index}.weight": weight, f"{index}.bias": bias}
        return arrays, {"inputs": asdict(self.inputs), "layers": len(self.layers), "curve": self.curve.method}

    @classmethod
    def restored(cls, arrays: Arrays, options: Mapping[str, Any], /) -> Self:
        layers = tuple((arrays[f"{i}.weight"], arrays[f"{i}.bias"]) for i in range(options["layers"]))
        curve = Curve.restored(options["curve"], arrays["curve"])
        inputs = Inputs(**options["inputs"])
        widths = [inputs.width, *(len(bias) for _, bias in layers)]
        wanted = [*zip(widths[1:], widths[:-1], strict=True)]
        mean, std = arrays["mean"], arrays["std"]
        if (
            not layers
            or [weight.shape for weight, _ in layers] != wanted
            or any(b.ndim != 1 for _, b in layers)
        ):
            raise ValueError("layers that do not fit its inputs")
        if mean.shape != (inputs.width,) or std.shape != mean.shape or not (std > 0).all() or widths[-1] != 1:
            raise ValueError("means, deviations or outputs that do not fit its inputs")
        return cls(inputs, mean, std, layers, curve)


@dataclass(frozen=True)
class MLP(Classifier):
    """The paper's classifier: hidden layers of 64 and 32, ReLU, dropout 0.3 while training."""

    kind: ClassVar[str] = "mlp"


@dataclass(frozen=True)
class Logistic(Classifier):
    """Logistic regression."""

    kind: ClassVar[str] = "logistic"


JUDGES = {
    "attention": "ensemblehub.tandem.sequence_judges:AttentionJudge",
    "cnn": "ensemblehub.tandem.sequence_judges:CNN",
    "ensemble": "ensemblehub.tandem.stacking:Stack",
    "gb": "ensemblehub.tandem.trees:GradientBoosting",
    "gru": "ensemblehub.tandem.sequence_judges:GRU",
    "lstm": "ensemblehub.tandem.sequence_judges:LSTM",
    "mlp": "ensemblehub.tandem.judges:MLP",
    "logistic": "ensemblehub.tandem.judges:Logistic",
    "entropy": "ensemblehub.tandem.judges:EntropyRule",
    "perplexity": "ensemblehub.tandem.judges:PerplexityRule",
    "fixed": "ensemblehub.tandem.judges:Fixed",
}
