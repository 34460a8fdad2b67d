"""Writing one answer token by token with several models, whatever their tokenizers.

An answer is bytes.  Each member holds it as ids of its own: a token that it has is appended; where another
member's token was chosen, it tokenises the end of the answer anew, and its decoder drops and appends what
changed.  A member that cannot spell the answer yet (a character is not complete) sits out until it can.
"""

from __future__ import annotations

import asyncio
import random
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar, cast

import numpy as np

from ensemblehub.cost import UsageLedger, UsageMeter
from ensemblehub.ensemble_methods.base import Aggregation, Granularity, name_of
from ensemblehub.ensemble_methods.mixing import choose
from ensemblehub.ensemble_methods.raw_prompts import ids_of, tokenizer_of
from ensemblehub.ensemble_methods.roles import by_name
from ensemblehub.ensemble_methods.union_vocabulary import Probabilities, Union, View, union_of
from ensemblehub.errors import ConfigError, RequestError
from ensemblehub.generators.base import Decoder, Engine, Tokenizer
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

_FRESH = 16  # ids at the end of an answer that are tokenised anew at least, so that words are whole
_LONG = 64  # ids after which any character will do as a place to start from
_FORCED = 64  # tokens of a prompt that are read at a time when each one's distribution is wanted
_TINY = np.finfo(np.float32).tiny

T = TypeVar("T")
Mix = Callable[[Sequence["Member"], Sequence[Probabilities]], Probabilities]


