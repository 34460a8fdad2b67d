"""From token ids to text, which never splits a character or a stop string."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ensemblehub.generators.base import Vocabulary
from ensemblehub.generators.text.stops import StopFilter
from ensemblehub.schema import Alternative, Finish, Sampling, Token

_BYTE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


def vocabulary_of(tokenizer: Any, size: int, end: Iterable[int]) -> Vocabulary:
    """Return the texts of the ids 0 to `size - 1` of a fast tokenizer.

    Special tokens stand for no text.  Ids that the model has and the tokenizer has not are empty.
    """
    strings = {index: string for string, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    special = frozenset(index for index, token in added.items() if token.special) | frozenset(
        tokenizer.all_special_ids
    )
    spell = _speller(tokenizer)
    tokens = []
    for index in range(max(size, max(strings, default=-1) + 1)):
        if index in special or index not in strings:
            tokens.append(b"")
        elif index in added:
            tokens.append(added[index].content.encode())
        else:
            tokens.append(spell(index, strings[index]))
    mapping = json.dumps([sorted(strings.items()), sorted(special)]).encode()
    names = {index: str(tokenizer.convert_ids_to_tokens(index)) for index in special}
    return Vocabulary(tuple(tokens), special, frozenset(end), hashlib.sha256(mapping).hexdigest(), names)


def alternatives(vocabulary: Vocabulary, top: Iterable[tuple[int, float]]) -> tuple[Alternative, ...]:
    """Ids and logprobs with the ids as they are shown."""
    return tuple(
        Alternative(vocabulary.shown(index), value, index, vocabulary.part(index)) for index, value in top
    )


def _speller(tokenizer: Any) -> Any:
    """A function from (id, token string) to the bytes of the token inside a text."""
    decoder = str(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    if "ByteLevel" in decoder:
        letters = _byte_letters()
        return lambda _, string: bytes(letters[letter] for letter in string if letter in letters)
    if "ByteFallback" in decoder or "Metaspace" in decoder or "▁" in decoder:
        return lambda _, string: _spell_metaspace(string)
    return lambda index, _: _spell_after_anchor(tokenizer, index)


def _spell_metaspace(string: str) -> bytes:
    byte = _BYTE.match(string)
    return bytes([int(byte.group(1), 16)]) if byte else string.replace("▁", " ").encode()


def _spell_after_anchor(tokenizer: Any, index: int) -> bytes:
    """Any other tokenizer: what the token adds to a text, which shows the white space before it."""
    anchor = tokenizer.encode("a", add_special_tokens=False)
    whole, head = tokenizer.decode([*anchor, index]), tokenizer.decode(anchor)
    return str(whole).removeprefix(head).encode()


def _byte_letters() -> dict[str, int]:
    """The printable letters by which byte-level BPE (GPT-2) writes bytes."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}


class TextFlow(StopFilter[Token]):
    """Incremental detokenizer of one answer; the released tokens' texts concatenate to the text.

    A token whose bytes complete no character has an empty text; the token that completes it has it all.
    Tokens that may turn out to begin a stop string are held back.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str]) -> None:
        super().__init__(stop)
        self._spelling = vocabulary.tokens
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def text(self, index: int) -> str:
        """The text that the next token, `index`, completes."""
        return self._decode(self._spelling[index])


class AnswerWriter:
    """Turns the ids of one answer into tokens; ends it at an end id, a stop string or `max_tokens`."""

    def __init__(self, vocabulary: Vocabulary, sampling: Sampling, end: frozenset[int]) -> None:
        self._vocabulary = vocabulary
        self._limit = sampling.max_tokens
        self._end = end
        self._flow = TextFlow(vocabulary, sampling.stop)
        self._count = 0

    def write(
        self,
        index: int,
        logprob: float,
        entropy: float | None,
        top: tuple[Alternative, ...],
        last: bool = False,
    ) -> tuple[list[Token], Finish | None]:
        """Take the next id; return the tokens that can be shown, and how the answer ends.

        Args:
            last: whether nothing may follow.
        """
        self._count += 1
        ended = index in self._end
        text = "" if ended else self._flow.text(index)
        tokens = self._flow.push(Token(text, index, logprob, entropy, top, self._vocabulary.part(index)))
        finish: Finish | None = self._flow.finish if ended or last or self._flow.stopped else None
        if finish is None and self._count >= self._limit:
            finish = "length"
        if finish is not None:
            tokens += self._flow.flush()
        return tokens, finish
