"""The union of the members' vocabularies, so that next-token distributions of different models can be mixed.

Yu et al., "Breaking the Ceiling of the LLM Community by Treating Token Generation as a Classification for
Ensembling" (GaC), Findings of EMNLP 2024.  An entry of the union is a string of bytes; a member
is mapped to it by one index vector, never by a matrix of vocabulary x vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub.generators.base import Vocabulary

Probabilities = NDArray[np.float32]  # over the entries of a union, (entries,)
TINY = np.finfo(np.float32).tiny


class View:
    """A member's vocabulary, mapped to the union.

    Args:
        vocabulary: the member's own.
        size: how many ids its distributions cover.
        source: the member's id of each entry, `size` where it has none, (entries,).
        more: entries and ids of the tokens that are spelled like another of the same member, two of (n,).
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        size: int,
        source: NDArray[np.intp],
        more: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None,
    ) -> None:
        self.vocabulary, self.size = vocabulary, size
        self._source, self._more = source, more
        self._straight = bool(len(source) == size and np.array_equal(source, np.arange(size)))
        self._spelled: dict[frozenset[int], NDArray[np.intp]] = {}  # ids of the entries banned so far
        self.heads: dict[int, int | None] = {}  # entries this member lacks: the entry of their first token

    def probabilities(self, logprobs: Any, banned: Collection[int] = ()) -> Probabilities:
        """A distribution over the member's ids as one over the entries, summing to 1.

        Args:
            logprobs: (vocabulary,), in nats.
            banned: entries that get no mass.
        """
        lines = np.asarray(logprobs, np.float32)[: self.size]
        if banned:
            lines = self._without(lines, banned)
        own = np.empty(self.size + 1, np.float32)
        np.exp(lines, out=own[:-1])
        own[-1] = 0.0
        if self._straight and not banned:
            return own[:-1]
        mapped: Probabilities = own.take(self._source)
        if self._more is not None:
            np.add.at(mapped, self._more[0], own[self._more[1]])
        mapped /= max(mapped.sum(), TINY)
        return mapped

    def _without(self, lines: NDArray[np.float32], banned: Collection[int]) -> NDArray[np.float32]:
        """The same without some entries, however likely they are."""
        key = frozenset(banned)
        if key not in self._spelled:
            more = [] if self._more is None else [self._more[1][np.isin(self._more[0], list(key))]]
            own = self._source[list(key)]
            self._spelled[key] = np.concatenate([own[own < self.size], *more])
        lines = lines.copy()
        lines[self._spelled[key]] = -np.inf
        top = lines.max()
        if top > -np.inf:
            lines -= top
        return lines

    def id_of(self, entry: int) -> int | None:
        """The member's own token for an entry, if it has one."""
        index = int(self._source[entry])
        return index if index < self.size else None

    def spell(self, data: bytes, encode: Callable[[str], list[int]]) -> list[int]:
        """The member's ids for `data`, as far as it can spell it; the start of a character waits for its end.

        Text is tokenised by `encode`.  Where that does not give the bytes back (it normalises), and for bytes
        that are no UTF-8, the longest matching tokens are taken.
        """
        ids: list[int] = []
        while data:
            text, stray, data = _split(data)
            for run, own in ((text, encode(text.decode()) if text else []), (stray, [])):
                if (
                    self.length(own) != len(run)
                    or b"".join(map(self.vocabulary.tokens.__getitem__, own)) != run
                ):
                    own = self._longest(run)
                ids += own
                if self.length(own) < len(run):
                    return ids
        return ids

    def length(self, ids: Iterable[int]) -> int:
        """Number of bytes that `ids` spell."""
        tokens = self.vocabulary.tokens
        return sum(len(tokens[index]) for index in ids)

    def _longest(self, data: bytes) -> list[int]:
        ids, start = [], 0
        while start < len(data):
            ends = range(min(len(data), start + self._most), start, -1)
            found = next((self._ids[data[start:end]] for end in ends if data[start:end] in self._ids), None)
            if found is None:
                break
            ids.append(found)
            start += len(self.vocabulary.tokens[found])
        return ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {self.vocabulary.tokens[index]: index for index in _spelling(self.vocabulary, self.size)}

    @cached_property
    def _most(self) -> int:
        return max(map(len, self._ids), default=0)


