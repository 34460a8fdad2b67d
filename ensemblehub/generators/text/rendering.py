"""From a request to token ids, each with the message and the characters it comes from.

Text inside messages and in the answer so far is never read as special tokens.
"""

from __future__ import annotations

import hashlib
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Tokenizer
from ensemblehub.generators.text.chat_template import ChatTemplate, RenderedChat, to_json
from ensemblehub.generators.text.lru_cache import LRUCache
from ensemblehub.generators.text.spans import (
    Origin,
    Place,
    TextSpan,
    TokenSpan,
    in_a_row,
    literal_places,
    origin_of,
    segments,
    shown_spans,
    token_spans,
)
from ensemblehub.schema import Chat, Message, Piece, Prompt, Request, Text

_PLAIN = (str, int, float, bool, type(None))
VERY_LARGE_INTEGER = int(1e30)  # transformers' word for a length that it does not know
_CACHED = 2**26  # bytes of rendered prompts that are kept
_TOKEN = 250  # approximate bytes of a rendered token
_PATHS = ("_path", "_file")  # endings of settings that say where files lie; they are not published


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model reads it; `ids` and `origins` are of one length."""

    ids: tuple[int, ...]
    origins: tuple[Origin, ...]


class Renderer(Tokenizer):
    """Renders and tokenises with one fast tokenizer.

    Raises:
        ConfigError: the tokenizer is a slow one.
    """

    def __init__(self, tokenizer: Any, thinking: bool | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(f"{tokenizer.name_or_path}: a fast tokenizer (tokenizer.json) is needed")
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._lock = threading.Lock()
        self._backend.no_truncation()
        self._backend.no_padding()
        added = tokenizer.added_tokens_decoder.items()
        controls = {index: token.content for index, token in added if token.special}
        self._controls = frozenset(controls)
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        unknown = {tokenizer.unk_token_id} - ends  # any text may hold what is unknown
        self._guarded = self._controls - unknown
        longest_first = sorted(filter(None, controls.values()), key=len, reverse=True)
        special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._template = ChatTemplate(tokenizer, thinking, special)
        self.render = LRUCache(self._render, _weight, _CACHED)

    def __call__(self, request: Request, author: str = "") -> Rendered:
        """The rendered prompt, followed by the answer so far.

        Args:
            author: engine whose tokens in `request.written` are these ids; they are kept, except for the
                start of a character at the end of a turn.
        """
        text = "".join(turn.text for turn in request.written)
        tools = to_json(request.extra.get("tools") or "")
        if not (text and request.prefix.endswith(text)):
            return self.render(request.prompt, request.prefix, tools)
        start = len(request.prefix) - len(text)
        head = self.render(request.prompt, request.prefix[:start], tools)
        tokens: list[tuple[int, str]] = []
        for turn in request.written:
            tokens += self._own(turn) if turn.engine == author else self._read(turn.text)
        answer = len(request.prompt.messages) if isinstance(request.prompt, Chat) else 1
        origins = in_a_row([text for _, text in tokens], answer, start)
        return Rendered((*head.ids, *(index for index, _ in tokens)), (*head.origins, *origins))

    def _own(self, turn: Piece) -> list[tuple[int, str]]:
        """Ids and texts of a turn that was written in these ids."""
        tokens = [(token.id, token.text) for token in turn.tokens if token.id is not None]
        if len(tokens) < len(turn.tokens) or "".join(text for _, text in tokens) != turn.text:
            return self._read(turn.text)
        while tokens and not tokens[-1][1] and tokens[-1][0] not in self._controls:
            tokens.pop()
        return tokens

    def _read(self, text: str) -> list[tuple[int, str]]:
        """Ids and texts of a turn that another engine wrote."""
        return [(index, self.decode([index])) for index in self.inside(text)]

    def reply(self, chat: Chat, parts: Sequence[str], mark: str = "") -> Rendered:
        """A conversation and the assistant's whole reply to it, as the template writes them down.

        Args:
            parts: the reply; its tokens belong to message `len(chat.messages)`.
            mark: a special token put after each part; its tokens belong to no message.

        Raises:
            RequestError: the template refuses the messages, or rewrites a reply that has marks in it.
        """
        answer = Message("assistant", "".join(part + mark for part in parts))
        whole_chat = Chat((*chat.messages, answer), chat.thinking)
        shown = self._template.render(whole_chat, asking=False, last=(parts, mark))
        whole = next((span for span in shown.spans if span.message == len(chat.messages)), None)
        if whole is not None:
            starts = accumulate((len(part + mark) for part in parts[:-1]), initial=0)
            pieces = [whole.part(start, start + len(part)) for start, part in zip(starts, parts, strict=True)]
            shown = replace(shown, spans=(*(span for span in shown.spans if span is not whole), *pieces))
        return self._tokenised(shown, "", 0)

    def _render(self, prompt: Prompt, prefix: str, tools: str) -> Rendered:
        if isinstance(prompt, Chat):
            return self._tokenised(self._template.render(prompt, tools=tools), prefix, len(prompt.messages))
        if isinstance(prompt, Text):
            span = TextSpan(0, 0, len(prompt.text))
            return self._tokenised(RenderedChat(prompt.text, (span,)), prefix, 1, raw=True)
        origins = in_a_row([self.decode([index]) for index in prompt.ids], 0)
        tail = self._tokenised(RenderedChat("", ()), prefix, 1, middle=True)
        return Rendered((*prompt.ids, *tail.ids), (*origins, *tail.origins))

    def _tokenised(
        self, shown: RenderedChat, prefix: str, answer: int, *, raw: bool = False, middle: bool = False
    ) -> Rendered:
        """Tokenise rendered text and the answer so far, message `answer`, without control tokens from either.

        Args:
            raw: a raw prompt, in which control tokens are meant; the tokenizer adds its own.
            middle: the text stands behind another.
        """
        text, spans = shown.text, shown.spans
        literal = list(shown.literal)
        guarded = () if raw else spans
        if prefix:
            answered = TextSpan(answer, len(text), len(text) + len(prefix))
            text += prefix
            spans += (answered,)
            guarded += (answered,)
        while True:
            tokens = self._cut(text, literal, raw, middle)
            controls = [token for token in tokens if token.id in self._guarded and token.start < token.end]
            found = literal_places(controls, guarded, literal)
            if found == literal:
                break
            literal = found
        shown_at = shown_spans(spans)
        origins = tuple(origin_of(token, shown_at) for token in tokens)
        return Rendered(tuple(token.id for token in tokens), origins)

    def _cut(self, text: str, literal: Sequence[Place], raw: bool, middle: bool) -> list[TokenSpan]:
        """The tokens of a text, parts of which are taken literally."""
        tokens: list[TokenSpan] = []
        for start, end, plain in segments(len(text), literal):
            if raw and start == 0:
                tokens += self._raw(text[:end])
                continue
            head, skipped = self._anchor if start or middle else ("", ())
            encoded = self._encode(head + text[start:end], False, literal=plain)
            tokens += token_spans(encoded, text, start - len(head))[len(skipped) :]
        return tokens

    def _raw(self, text: str) -> list[TokenSpan]:
        """The tokens of a raw prompt; the tokenizer's special tokens are added unless they are there."""
        encoded = self._encode(text, True, literal=False)
        tokens, added = token_spans(encoded, text), encoded.special_tokens_mask
        inner = [index for index, mark in enumerate(added) if not mark]
        if not inner:
            return tokens
        ids = [token.id for token in tokens]
        first, last = inner[0], inner[-1] + 1
        after = len(ids) - last
        start = first if first and ids[:first] == ids[first : min(2 * first, last)] else 0
        end = last if after and ids[last:] == ids[max(first, last - after) : last] else len(ids)
        return tokens[start:end]

    def encode(self, text: str, special: bool = True) -> list[int]:
        if special:
            return [token.id for token in self._raw(text)]
        ids: list[int] = self._encode(text, False, literal=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids))

    @property
    def controls(self) -> frozenset[int]:
        return self._controls

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer: the tokenizer's end of text, and the template's end of a turn."""
        behind = self._template.closing()
        added = {token.content: index for index, token in self.tokenizer.added_tokens_decoder.items()}
        closing = max((content for content in added if behind.startswith(content)), key=len, default="")
        found = (self.tokenizer.eos_token_id, added[closing] if closing else None)
        return frozenset(index for index in found if index is not None)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        plain = {
            key: value
            for key, value in self.tokenizer.init_kwargs.items()
            if isinstance(value, _PLAIN) and not key.endswith(_PATHS) and value != VERY_LARGE_INTEGER
        }
        return {
            **plain,
            **self.tokenizer.special_tokens_map,
            "tokenizer_class": type(self.tokenizer).__name__,
            "chat_template": self.tokenizer.chat_template,
        }

    def inside(self, text: str) -> list[int]:
        """Ids of `text` in the middle of an answer: none added, special tokens taken literally."""
        head, head_ids = self._anchor
        ids: list[int] = self._encode(head + text, False, literal=True).ids[len(head_ids) :]
        if self._guarded.isdisjoint(ids):
            return ids
        return list(self._tokenised(RenderedChat("", ()), text, 0, middle=True).ids)

    @cached_property
    def _anchor(self) -> tuple[str, list[int]]:
        """A text, and its ids, to put before another where the tokenizer puts a space before a first word."""
        first = self._encode("a", False, literal=True).tokens[:1]
        head = "\n" if first and first[0].startswith("▁") else ""
        return head, self._encode(head, False, literal=True).ids

    def _encode(self, text: str, add_special: bool, *, literal: bool) -> Any:
        with self._lock:  # the switch is the tokenizer's, not the call's
            self._backend.encode_special_tokens = literal
            return self._backend.encode(text, add_special_tokens=add_special)


def _weight(rendered: Rendered, prompt: Prompt, prefix: str, tools: str) -> int:
    """Approximate bytes of a rendered prompt and its request."""
    texts = [prompt.text] if isinstance(prompt, Text) else []
    if isinstance(prompt, Chat):
        texts = [part for message in prompt.messages for part in (message.content, message.extra)]
    return _TOKEN * (len(rendered.ids) + len(texts) + 1) + sum(map(sys.getsizeof, (*texts, prefix, tools)))
