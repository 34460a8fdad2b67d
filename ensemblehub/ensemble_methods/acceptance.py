"""Criteria by which a small model's draft is accepted as the answer, each a probability from 0 to 1.

The sources are named where they are used, in `cascade`; ours are the common scale and a judge over the
draft's own perplexity and entropy.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ensemblehub import builtin
from ensemblehub.answers.equality import equal_answers, final_answer
from ensemblehub.cost import UsageLedger, UsageMeter
from ensemblehub.ensemble_methods import question
from ensemblehub.ensemble_methods.base import name_of
from ensemblehub.ensemble_methods.candidates import Candidate, CompleteAnswers, geometric_mean, write_all
from ensemblehub.ensemble_methods.roles import by_name, require
from ensemblehub.ensemble_methods.templates import asked_about
from ensemblehub.errors import ConfigError, RequestError, did_you_mean, one_line
from ensemblehub.generators.base import Engine
from ensemblehub.registry import lookup
from ensemblehub.schema import Capability, Request, Sampling, Token
from ensemblehub.tandem.artifact import JudgeArtifact, resolve_judge
from ensemblehub.tandem.features import sequences
from ensemblehub.tandem.insights import DRAFT
from ensemblehub.tandem.judges import Reading

log = logging.getLogger(__name__)
NEVER = "never"
CRITERIA = ("logprob", "agreement", "ask", "entropy", "perplexity", "fixed", NEVER)
ENOUGH = {"tandem: draft": "thresholds", "best_of": ""}  # options that say what suffices, if not `threshold`
ALTERNATIVES = 10  # top tokens in which a word is looked for
WORDS = """{question}

Someone else answered the request above as follows:

{answer}

Is this answer correct and complete? Reply with yes or no."""


@dataclass(frozen=True)
class Trial:
    """A finished draft and whom a criterion can ask about it.

    Attributes:
        request: the user's request.
        draft: the complete answer of one engine.
        engines: all that take part.
    """

    request: Request
    draft: Candidate
    engines: Sequence[Engine]
    ledger: UsageLedger


class Acceptance(ABC):
    """The probability that a draft is good enough to be the answer.

    Attributes:
        requires: capabilities of the engine that writes the draft.
        threshold: the probability that suffices, where the strategy sets none.
        reads_tokens: whether it looks at the logprobs and entropies of the draft's tokens.
        reads_question: whether the draft's author reads the question for it.
    """

    requires: ClassVar[frozenset[Capability]] = frozenset()
    reads_tokens: ClassVar[bool] = False
    reads_question: bool = False
    threshold: float = 0.5

    @abstractmethod
    async def probability(self, trial: Trial) -> float:
        """The probability, 0 to 1.

        Raises:
            RequestError: the draft has nothing to be judged by.
        """

    @property
    def criterion(self) -> str:
        """What its number is, where that is not a trained judge's estimate."""
        return type(self).__name__

    @property
    def deciding(self) -> str:
        """What decides the probability beside its options; a certificate is bound to it."""
        return type(self).__qualname__

    def check(self, author: Engine, engines: Sequence[Engine], strategy: str) -> None:
        """Check engines before any weights load.

        Raises:
            CapabilityError, ConfigError: what is missing, in one line.
        """
        require(author, self.requires, strategy)


@dataclass(frozen=True)
class LogProbability(Acceptance):
    """`logprob`: exp of the mean logprob of the draft's tokens (their geometric mean probability).

    That of an empty draft is 0.
    """

    requires: ClassVar[frozenset[Capability]] = frozenset({"logprobs"})
    reads_tokens: ClassVar[bool] = True
    threshold: float = 0.9

    @property
    def criterion(self) -> str:
        return "logprob"

    async def probability(self, trial: Trial) -> float:
        tokens = trial.draft.tokens
        known = [token.logprob for token in tokens if token.logprob is not None]
        if not tokens:
            return 0.0
        if not known:
            raise RequestError(f"{trial.draft.name} gives no logprobs, and `accept: logprob` needs them")
        return geometric_mean(known)