@dataclass(frozen=True, eq=False)
class Union:
    """All tokens of all members.

    Attributes:
        vocabulary: bytes of each entry, and the entries that end an answer.
        views: one for each member.
        index: the entry of a token's bytes.
        shared: the members have one vocabulary, and the entries are its ids.
    """

    vocabulary: Vocabulary
    views: tuple[View, ...]
    index: dict[bytes, int]
    shared: bool


@dataclass(frozen=True)
class _Key:
    fingerprint: str
    end: frozenset[int]
    size: int
    vocabulary: Vocabulary = field(compare=False, repr=False)


def union_of(vocabularies: Sequence[Vocabulary], sizes: Sequence[int]) -> Union:
    """The union of `vocabularies`, whose distributions cover `sizes` ids; made once for every combination.

    Equal vocabularies are mixed id by id, special tokens included.  Where they differ, all ids that end an
    answer become one entry, and other special ids get no mass: one model's controls mean nothing to another.
    """
    return _made(
        tuple(
            _Key(vocabulary.fingerprint, vocabulary.end, min(size, len(vocabulary.tokens)), vocabulary)
            for vocabulary, size in zip(vocabularies, sizes, strict=True)
        )
    )


@lru_cache(maxsize=16)
def _made(keys: tuple[_Key, ...]) -> Union:
    if len({(key.fingerprint, key.end) for key in keys}) == 1:
        return _shared(keys)
    index: dict[bytes, int] = {}
    pairs = []
    for key in keys:
        tokens, own = key.vocabulary.tokens, _spelling(key.vocabulary, key.size)
        pairs.append((own, [index.setdefault(tokens[token], len(index)) for token in own]))
    end = len(index)
    views = tuple(_view(key, end + 1, *pair) for key, pair in zip(keys, pairs, strict=True))
    name = "+".join(key.fingerprint for key in keys)
    return Union(Vocabulary((*index, b""), frozenset({end}), frozenset({end}), name), views, index, False)


def _shared(keys: Sequence[_Key]) -> Union:
    first, size = keys[0], min(key.size for key in keys)  # some models pad their vocabulary
    straight = View(first.vocabulary, size, np.arange(size, dtype=np.intp))
    tokens = first.vocabulary.tokens[:size]
    vocabulary = Vocabulary(
        tokens, first.vocabulary.special, first.end, first.fingerprint, first.vocabulary.names
    )
    index = {tokens[token]: token for token in _spelling(first.vocabulary, size)}
    return Union(vocabulary, (straight,) * len(keys), index, True)


def _view(key: _Key, size: int, ids: list[int], entries: list[int]) -> View:
    ends = sorted(index for index in key.end if index < key.size)
    own = np.array([*ids, *ends], np.intp)
    at = np.array([*entries, *[size - 1] * len(ends)], np.intp)
    source = np.full(size, -1, np.intp)
    np.maximum.at(source, at, own)  # of tokens spelled alike the later one: the first may be a byte fallback
    more = source[at] != own
    repeated = (at[more], own[more]) if more.any() else None
    return View(key.vocabulary, key.size, np.where(source < 0, key.size, source), repeated)


def _spelling(vocabulary: Vocabulary, size: int) -> list[int]:
    """The ids that stand for text."""
    none = vocabulary.special | vocabulary.end
    return [index for index, token in enumerate(vocabulary.tokens[:size]) if token and index not in none]


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Leading UTF-8, the bytes after it that are none, and the rest; the start of a character is left out."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return data[: error.start], b"", b""
        return data[: error.start], data[error.start : error.end], data[error.end :]
    return data, b"", b""
