"""Shared by the token-level aggregations: every token is chosen by several models together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.base import Aggregation, Granularity, name_of
from ensemblehub.ensemble_methods.joint_answer import ChosenToken, JointAnswer
from ensemblehub.ensemble_methods.mixing import top_alternatives
from ensemblehub.ensemble_methods.raw_prompts import ids_of, tokenizer_of
from ensemblehub.ensemble_methods.roles import by_name
from ensemblehub.ensemble_methods.spelling import TokenMember
from ensemblehub.ensemble_methods.union_vocabulary import TINY, Probabilities
from ensemblehub.errors import ConfigError, RequestError
from ensemblehub.generators.base import Engine, Tokenizer
from ensemblehub.generators.text.detokenizer import TextFlow, alternatives
from ensemblehub.schema import (
    Capability,
    Event,
    Finish,
    Piece,
    Request,
    Sampling,
    Scored,
    ScoredToken,
    Text,
    Token,
    TokenIds,
)

_UNSUPPORTED = ("logit_bias", "stop_token_ids", "presence_penalty", "frequency_penalty", "repetition_penalty")


@dataclass(frozen=True)
class TokenLevel(Aggregation):
    """An aggregation that mixes next-token distributions.

    Attributes:
        weights: by engine name, 1 where omitted; an engine of weight 0 is not asked.
        every: ensemble every `token`, or only where the members' top tokens are `disputed`: the first engine
            drafts, the others read its draft in one pass.  Greedily, both write the same text, but for ties.
            `safe`: as `disputed`, but only where a drafted token is a whole token to every member and their
            mean probability of it is at most one half (SAFE, Yun et al., arXiv 2510.15346, without its
            sharpening); elsewhere the first engine's token stands, so let the best one be the first.
        draft: number of tokens drafted at a time.
    """

    granularity: ClassVar[Granularity] = "token"
    requires: ClassVar[frozenset[Capability]] = frozenset({"decode"})
    weights: Mapping[str, Annotated[float, Ge(0)]] = field(default_factory=dict)
    every: Literal["token", "disputed", "safe"] = "token"
    draft: Annotated[int, Ge(1)] = 8

    @abstractmethod
    def mix(self, members: Sequence[TokenMember], parts: Sequence[Probabilities]) -> Probabilities:
        """The distribution of the next token from those of `members`, all over the union's entries."""

    async def choose(self, answer: JointAnswer) -> list[ChosenToken]:
        """The next tokens, at least one."""
        if self.every == "disputed":
            return await answer.disputed(self.mix, self.draft)
        if self.every == "safe":
            return await answer.safe(self.mix, self.draft)
        return await answer.mixed(self.mix)

    def settled(self, members: Sequence[TokenMember], parts: Sequence[Probabilities]) -> Probabilities:
        """The distribution that the next token is drawn from when all members are asked."""
        return self.mix(members, parts) if len(parts) > 1 else parts[0]

    async def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        self._check_sampling(request.sampling)
        requests = dict.fromkeys(engines, request)
        with closing(JointAnswer(requests, self.weights, ledger.meter("answer"))) as answer:
            async with aclosing(self.written(answer)) as pieces:
                async for piece in pieces:
                    yield piece

    async def written(self, answer: JointAnswer) -> AsyncGenerator[Piece, None]:
        """The answer, from where it is."""
        flow = TextFlow(answer.union.vocabulary, answer.sampling.stop)
        written = 0
        finish: Finish | None = None
        while finish is None:
            for chosen in await self.choose(answer):
                written += 1
                tokens, finish = _delivered(answer, flow, chosen, written)
                if tokens or finish:
                    text = "".join(token.text for token in tokens)
                    yield Piece(text, chosen.author, "answer", tuple(tokens), finish)
                if finish is not None:
                    break

    async def log_likelihood(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger, context: int | None = None
    ) -> AsyncGenerator[Event | Scored, None]:
        """The log-likelihood is that of the mixture from which each token would have been drawn.

        Tokens are the first engine's.  A prompt is refused where another engine cannot be conditioned on the
        same bytes.
        """
        sampling = request.sampling
        self._check_sampling(replace(sampling, max_tokens=max(1, sampling.max_tokens)))
        asked = [engine for engine in engines if self.weights.get(engine.name, 1.0) > 0] or engines[:1]
        ids = ids_of(request.prompt, asked[0])
        if not ids:
            raise RequestError(f"{asked[0].name}: the prompt is empty")
        prompts = _first_tokens(request, ids[0], asked)
        with closing(JointAnswer(prompts, self.weights, ledger.meter("score"))) as answer:
            mixtures = await answer.forced(self.settled, ids[1:])
            yield _scored(answer, ids, mixtures, max(1, sampling.top_logprobs))
            if sampling.max_tokens:
                async with aclosing(self.written(answer)) as pieces:
                    async for piece in pieces:
                        yield piece

    def reader(self, engines: Sequence[Engine]) -> Engine:
        return next((engine for engine in engines if self.weights.get(engine.name, 1.0) > 0), engines[0])

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        for name in self.weights:
            by_name(engines, name, f"{name_of(self)}: weights")
        if not any(self.weights.get(engine.name, 1.0) for engine in engines):
            raise ConfigError(f"{name_of(self)}: all weights are 0")

    def _check_sampling(self, sampling: Sampling) -> None:
        if sampling.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, not {sampling.max_tokens}")
        for name in _UNSUPPORTED:
            if getattr(sampling, name) != getattr(Sampling(), name):
                raise RequestError(f"{name_of(self)} mixes vocabularies and takes no {name}")