@dataclass(frozen=True)
class Chosen:
    """The next token: its entry in the union, its logprob where it was chosen, who chose it, and the likeliest."""

    entry: int
    logprob: float
    author: str
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TokenLevel(Aggregation):
    """What all token-level methods share.

    Attributes:
        weights: by engine name, 1 where omitted; an engine of weight 0 is not asked.
        every: ensemble every `token`, or only where the members' likeliest tokens are `disputed`: the first
            engine drafts, the others read its draft in one pass (as in SAFE, arXiv 2510.15346; Yun et al.).
            Greedily, both write the same text, but for ties.
        draft: tokens drafted at a time.
    """

    granularity: ClassVar[Granularity] = "token"
    requires: ClassVar[frozenset[Capability]] = frozenset({"decode"})
    weights: Mapping[str, float] = field(default_factory=dict)
    every: Literal["token", "disputed"] = "token"
    draft: int = 8

    @abstractmethod
    def mix(self, members: Sequence[Member], parts: Sequence[Probabilities]) -> Probabilities:
        """The distribution of the next token from those of `members`, all over the union's entries."""

    async def choose(self, answer: Answer) -> list[Chosen]:
        """The next tokens, at least one."""
        return await (
            answer.disputed(self.mix, self.draft) if self.every == "disputed" else answer.mixed(self.mix)
        )

    def settled(self, members: Sequence[Member], parts: Sequence[Probabilities]) -> Probabilities:
        """The distribution that the next token is drawn from when all members are asked."""
        return self.mix(members, parts) if len(parts) > 1 else parts[0]

    async def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        self._refuse(request.sampling)
        answer = Answer(dict.fromkeys(engines, request), self.weights, ledger.meter("answer"))
        try:
            async for piece in self.written(answer):
                yield piece
        finally:
            answer.close()

    async def written(self, answer: Answer) -> AsyncGenerator[Piece, None]:
        """The answer, from where it is."""
        vocabulary, sampling = answer.union.vocabulary, answer.sampling
        flow, finish, written = TextFlow(vocabulary, sampling.stop), cast(Finish | None, None), 0
        while finish is None:
            for chosen in await self.choose(answer):
                ended = chosen.entry in answer.ends
                text = "" if ended else flow.text(chosen.entry)
                index = chosen.entry if answer.union.shared else None
                part, top = vocabulary.part(chosen.entry), alternatives(vocabulary, chosen.top)
                tokens = flow.push(Token(text, index, chosen.logprob, None, top, part))
                written += 1
                if ended or flow.stopped:
                    finish = "stop"
                elif written >= sampling.max_tokens:
                    finish = "length"
                if finish is not None:
                    tokens += flow.flush()
                if tokens or finish:
                    yield Piece(
                        "".join(token.text for token in tokens),
                        chosen.author,
                        "answer",
                        tuple(tokens),
                        finish,
                    )
                if finish is not None:
                    break

    async def log_likelihood(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger, context: int | None = None
    ) -> AsyncGenerator[Event | Scored, None]:
        """The log-likelihood is that of the mixture from which each token would have been drawn.

        Tokens are the first engine's.  Every other one is conditioned on the same bytes, or the prompt is refused.
        """
        most = request.sampling.top_logprobs
        self._refuse(replace(request.sampling, max_tokens=max(1, request.sampling.max_tokens)))
        asked = [engine for engine in engines if self.weights.get(engine.name, 1.0) > 0] or engines[:1]
        ids, tokenizer = ids_of(request.prompt, asked[0]), tokenizer_of(asked[0])
        if not ids:
            raise RequestError(f"{asked[0].name}: the prompt is empty")
        head = replace(request, prompt=TokenIds(tuple(ids[:1])))
        alike = [tokenizer_of(engine).fingerprint == tokenizer.fingerprint for engine in asked]
        words = head if all(alike) else replace(request, prompt=Text(_start(ids[0], tokenizer, asked[0])))
        prompts = {engine: head if same else words for engine, same in zip(asked, alike, strict=True)}
        answer = Answer(prompts, self.weights, ledger.meter("score"))
        try:
            parts = await answer.forced(self.settled, ids[1:])
            own = answer.members[0].view.vocabulary
            tokens = [
                ScoredToken(tokenizer.decode(ids[:1]), ids[0], None, None, 0, 0, 0, part=own.part(ids[0]))
            ]
            for index, (entry, mixture) in zip(ids[1:], parts, strict=True):
                logprob = float(np.log(max(mixture[entry], _TINY)))
                top = alternatives(answer.union.vocabulary, likeliest(mixture, max(1, most)))
                text, part = tokenizer.decode([index]), own.part(index)
                tokens.append(ScoredToken(text, index, logprob, None, 0, 0, 0, top[0].logprob, top, part))
            yield Scored(tuple(tokens))
            if request.sampling.max_tokens:
                async for piece in self.written(answer):
                    yield piece
        finally:
            answer.close()

    def reader(self, engines: Sequence[Engine]) -> Engine:
        return next((engine for engine in engines if self.weights.get(engine.name, 1.0) > 0), engines[0])

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        for name, weight in self.weights.items():
            by_name(engines, name, f"{name_of(self)}: weights")
            if weight < 0:
                raise ConfigError(f"{name_of(self)}: the weight of {name!r} is below 0")
        if not any(self.weights.get(engine.name, 1.0) for engine in engines):
            raise ConfigError(f"{name_of(self)}: all weights are 0")
        if self.draft < 1:
            raise ConfigError(f"{name_of(self)}: draft must be at least 1, not {self.draft}")

    def _refuse(self, sampling: Sampling) -> None:
        if sampling.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, not {sampling.max_tokens}")
        own = ("logit_bias", "stop_token_ids", "presence_penalty", "frequency_penalty", "repetition_penalty")
        for name in own:
            if getattr(sampling, name) != getattr(Sampling(), name):
                raise RequestError(f"{name_of(self)} mixes vocabularies and takes no {name}")


class Spelling:
    """The answer in one member's ids.

    Attributes:
        ids: of the answer.
        spelled: number of bytes they spell, of the `whole` answer's.
        stable: so many of the ids have stayed since it was set last.
    """

    def __init__(self, union: Union, view: View, encode: Callable[[str], list[int]]) -> None:
        self._union, self._view, self._encode = union, view, encode
        self.ids: list[int] = []
        self.spelled = self.whole = self.stable = 0

    @property
    def complete(self) -> bool:
        """Whether the ids spell all of the answer."""
        return self.spelled == self.whole

    def take(self, entry: int, text: bytes) -> int:
        """Go on with an entry of the union, with which the answer is `text`; returns how many old ids stay."""
        size, index = len(self._union.vocabulary.tokens[entry]), self._view.id_of(entry)
        kept = len(self.ids)
        if self.complete and index is not None:
            self.ids.append(index)
            self.spelled += size
        else:
            kept = self._respell(text)
        self.whole += size
        return kept

    def copy(self) -> Spelling:
        """Another that goes its own way."""
        other = Spelling(self._union, self._view, self._encode)
        other.ids, other.spelled, other.whole = self.ids[:], self.spelled, self.whole
        return other

    def forget(self, count: int, size: int) -> None:
        """Take back the last `count` ids, of `size` bytes."""
        del self.ids[len(self.ids) - count :]
        self.spelled, self.whole = self.spelled - size, self.whole - size
        self.stable = min(self.stable, len(self.ids))

    def _respell(self, text: bytes) -> int:
        start, offset = self._start()
        fresh, old = self._view.spell(text[offset:], self._encode), self.ids[start:]
        same = next(
            (at for at, (a, b) in enumerate(zip(fresh, old, strict=False)) if a != b),
            min(len(fresh), len(old)),
        )
        kept = start + same
        self.ids[kept:] = fresh[same:]
        self.spelled = offset + self._view.length(fresh)
        self.stable = min(self.stable, kept)
        return kept

    def _start(self) -> tuple[int, int]:
        """From which id, and which byte, to tokenise anew: some words back, where a word starts."""
        tokens, offset, count = self._view.vocabulary.tokens, self.spelled, len(self.ids)
        for start in range(count - 1, 0, -1):
            token = tokens[self.ids[start]]
            offset -= len(token)
            word = token[:1] == b" " and not tokens[self.ids[start - 1]][-1:].isspace()
            if count - start >= (_FRESH if word else _LONG) and token[:1].isascii():
                return start, offset
        return 0, 0