@dataclass(frozen=True)
class Agreement(Acceptance):
    """`agreement:K`: the share of K more samples of the same engine that give the draft's final answer.

    Samples are drawn at the request's temperature, at 0.7 where that is 0. Answers are compared as in
    `vote`; a draft without a readable answer agrees with none.
    """

    samples: int
    threshold: float = 0.6

    @property
    def criterion(self) -> str:
        return "agreement"

    async def probability(self, trial: Trial) -> float:
        request, engine = trial.request, trial.draft.engine
        drawn = replace(
            request, sampling=replace(request.sampling, temperature=request.sampling.temperature or 0.7)
        )
        samples = [
            Candidate(engine, drawn.seeded("agreement", number), f"{engine.name}#{number}")
            for number in range(1, self.samples + 1)
        ]
        await write_all(samples, trial.ledger)
        for sample in samples:
            sample.discard(trial.ledger)
        agreeing = await asyncio.to_thread(self.agreeing, trial.draft, samples)  # comparing can take long
        return agreeing / self.samples

    def agreeing(self, draft: Candidate, samples: Sequence[Candidate]) -> int:
        """The number of samples with the draft's answer."""
        mine, others = final_answer(draft.reply), [final_answer(sample.reply) for sample in samples]
        known = [other for other in others if mine is not None and other is not None]
        return sum(equal_answers(mine or "", other) for other in known)


@dataclass(frozen=True)
class Asked(Acceptance):
    """`ask` or `ask:ENGINE`: P(yes) / (P(yes) + P(no)) of a model that is asked whether the answer is right.

    The model, by default the draft's author, is asked about the answer of someone else.  Only the first word
    of its reply is read, and both words among its top tokens; 0.5 where it is neither.
    """

    engine: str = ""

    @property
    def criterion(self) -> str:
        return "ask"

    async def probability(self, trial: Trial) -> float:
        asked = by_name(trial.engines, self.engine, "accept: ask") if self.engine else trial.draft.engine
        prompt = asked_about(trial.request.prompt, WORDS, "accept: ask", answer=trial.draft.reply)
        shares = await first_word(asked, Request(prompt), ("yes", "no"), trial.ledger.meter("judge"))
        total = sum(shares.values())
        return shares["yes"] / total if total else 0.5

    def check(self, author: Engine, engines: Sequence[Engine], strategy: str) -> None:
        if self.engine:
            by_name(engines, self.engine, f"{strategy}: accept: ask")


@dataclass(frozen=True)
class Judged(Acceptance):
    """`entropy:X`, `perplexity:X` or the folder of a trained judge, over the draft's own tokens.

    That of an empty draft is 0 where the judge reads it.

    A trained judge is made by `python -m ensemblehub.lab.judges.drafts`; one that was trained with the
    questions has the draft's author read the question, too.
    """

    artifact: JudgeArtifact
    reads_tokens: ClassVar[bool] = True

    @property
    def requires(self) -> frozenset[Capability]:  # type: ignore[override]
        return frozenset({"logprobs", "score"} if self.reads_question else {"logprobs"})

    @property
    def reads_question(self) -> bool:  # type: ignore[override]
        return self.artifact.judge.reads_question

    @property
    def threshold(self) -> float:  # type: ignore[override]
        return (self.artifact.thresholds or {}).get(DRAFT, 0.5)

    @property
    def criterion(self) -> str:
        return self.artifact.judge.criterion

    @property
    def deciding(self) -> str:
        return hashlib.sha256(self.artifact.weights).hexdigest()

    def check(self, author: Engine, engines: Sequence[Engine], strategy: str) -> None:
        super().check(author, engines, strategy)
        levels = self.artifact.levels
        if levels and DRAFT not in levels:
            made = "python -m ensemblehub.lab.judges.drafts"
            raise ConfigError(
                f"{strategy}: the judge judges insights, not drafts; `{made}` makes one that does"
            )
        for warning in self.artifact.check("", author.model, ""):
            log.warning(warning)

    async def probability(self, trial: Trial) -> float:
        judge, draft = self.artifact.judge, trial.draft
        if judge.reads and not draft.tokens:
            return 0.0
        reading = reading_of(draft.tokens) if judge.reads else Reading(0, 0)
        if judge.reads_question:
            tokens = await question.read(draft.engine, draft.request, trial.ledger.meter("judge"))
            reading = replace(reading, question=sequences(tokens))
        return judge.measured(reading, trial.ledger)


@dataclass(frozen=True)
class Never(Acceptance):
    """`never`: no draft is written."""

    async def probability(self, trial: Trial) -> float:
        return 0.0