def _delivered(
    answer: JointAnswer, flow: TextFlow, chosen: ChosenToken, written: int
) -> tuple[list[Token], Finish | None]:
    """The tokens that a chosen one completes, and whether the answer ends with it."""
    vocabulary = answer.union.vocabulary
    ended = chosen.entry in answer.ends
    text = "" if ended else flow.text(chosen.entry)
    index = chosen.entry if answer.union.shared else None
    top = alternatives(vocabulary, chosen.top)
    tokens = flow.push(Token(text, index, chosen.logprob, None, top, vocabulary.part(chosen.entry)))
    finish: Finish | None = None
    if ended or flow.stopped:
        finish = flow.finish
    elif written >= answer.sampling.max_tokens:
        finish = "length"
    return (tokens if finish is None else tokens + flow.flush()), finish


def _first_tokens(request: Request, first: int, engines: Sequence[Engine]) -> dict[Engine, Request]:
    """Requests whose prompt is the first engine's token `first`, as text where a tokenizer is another.

    Raises:
        RequestError: the token is a part of a character, which other engines cannot be given alone.
    """
    tokenizer = tokenizer_of(engines[0])
    ids, text = replace(request, prompt=TokenIds((first,))), None
    requests: dict[Engine, Request] = {}
    for engine in engines:
        if tokenizer_of(engine).fingerprint == tokenizer.fingerprint:
            requests[engine] = ids
            continue
        text = text or replace(request, prompt=Text(_start(first, tokenizer, engines[0])))
        requests[engine] = text
    return requests


def _start(index: int, tokenizer: Tokenizer, engine: Engine) -> str:
    """A first token for models with other tokenizers: its text, or nothing for a control token."""
    if index in tokenizer.controls:
        return ""
    text = tokenizer.decode([index])
    if "\ufffd" in text:
        raise RequestError(
            f"the first token of {engine.name!r} is a part of a character, which others cannot read alone"
        )
    return text


def _scored(
    answer: JointAnswer, ids: Sequence[int], mixtures: Sequence[tuple[int, Probabilities]], most: int
) -> Scored:
    """The first member's ids with their log-likelihoods in the mixtures, and `most` alternatives for each."""
    first = answer.members[0]
    decode, part = tokenizer_of(first.engine).decode, first.view.vocabulary.part
    tokens = [ScoredToken(decode(ids[:1]), ids[0], None, None, 0, 0, 0, part=part(ids[0]))]
    for index, (entry, mixture) in zip(ids[1:], mixtures, strict=True):
        logprob = float(np.log(max(mixture[entry], TINY)))
        top = alternatives(answer.union.vocabulary, top_alternatives(mixture, most))
        text = decode([index])
        tokens.append(ScoredToken(text, index, logprob, None, 0, 0, 0, top[0].logprob, top, part(index)))
    return Scored(tuple(tokens))