class Member:
    """One model that takes part in one answer."""

    def __init__(self, engine: Engine, decoder: Decoder, weight: float, union: Union, view: View) -> None:
        self.engine, self.decoder, self.weight, self.union, self.view = engine, decoder, weight, union, view
        self.spelling = Spelling(union, view, decoder.encode)
        self._held: list[int] = []  # ids that the decoder holds after the prompt

    async def step(self) -> Any:
        """Logprobs of the next token, (vocabulary,)."""
        append, drop = self._change(self.spelling.ids)
        return (await self.decoder.step(append, drop)).logprobs

    async def read(self, ids: list[int], states: Sequence[int]) -> list[Any]:
        """Logprobs after the first n of `ids`, which begin with the answer's, for every n of `states`."""
        append, drop = self._change(ids[: states[-1]], states[0])
        known = states[-1] - len(append)
        first = [await self.decoder.step((), drop)] if states[0] == known else []
        after = await self.decoder.read(append, 0 if first else drop) if append else []
        lines = dict(enumerate([*first, *after], known if first else known + 1))
        return [lines[state].logprobs for state in states]

    def first_entry(self, entry: int) -> int | None:
        """The entry of the first token by which this member would write an entry that it lacks."""
        if entry not in self.view.heads:
            ids = self.view.spell(self.union.vocabulary.tokens[entry], self.decoder.encode)
            token = self.view.vocabulary.tokens[ids[0]] if ids else b""
            self.view.heads[entry] = self.union.index.get(token)
        return self.view.heads[entry]

    def _change(self, ids: list[int], most: int | None = None) -> tuple[list[int], int]:
        """What to append and drop so that the decoder holds `ids`; at most the first `most` are left as they are."""
        limit = min(len(ids) if most is None else most, len(self._held))
        same = min(self.spelling.stable, limit)
        while same < limit and ids[same] == self._held[same]:
            same += 1
        append, drop = ids[same:], len(self._held) - same
        self._held[same:] = append
        self.spelling.stable = len(self.spelling.ids)
        return append, drop