@dataclass(frozen=True)
class AcceptedAnswers(CompleteAnswers):
    """Complete answers that a criterion may judge.

    Attributes:
        accept: the criterion (see `acceptance_named`); None: there is none.
    """

    accept: str | None = None

    @cached_property
    def criterion(self) -> Acceptance | None:
        """The configured criterion, if there is one."""
        return acceptance_named(self.accept, name_of(self)) if self.accept else None

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        if self.accept == NEVER:
            raise ConfigError(f"{name_of(self)}: `accept: {NEVER}` accepts no answer; leave `accept` out")
        if criterion := self.criterion:
            for engine in engines:
                criterion.check(engine, engines, name_of(self))

    def deciding(self) -> dict[str, Any]:
        return super().deciding() | ({"criterion": self.criterion.deciding} if self.criterion else {})


def acceptance_named(accept: str, strategy: str) -> Acceptance:
    """The criterion that a configuration names.

    Args:
        accept: `logprob`, `agreement:K`, `ask`, `ask:ENGINE`, `never`, a judge as for `tandem` (`entropy:X`,
            `perplexity:X`, a folder), or `package.module:Class` of an `Acceptance`, such as
            `ensemblehub.lab.tasks.shown_tests:ShownTests`.

    Raises:
        ConfigError: none of these, or a value that cannot be.
        ArtifactError: see `load_judge`.
    """
    kind, _, value = accept.partition(":")
    if accept == "logprob":
        return LogProbability()
    if accept == NEVER:
        return Never()
    if kind == "ask":
        return Asked(value)
    if kind == "agreement":
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"{strategy}: `accept: agreement:K` needs a number of samples, got {value!r}")
        return Agreement(int(value))
    if value.isidentifier() and value[0].isupper():
        made = lookup({}, accept, "criterion")
        if not isinstance(made, type) or not issubclass(made, Acceptance):
            raise ConfigError(f"{strategy}: accept: {accept} is no `Acceptance`")
        try:
            return made()
        except TypeError as error:  # options without a default
            raise ConfigError(f"{strategy}: accept: {accept}: {one_line(error)}") from error
    if not Path(builtin.resolve(accept)).exists():
        if kind in ("logprob", NEVER):
            option = ENOUGH.get(strategy, "threshold") if kind == "logprob" else ""
            belongs = f"; a number that suffices belongs in `{option}`" if option else ""
            raise ConfigError(f"{strategy}: accept: {kind} takes no value, got {value!r}{belongs}")
        if kind not in CRITERIA and "/" in accept:
            raise ConfigError(f"{strategy}: accept: there is no folder {accept!r} with a judge")
        if kind not in CRITERIA:
            unknown = did_you_mean(kind, CRITERIA, "criterion")
            raise ConfigError(f"{strategy}: accept: {unknown} (nor is there a folder {accept!r})")
    return Judged(resolve_judge(accept, [DRAFT]))


def reading_of(tokens: Sequence[Token]) -> Reading:
    """A draft as a judge of drafts reads it: its tokens, and their number in place of the mentor's.

    Raises:
        RequestError: there are tokens, and none has a logprob, or one has no entropy.
    """
    if not tokens:
        return Reading(0, 0)
    if all(token.logprob is None for token in tokens):
        raise RequestError("the engine that wrote the draft gives no logprobs, and the judge needs them")
    return Reading(0, len(tokens), *sequences(tokens))


async def first_word(
    engine: Engine, request: Request, words: Sequence[str], meter: UsageMeter
) -> dict[str, float]:
    """The probability of each of `words`, in lower case, as the first word of an engine's reply.

    They are looked for among the top tokens; an engine without logprobs gives its word the probability 1.
    One token is asked for, and four where that is blank.
    """
    for length in (1, 4):
        asked = replace(request, sampling=Sampling(max_tokens=length, top_logprobs=ALTERNATIVES))
        async with aclosing(engine.stream(asked, meter)) as pieces:
            reply = [piece async for piece in pieces]
        tokens = [token for piece in reply for token in piece.tokens or (Token(piece.text),)]
        if written := [token for token in tokens if token.text.strip()]:
            return _shares(written[0], words)
        if reply and reply[-1].finish == "stop":
            break  # it says nothing
    return dict.fromkeys(words, 0.0)


def _shares(token: Token, words: Sequence[str]) -> dict[str, float]:
    shares = dict.fromkeys(words, 0.0)
    written = [(token.text, token.logprob or 0.0)]
    for text, logprob in [(other.text, other.logprob) for other in token.top] or written:
        word = text.strip().strip(".,!*").lower()
        if word in shares:
            shares[word] += math.exp(logprob)
    return shares
