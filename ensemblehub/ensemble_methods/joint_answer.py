"""One answer that several models write token by token, whatever their tokenizers.

An answer is bytes, and each member holds it in ids of its own (`spelling`).  A member that cannot spell the
answer yet, because a character is incomplete, takes no part until it can.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblehub.concurrency import together
from ensemblehub.cost import UsageMeter
from ensemblehub.ensemble_methods.mixing import choose, top_alternatives
from ensemblehub.ensemble_methods.spelling import TokenMember
from ensemblehub.ensemble_methods.union_vocabulary import Probabilities, union_of
from ensemblehub.errors import RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Request, Sampling

FORCED = 64  # tokens of a given text that are read at a time when each one's distribution is wanted

Mix = Callable[[Sequence[TokenMember], Sequence[Probabilities]], Probabilities]


@dataclass(frozen=True)
class ChosenToken:
    """The next token of an answer.

    Attributes:
        entry: its entry in the union vocabulary.
        logprob: in the distribution it was chosen from.
        author: names of the engines that chose it, joined by `+`.
        top: the most probable entries and their logprobs.
    """

    entry: int
    logprob: float
    author: str
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class DraftReading:
    """A member's scores of a draft.

    Attributes:
        ids: its ids of the answer and the draft.
        states: for each drafted token, the number of ids before it.
        complete: for each drafted token, whether those ids spell everything before it.
    """

    ids: list[int]
    states: list[int]
    complete: list[bool]


class JointAnswer:
    """An answer in progress: the members, their union vocabulary, and the tokens chosen so far.

    Args:
        requests: by engine; prompts may differ, the sampling is the first one's.
        weights: by engine name, 1 where omitted; an engine of weight 0 takes no part.

    Attributes:
        ends: entries that end the answer.
        written: number of tokens written.

    Raises:
        ContextOverflowError: a context is too short.
        RequestError: no engine takes part.
    """

    def __init__(
        self, requests: Mapping[Engine, Request], weights: Mapping[str, float], meter: UsageMeter
    ) -> None:
        asked = [engine for engine in requests if weights.get(engine.name, 1.0) > 0]
        if not asked:
            raise RequestError("all engines that take part have weight 0")
        self.sampling = _fitted(asked, requests)
        self.written = 0
        self._text = b""
        self._uniforms: list[float] = []
        self._random = random.Random(self.sampling.seed)
        decoders = [engine.decoder(requests[engine], meter) for engine in asked]
        vocabularies = [decoder.vocabulary for decoder in decoders]
        known = zip(asked, vocabularies, strict=True)
        sizes = [engine.info.vocabulary or len(vocabulary.tokens) for engine, vocabulary in known]
        self.union = union_of(vocabularies, sizes)
        self.members = [
            TokenMember(engine, decoder, weights.get(engine.name, 1.0), self.union, view)
            for engine, decoder, view in zip(asked, decoders, self.union.views, strict=True)
        ]
        past_end = self.sampling.ignore_eos and self.union.shared  # elsewhere nothing can follow the end
        self.ends = frozenset() if past_end else self.union.vocabulary.end

    def close(self) -> None:
        """Close every decoder."""
        for member in self.members:
            member.decoder.close()

    async def mixed(self, mix: Mix) -> list[ChosenToken]:
        """The next token, from the mixture of all members."""
        able = self._able(self.members)
        return [self._settle(self._pick(mix, able, await self._distributions(able)))]

    async def gated(self, mix: Mix, gate: TokenMember, threshold: float) -> list[ChosenToken]:
        """Choose the next token: the gate's if it is at least `threshold` likely, else from the mixture."""
        if not gate.spelling.complete:
            return await self.mixed(mix)
        (own,) = await self._distributions([gate])
        if own.max() >= threshold:
            return [self._settle(self._pick(mix, [gate], [own]))]
        others = self._able([member for member in self.members if member is not gate])
        return [self._settle(self._pick(mix, [gate, *others], [own, *await self._distributions(others)]))]

    async def disputed(self, mix: Mix, most: int) -> list[ChosenToken]:
        """The next tokens: the first member drafts up to `most`, and the others read them in one pass.

        A drafted token is accepted where it is every member's top token.  Elsewhere the token is chosen from
        the mixture, and the rest of the draft is dropped unless it is the same.  A draft is read as far as
        the others can append it; members that cannot spell the answer so far take no part.
        """
        drafter, *others = self.members
        if not others or not drafter.spelling.complete:
            return await self.mixed(mix)
        drafts, own = await self._drafted(mix, min(most, self.sampling.max_tokens - self.written))
        readings, lines = await self._read(others, drafts)
        accepted: list[ChosenToken] = []
        for at, draft in enumerate(drafts[: len(lines[0])]):
            able = [index for index, reading in enumerate(readings) if reading.complete[at]]
            parts = [own[at], *(self._mapped(others[index], lines[index][at]) for index in able)]
            choice = draft
            if len({int(part.argmax()) for part in parts}) > 1:
                choice = self._pick(mix, [drafter, *(others[index] for index in able)], parts)
            accepted.append(self._settle(choice))
            if choice.entry != draft.entry:
                break
        return accepted

    async def safe(self, mix: Mix, most: int) -> list[ChosenToken]:
        """The next tokens, of which the mixture decides few (SAFE, arXiv 2510.15346).

        The first member drafts up to `most`, and the others read the draft as their own tokenizers write
        it. A drafted token is kept where one of them would begin or end in the middle of a token of its
        own, where it is every member's top token, and where their mean probability of it is above one
        half.
        """
        drafter, *others = self.members
        if not others or not drafter.spelling.complete:
            return await self.mixed(mix)
        left = self.sampling.max_tokens - self.written
        drafts, own = await self._drafted(mix, min(most, left))
        counts = [self._aligned(member, drafts) for member in others]
        safe = [at for at in range(len(drafts)) if all(at in known for _, known in counts)]
        pairs = zip(others, counts, strict=True)
        lines = await together(self._read_own(member, ids, known, safe) for member, (ids, known) in pairs)
        ended = drafts[-1].entry in self.ends or len(drafts) == left
        weights = [member.weight for member in self.members]
        accepted: list[ChosenToken] = []
        # without more text it is open whether the last token is a whole one to the others
        for at, draft in enumerate(drafts if ended or len(drafts) == 1 else drafts[:-1]):
            choice = draft
            if at in safe:
                parts = [
                    own[at],
                    *(self._mapped(member, line[at]) for member, line in zip(others, lines, strict=True)),
                ]
                agreed = {int(part.argmax()) for part in parts} == {draft.entry}
                if not agreed and np.average([part[draft.entry] for part in parts], weights=weights) <= 0.5:
                    choice = self._pick(mix, self.members, parts)
            accepted.append(self._settle(choice))
            if choice.entry != draft.entry:
                break
        for member in others:
            member.spelling.renew(self._text)
        return accepted

    def _aligned(
        self, member: TokenMember, drafts: Sequence[ChosenToken]
    ) -> tuple[list[int], dict[int, int]]:
        """A member's ids of the answer and a draft, and how many of them stand before each whole token.

        A drafted token is whole to the member if its own tokens begin and end there too.
        """
        sizes = [len(self.union.vocabulary.tokens[draft.entry]) for draft in drafts]
        text = self._text + b"".join(self.union.vocabulary.tokens[draft.entry] for draft in drafts)
        spelling = member.spelling.copy()
        stays = spelling.respell(text)
        member.spelling.stable = min(member.spelling.stable, stays)
        known, offset = spelling.boundaries(len(self._text)), len(self._text)
        counts: dict[int, int] = {}
        for at, size in enumerate(sizes):
            if offset in known and offset + size in known:
                counts[at] = known[offset]
            offset += size
        return spelling.ids, counts

    async def _read_own(
        self, member: TokenMember, ids: list[int], counts: Mapping[int, int], safe: Sequence[int]
    ) -> dict[int, Any]:
        """A member's logprobs before the drafted tokens at `safe`."""
        if not safe:
            return {}
        stable = member.spelling.stable
        lines = await member.read(ids, [counts[at] for at in safe])
        member.spelling.stable = stable  # it holds ids that the answer may not get
        return dict(zip(safe, lines, strict=True))

    async def forced(self, mix: Mix, ids: Sequence[int]) -> list[tuple[int, Probabilities]]:
        """Append given ids of the first member.

        Returns:
            For each id its entry and the mixture it would have been drawn from.

        Raises:
            RequestError: another member cannot be conditioned on exactly the bytes before a token.
        """
        found: list[tuple[int, Probabilities]] = []
        entries = [self._entry(index) for index in ids]
        while entries:
            drafts = [ChosenToken(entry, 0.0, "") for entry in entries[:FORCED]]
            readings, lines = await self._read(self.members, drafts)
            reach = len(lines[0])
            for at, draft in enumerate(drafts[:reach]):
                for member, reading in zip(self.members, readings, strict=True):
                    if not reading.complete[at]:
                        name = member.engine.name
                        raise RequestError(f"{name} cannot cover the bytes before token {len(found) + 1}")
                pairs = zip(self.members, lines, strict=True)
                parts = [self._mapped(member, line[at]) for member, line in pairs]
                found.append((draft.entry, mix(self.members, parts)))
                self._settle(draft, given=True)
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

    async def _drafted(self, mix: Mix, most: int) -> tuple[list[ChosenToken], list[Probabilities]]:
        """The tokens that the first member would write, and its distributions."""
        drafter = self.members[0]
        text, written = self._text, self.written
        drafts, parts = list[ChosenToken](), list[Probabilities]()
        while len(drafts) < most and not (drafts and drafts[-1].entry in self.ends):
            parts += await self._distributions([drafter])
            drafts.append(self._pick(mix, [drafter], parts[-1:]))
            self.written += 1  # until the draft is taken back
            text += self.union.vocabulary.tokens[drafts[-1].entry]
            drafter.spelling.take(drafts[-1].entry, text)
        drafter.spelling.forget(len(drafts), len(text) - len(self._text))
        self.written = written
        return drafts, parts

    async def _read(
        self, members: Sequence[TokenMember], drafts: Sequence[ChosenToken]
    ) -> tuple[list[DraftReading], list[list[Any]]]:
        """Each member's reading of a draft, and its logprobs before each token that all members reach."""
        readings = [self._plan(member, drafts) for member in members]
        reach = min(len(reading.states) for reading in readings)
        pairs = zip(members, readings, strict=True)
        lines = await together(member.read(reading.ids, reading.states[:reach]) for member, reading in pairs)
        return readings, lines

    def _plan(self, member: TokenMember, drafts: Sequence[ChosenToken]) -> DraftReading:
        """How a member reads a draft, as far as it can go on appending ids."""
        spelling, text = member.spelling.copy(), self._text
        reading = DraftReading(spelling.ids[:], [len(spelling.ids)], [spelling.complete])
        for draft in drafts[:-1]:
            text += self.union.vocabulary.tokens[draft.entry]
            if spelling.take(draft.entry, text) < len(reading.ids):
                break
            reading.ids.extend(spelling.ids[len(reading.ids) :])
            reading.states.append(len(reading.ids))
            reading.complete.append(spelling.complete)
        return reading

    def _able(self, members: Sequence[TokenMember]) -> list[TokenMember]:
        return [member for member in members if member.spelling.complete]

    async def _distributions(self, members: Sequence[TokenMember]) -> list[Probabilities]:
        lines = await together(member.step() for member in members)
        return [self._mapped(member, line) for member, line in zip(members, lines, strict=True)]

    def _mapped(self, member: TokenMember, logprobs: Any) -> Probabilities:
        unending = self.sampling.ignore_eos and not self.union.shared
        early = self.written < self.sampling.min_tokens or unending
        return member.view.probabilities(logprobs, self.union.vocabulary.end if early else ())

    def _pick(self, mix: Mix, members: Sequence[TokenMember], parts: Sequence[Probabilities]) -> ChosenToken:
        part = mix(members, parts) if len(parts) > 1 else parts[0]
        entry = choose(part, self.sampling, self._uniform())
        author = "+".join(member.engine.name for member in members)
        top = top_alternatives(part, self.sampling.top_logprobs)
        return ChosenToken(entry, float(np.log(part[entry])), author, top)

    def _uniform(self) -> float:
        """The random number of the next token, the same whoever chooses it."""
        while len(self._uniforms) <= self.written:
            self._uniforms.append(self._random.random())
        return self._uniforms[self.written]

    def _settle(self, chosen: ChosenToken, given: bool = False) -> ChosenToken:
        """Append a token; one that is given may be an end of text, and the text goes on behind it."""
        self.written += 1
        if given or chosen.entry not in self.ends:
            self._text += self.union.vocabulary.tokens[chosen.entry]
            for member in self.members:
                member.spelling.take(chosen.entry, self._text)
        return chosen


def _fitted(engines: Sequence[Engine], requests: Mapping[Engine, Request]) -> Sampling:
    """The first request's sampling, with as many tokens as all contexts hold.

    Raises:
        ContextOverflowError: a context is too short.
    """
    fitted = [engine.fitted(requests[engine], engine.count(requests[engine])).sampling for engine in engines]
    return replace(fitted[0], max_tokens=min(sampling.max_tokens for sampling in fitted))