class Answer:
    """One answer as it is written: the members, their union, and what was chosen so far.

    Attributes:
        ends: entries that end the answer.
        written: tokens written, each an entry of the union.
    """

    def __init__(
        self, requests: Mapping[Engine, Request], weights: Mapping[str, float], meter: UsageMeter
    ) -> None:
        asked = [engine for engine in requests if weights.get(engine.name, 1.0) > 0]
        if not asked:
            raise RequestError("all engines that take part have weight 0")
        self.sampling, self.written = _fitted(asked, requests), 0
        self._text, self._uniforms = b"", list[float]()
        self._random = random.Random(self.sampling.seed)
        decoders = [engine.decoder(requests[engine], meter) for engine in asked]
        vocabularies = [decoder.vocabulary for decoder in decoders]
        sizes = [
            engine.info.vocabulary or len(one.tokens) for engine, one in zip(asked, vocabularies, strict=True)
        ]
        self.union = union_of(vocabularies, sizes)
        own = [weights.get(engine.name, 1.0) for engine in asked]
        parts = zip(asked, decoders, own, self.union.views, strict=True)
        self.members = [Member(engine, one, weight, self.union, view) for engine, one, weight, view in parts]
        past_end = self.sampling.ignore_eos and self.union.shared  # elsewhere nothing can follow the end
        self.ends = frozenset() if past_end else self.union.vocabulary.end

    def close(self) -> None:
        """Close every decoder."""
        for member in self.members:
            member.decoder.close()

    async def mixed(self, mix: Mix) -> list[Chosen]:
        """The next token, from the mixture of all members."""
        able = self._able(self.members)
        return [self._settle(self._pick(mix, able, await self._distributions(able)))]

    async def gated(self, mix: Mix, gate: Member, threshold: float) -> list[Chosen]:
        """The next token: the gate's own while its likeliest has at least `threshold`, else from the mixture."""
        if not gate.spelling.complete:
            return await self.mixed(mix)
        (own,) = await self._distributions([gate])
        if own.max() >= threshold:
            return [self._settle(self._pick(mix, [gate], [own]))]
        others = self._able([member for member in self.members if member is not gate])
        return [self._settle(self._pick(mix, [gate, *others], [own, *await self._distributions(others)]))]

    async def forced(self, mix: Mix, ids: Sequence[int]) -> list[tuple[int, Probabilities]]:
        """Go on with ids of the first member: the entry of each, and the mixture it would have been drawn from.

        Raises:
            RequestError: another member cannot be conditioned on exactly the bytes before a token.
        """
        found: list[tuple[int, Probabilities]] = []
        entries = [self._entry(index) for index in ids]
        while entries:
            drafts = [Chosen(entry, 0.0, "") for entry in entries[:_FORCED]]
            plans = [self._plan(member, drafts) for member in self.members]
            reach = min(len(states) for _, states, _ in plans)
            lines = await _together(
                [
                    member.read(own, states[:reach])
                    for member, (own, states, _) in zip(self.members, plans, strict=True)
                ]
            )
            for at in range(reach):
                for member, (_, _, complete) in zip(self.members, plans, strict=True):
                    if not complete[at]:
                        raise RequestError(
                            f"{member.engine.name} cannot cover the bytes before token {len(found) + 1}"
                        )
                parts = [
                    self._mapped(member, own[at]) for member, own in zip(self.members, lines, strict=True)
                ]
                found.append((entries[at], mix(self.members, parts)))
                self._settle(drafts[at], given=True)
            del entries[:reach]
        self.written = 0
        for member in self.members:
            member.decoder.given = len(member.spelling.ids)
        return found

    def _entry(self, index: int) -> int:
        """The entry of an id of the first member."""
        if self.union.shared:
            return index
        first = self.members[0]
        entry = self.union.index.get(first.view.vocabulary.tokens[index])
        if entry is None:
            name = first.engine.name
            raise RequestError(
                f"token id {index} is a control token of {name!r}, which means nothing to the others"
            )
        return entry

    async def disputed(self, mix: Mix, most: int) -> list[Chosen]:
        """The next tokens: the first member drafts up to `most`, and the others read them.

        A drafted token stands where the likeliest entry of every member is the same; elsewhere the next token is
        chosen from their mixture, and the draft goes on behind it only if it says the same.  A draft is read as
        far as the others can go on appending; members that cannot spell the answer so far take no part.
        """
        drafter, *others = self.members
        if not others or not drafter.spelling.complete:
            return await self.mixed(mix)
        drafts, own = await self._drafted(mix, min(most, self.sampling.max_tokens - self.written))
        plans = [self._plan(member, drafts) for member in others]
        reach = min(len(states) for _, states, _ in plans)
        lines = await _together(
            [member.read(ids, states[:reach]) for member, (ids, states, _) in zip(others, plans, strict=True)]
        )
        accepted: list[Chosen] = []
        for at in range(reach):
            able = [index for index, (_, _, complete) in enumerate(plans) if complete[at]]
            parts = [own[at], *(self._mapped(others[index], lines[index][at]) for index in able)]
            agreed = len({int(part.argmax()) for part in parts}) == 1
            choice = (
                drafts[at]
                if agreed
                else self._pick(mix, [drafter, *(others[index] for index in able)], parts)
            )
            accepted.append(self._settle(choice))
            if choice.entry != drafts[at].entry:
                break
        return accepted

    async def _drafted(self, mix: Mix, most: int) -> tuple[list[Chosen], list[Probabilities]]:
        """What the first member would write, and its distributions."""
        drafter, text, written = self.members[0], self._text, self.written
        drafts, parts = list[Chosen](), list[Probabilities]()
        while len(drafts) < most and not (drafts and drafts[-1].entry in self.ends):
            parts += await self._distributions([drafter])
            drafts.append(self._pick(mix, [drafter], parts[-1:]))
            self.written += 1  # for the while
            text += self.union.vocabulary.tokens[drafts[-1].entry]
            drafter.spelling.take(drafts[-1].entry, text)
        drafter.spelling.forget(len(drafts), len(text) - len(self._text))
        self.written = written
        return drafts, parts

    def _plan(self, member: Member, drafts: Sequence[Chosen]) -> tuple[list[int], list[int], list[bool]]:
        """The ids by which a member reads a draft; for each token, after how many it comes and if all is spelled."""
        spelling, text = member.spelling.copy(), self._text
        ids, states, complete = spelling.ids[:], [len(spelling.ids)], [spelling.complete]
        for draft in drafts[:-1]:
            text += self.union.vocabulary.tokens[draft.entry]
            if spelling.take(draft.entry, text) < len(ids):
                break
            ids += spelling.ids[len(ids) :]
            states.append(len(ids))
            complete.append(spelling.complete)
        return ids, states, complete

    def _able(self, members: Sequence[Member]) -> list[Member]:
        return [member for member in members if member.spelling.complete]

    async def _distributions(self, members: Sequence[Member]) -> list[Probabilities]:
        lines = await _together([member.step() for member in members])
        return [self._mapped(member, line) for member, line in zip(members, lines, strict=True)]

    def _mapped(self, member: Member, logprobs: Any) -> Probabilities:
        early = self.written < self.sampling.min_tokens or (
            self.sampling.ignore_eos and not self.union.shared
        )
        return member.view.probabilities(logprobs, self.union.vocabulary.end if early else ())

    def _pick(self, mix: Mix, members: Sequence[Member], parts: Sequence[Probabilities]) -> Chosen:
        part = mix(members, parts) if len(parts) > 1 else parts[0]
        entry = choose(part, self.sampling, self._uniform())
        author = "+".join(member.engine.name for member in members)
        return Chosen(entry, float(np.log(part[entry])), author, likeliest(part, self.sampling.top_logprobs))

    def _uniform(self) -> float:
        """The random number of the next token, the same whoever chooses it."""
        while len(self._uniforms) <= self.written:
            self._uniforms.append(self._random.random())
        return self._uniforms[self.written]

    def _settle(self, chosen: Chosen, given: bool = False) -> Chosen:
        """Go on with a token; one that is given may be an end of text, and the text goes on behind it."""
        self.written += 1
        if given or chosen.entry not in self.ends:
            self._text += self.union.vocabulary.tokens[chosen.entry]
            for member in self.members:
                member.spelling.take(chosen.entry, self._text)
        return chosen


