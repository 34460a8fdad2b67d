"""An answer in the token ids of one model, kept up to date while other models choose tokens too.

A token that the model's vocabulary holds is appended.  Where another model's token was chosen, the end of the
answer is tokenised anew, and the decoder drops and appends the ids that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ensemblehub.ensemble_methods.union_vocabulary import Union, View
from ensemblehub.generators.base import Decoder, Engine

FRESH = 16  # minimum number of ids at the end of an answer that are tokenised anew, so that words are whole
LONG = 64  # ids after which any character boundary is a place to start from


class Spelling:
    """The answer in one member's ids.

    Attributes:
        ids: token ids of the answer.
        spelled: number of bytes that `ids` spell, of `whole` bytes in the answer.
        stable: number of leading ids that have not changed since it was last set.
    """

    def __init__(self, union: Union, view: View, encode: Callable[[str], list[int]]) -> None:
        self._union = union
        self._view = view
        self._encode = encode
        self.ids: list[int] = []
        self.spelled = self.whole = self.stable = 0

    @property
    def complete(self) -> bool:
        """Whether the ids spell the whole answer."""
        return self.spelled == self.whole

    def take(self, entry: int, text: bytes) -> int:
        """Append an entry of the union, with which the answer is `text`.

        Returns:
            Number of earlier ids that stay.
        """
        size, index = len(self._union.vocabulary.tokens[entry]), self._view.id_of(entry)
        kept = len(self.ids)
        if self.complete and index is not None:
            self.ids.append(index)
            self.spelled += size
        else:
            kept = self.respell(text)
        self.whole += size
        return kept

    def copy(self) -> Spelling:
        """An independent copy."""
        other = Spelling(self._union, self._view, self._encode)
        other.ids = self.ids[:]
        other.spelled, other.whole = self.spelled, self.whole
        return other

    def forget(self, count: int, size: int) -> None:
        """Remove the last `count` ids, which spell `size` bytes."""
        del self.ids[len(self.ids) - count :]
        self.spelled -= size
        self.whole -= size
        self.stable = min(self.stable, len(self.ids))

    def respell(self, text: bytes) -> int:
        """Tokenise the end of the answer anew, as the model's tokenizer writes it; arguments as `take`."""
        start, offset = self._start()
        fresh, old = self._view.spell(text[offset:], self._encode), self.ids[start:]
        same = common_length(fresh, old)
        kept = start + same
        self.ids[kept:] = fresh[same:]
        self.spelled = offset + self._view.length(fresh)
        self.stable = min(self.stable, kept)
        return kept

    def renew(self, text: bytes) -> None:
        """As `respell`, unless the ids would no longer spell an answer that ends within a character."""
        ids, spelled = self.ids[:], self.spelled
        stays = self.respell(text)
        if self.spelled < spelled:
            self.ids[stays:], self.spelled = ids[stays:], spelled

    def boundaries(self, first: int) -> dict[int, int]:
        """Number of ids by the bytes that they spell, for the ends of ids from byte `first` on."""
        tokens, offset = self._view.vocabulary.tokens, self.spelled
        found: dict[int, int] = {}
        for count in range(len(self.ids), -1, -1):
            if offset < first:
                break
            found[offset] = count
            offset -= len(tokens[self.ids[count - 1]]) if count else 1
        return found

    def _start(self) -> tuple[int, int]:
        """The id and the byte from which to tokenise anew: the start of a word, some words back."""
        tokens, count = self._view.vocabulary.tokens, len(self.ids)
        offset = self.spelled
        for start in range(count - 1, 0, -1):
            token = tokens[self.ids[start]]
            offset -= len(token)
            word = token[:1] == b" " and not tokens[self.ids[start - 1]][-1:].isspace()
            if count - start >= (FRESH if word else LONG) and token[:1].isascii():
                return start, offset
        return 0, 0


class TokenMember:
    """A model that takes part in a token-level answer."""

    def __init__(self, engine: Engine, decoder: Decoder, weight: float, union: Union, view: View) -> None:
        self.engine, self.decoder = engine, decoder
        self.weight = weight
        self.union, self.view = union, view
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
        """Ids to append and number of ids to drop so that the decoder holds `ids`, keeping at most `most`."""
        limit = min(len(ids) if most is None else most, len(self._held))
        stable = min(self.spelling.stable, limit)
        same = stable + common_length(ids[stable:limit], self._held[stable:limit])
        append, drop = ids[same:], len(self._held) - same
        self._held[same:] = append
        self.spelling.stable = len(self.spelling.ids)
        return append, drop


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common start of two sequences of ids."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
