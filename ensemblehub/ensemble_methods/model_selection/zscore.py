"""`zscore`: the models to which the question looks most familiar, each measured against itself.

The reference toolkit's statistical selection.  A model's perplexity and confidence on the question become
z-scores by its own mean and standard deviation over many questions, which `ensemblehub stats` measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ensemblehub import builtin
from ensemblehub.artifacts import content_of, parsed
from ensemblehub.concurrency import together
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods import question
from ensemblehub.ensemble_methods.base import Selection
from ensemblehub.ensemble_methods.roles import check_k
from ensemblehub.errors import ArtifactError, ConfigError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Request

COMMAND = "ensemblehub stats --config FILE --input_path QUESTIONS"
MOSTLY = 0.9  # share of models to which a question must look unusual for a third one to be asked


@dataclass(frozen=True)
class Stats:
    """A model's mean and standard deviation of perplexity and of confidence over questions.

    Attributes:
        n: number of questions measured.
        model: which model was measured (`Engine.model`); empty goes with any.
    """

    __pydantic_config__: ClassVar[Any] = {"allow_inf_nan": False}

    ppl_mean: float
    ppl_std: float
    conf_mean: float
    conf_std: float
    n: int = 0
    model: str = ""

    def z(self, reading: QuestionReading) -> float:
        """Return the familiarity of a question in standard deviations; higher is more familiar."""
        return (self.ppl_mean - reading.ppl) / self.ppl_std + (reading.conf - self.conf_mean) / self.conf_std


@dataclass(frozen=True)
class QuestionReading:
    """A question as one model reads it.

    Attributes:
        ppl: exp of the mean negative logprob of its tokens.
        conf: mean probability of the top token at each of their positions.
    """

    ppl: float
    conf: float


@dataclass(frozen=True)
class ZScore(Selection):
    """The k models with the highest z = (ppl_mean − ppl) / ppl_std + (conf − conf_mean) / conf_std.

    Use when the models were made for different kinds of questions.  Not when one is better at all of them:
    on 300 of built-in math it is no better than a random choice (50.0 % against 48.7 %; the mentor alone
    has 88.0 %).

    Attributes:
        k: how many take part; `auto`: 3 where the perplexity of at least 90 % of the models lies above their
            own mean, else 2, and never more than there are.
        stats: statistics by engine name; they go before those of the file.
        stats_file: the JSON that `ensemblehub stats` writes (`builtin:NAME` stands for one that ships).
    """

    requires: ClassVar[frozenset[Capability]] = frozenset({"score"})
    k: int | Literal["auto"] = "auto"
    stats: Mapping[str, Stats] = field(default_factory=dict)
    stats_file: str | None = None

    async def select(self, request: Request, engines: Sequence[Engine], ledger: UsageLedger) -> list[Engine]:
        readings = await together(read(engine, request, ledger) for engine in engines)
        known = [self.known[engine.name] for engine in engines]
        pairs = list(zip(known, readings, strict=True))
        scores = {engine.name: own.z(reading) for engine, (own, reading) in zip(engines, pairs, strict=True)}
        unusual = np.mean([reading.ppl > own.ppl_mean for own, reading in pairs])
        k = (3 if unusual >= MOSTLY else 2) if self.k == "auto" else self.k
        return sorted(engines, key=lambda engine: -scores[engine.name])[:k]

    def min_engines(self, engines: Sequence[Engine]) -> int:
        return min(2, len(engines)) if self.k == "auto" else self.k

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        if self.k != "auto":
            check_k(self.k, engines, "selection zscore")
        for engine in engines:
            stats = self.known.get(engine.name)
            if stats is None:
                raise ConfigError(f"selection zscore has no statistics of {engine.name!r}: run `{COMMAND}`")
            if stats.model not in ("", engine.model):
                raise ArtifactError(
                    f"the statistics of {engine.name!r} are of {stats.model}, not {engine.model}: "
                    f"run `{COMMAND}`"
                )
            if not (stats.ppl_std > 0 and stats.conf_std > 0):
                raise ConfigError(f"selection zscore: a standard deviation of {engine.name!r} is not above 0")

    @cached_property
    def known(self) -> dict[str, Stats]:
        """Statistics by engine name, from the file and the options."""
        return {**(load(Path(builtin.resolve(self.stats_file))) if self.stats_file else {}), **self.stats}


async def read(engine: Engine, request: Request, ledger: UsageLedger) -> QuestionReading:
    """Perplexity and confidence of the user's messages.

    Raises:
        RequestError: the engine does not give the probability of top tokens, or there is no question.
    """
    tokens = await question.read(engine, request, ledger.meter("select"))
    values = np.array([(token.logprob, token.best) for token in tokens], np.float64)  # None becomes NaN
    if np.isnan(values).any():
        raise RequestError(f"engine {engine.name!r} gives no top tokens, and selection zscore needs them")
    return QuestionReading(float(np.exp(-values[:, 0].mean())), float(np.exp(values[:, 1]).mean()))


def load(path: Path) -> dict[str, Stats]:
    """Read what `ensemblehub stats` wrote: statistics by engine name.

    Raises:
        ArtifactError: the file is missing or damaged; names the command that makes it.
    """
    if not path.exists():
        raise ArtifactError(f"cannot read the statistics {path} (there is no such file): run `{COMMAND}`")
    return parsed(dict[str, Stats], content_of(path, f"run `{COMMAND}`"), path, f"run `{COMMAND}` again")