def _start(index: int, tokenizer: Tokenizer, engine: Engine) -> str:
    """The first token for models with other tokenizers: its text, or for a control token the start of a text.

    Raises:
        RequestError: it is a part of a character, which they cannot be given alone.
    """
    if index in tokenizer.controls:
        return ""
    text = tokenizer.decode([index])
    if "\ufffd" in text:
        raise RequestError(
            f"the first token of {engine.name!r} is a part of a character, which others cannot read alone"
        )
    return text


def likeliest(part: Probabilities, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest entries and their logprobs, most likely first; those without mass are left out."""
    if not count:
        return ()
    few = np.argpartition(part, -count)[-count:] if count < len(part) else np.arange(len(part))
    ordered = few[np.argsort(-part[few], kind="stable")]
    return tuple((int(entry), float(np.log(part[entry]))) for entry in ordered if part[entry] > 0)


def _fitted(engines: Sequence[Engine], requests: Mapping[Engine, Request]) -> Sampling:
    """The first one's sampling, with as many tokens as the contexts of all have room for.

    Raises:
        ContextOverflowError: one has not room enough.
    """
    fitted = [engine.fitted(requests[engine], engine.count(requests[engine])).sampling for engine in engines]
    return replace(fitted[0], max_tokens=min(sampling.max_tokens for sampling in fitted))


async def _together(calls: Sequence[Awaitable[T]]) -> list[T]:
    """All results, at the same time; if one fails, the others are stopped, so that what they computed is billed."""
    others = [asyncio.ensure_future(call) for call in calls[1:]]
    try:
        return [await calls[0], *[await other for other in others]]
    except BaseException:
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        raise
