"""From a request to token ids, each with the message and the characters it comes from.

Text inside messages and in the answer so far is never read as special tokens.  Knows tokenizers; knows
no model.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from ensemblehub.errors import ConfigError, RequestError
from ensemblehub.generators.base import Tokenizer
from ensemblehub.generators.recent import Recent
from ensemblehub.schema import Chat, Message, Piece, Prompt, Request, Text

_NONE = '""'  # no tools, as JSON
_PLAIN = (str, int, float, bool, type(None))
VERY_LARGE_INTEGER = int(1e30)  # transformers' word for a length that it does not know
_KEPT = 2**26  # bytes of rendered prompts that are kept
_TOKEN = 250  # bytes that a rendered token takes about
_PLACES = ("_path", "_file")  # settings that say where files lie, which is nobody else's business


@dataclass(frozen=True)
class Origin:
    """Where a token comes from: message (None: the template), character span in it, and its text."""

    message: int | None
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model reads it; `ids` and `origins` are of one length."""

    ids: tuple[int, ...]
    origins: tuple[Origin, ...]


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of the rendered text are those of a message from `offset` on."""

    message: int
    start: int
    end: int
    offset: int = 0


@dataclass(frozen=True)
class Form:
    """A conversation but for its contents.

    Attributes:
        turns: role of each message, and its further fields as JSON.
        thinking: as the chat's.
        asking: whether an answer is asked for.
        tools: those that may be called, as JSON.
    """

    turns: tuple[tuple[str, str], ...]
    thinking: bool | None
    asking: bool
    tools: str = _NONE


class Renderer(Tokenizer):
    """Renders and tokenises with one fast tokenizer.

    Raises:
        ConfigError: the tokenizer is a slow one.
    """

    def __init__(self, tokenizer: Any, thinking: bool | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(f"{tokenizer.name_or_path}: a fast tokenizer (tokenizer.json) is needed")
        self.tokenizer, self.thinking = tokenizer, thinking
        self._backend = tokenizer.backend_tokenizer
        self._lock = threading.Lock()
        self._backend.no_truncation()
        self._backend.no_padding()
        controls = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._controls, self._special = frozenset(controls), tuple(controls.values())
        self.render = Recent(self._render, _weight, _KEPT)
        self._frame = Recent(self._frame_of, _weight_of_frame, _KEPT // 8)

    def __call__(self, request: Request, author: str = "") -> Rendered:
        """The rendered prompt, followed by the answer so far.

        Args:
            author: whose tokens in `request.written` are these ids; they are kept as they are, but for the
                start of a character at the end of a turn.
        """
        text = "".join(turn.text for turn in request.written)
        tools = _json(request.extra.get("tools") or "")
        if not (text and request.prefix.endswith(text)):
            return self.render(request.prompt, request.prefix, tools)
        start = len(request.prefix) - len(text)
        head = self.render(request.prompt, request.prefix[:start], tools)
        turns = [self._own(turn) if turn.engine == author else self._read(turn.text) for turn in request.written]
        ids, texts = [index for ids, _ in turns for index in ids], [text for _, texts in turns for text in texts]
        answer = len(request.prompt.messages) if isinstance(request.prompt, Chat) else 1
        return Rendered((*head.ids, *ids), (*head.origins, *_in_a_row(texts, answer, start)))

    def _own(self, turn: Piece) -> tuple[list[int], list[str]]:
        """Ids and texts of a turn that was written in these ids."""
        tokens = [(token.id, token.text) for token in turn.tokens if token.id is not None]
        if len(tokens) < len(turn.tokens) or "".join(text for _, text in tokens) != turn.text:
            return self._read(turn.text)
        while tokens and not tokens[-1][1] and tokens[-1][0] not in self._controls:
            tokens.pop()
        return [index for index, _ in tokens], [text for _, text in tokens]

    def _read(self, text: str) -> tuple[list[int], list[str]]:
        """Ids and texts of a turn of somebody else."""
        ids = self.inside(text)
        return ids, [str(self.tokenizer.decode([index])) for index in ids]

    def reply(self, chat: Chat, parts: Sequence[str], mark: str = "") -> Rendered:
        """A conversation and the assistant's whole reply to it, as the template writes them down.

        Args:
            parts: the reply; its tokens belong to message `len(chat.messages)`.
            mark: a special token put after each part; its tokens belong to no message.

        Raises:
            RequestError: the template refuses the messages, or rewrites a reply that has marks in it.
        """
        answer = Message("assistant", "".join(part + mark for part in parts))
        text, spans = self._chat(Chat((*chat.messages, answer), chat.thinking), asking=False)
        whole = next((span for span in spans if span.message == len(chat.messages)), None)
        if whole is not None:
            starts = accumulate((len(part + mark) for part in parts[:-1]), initial=0)
            pieces = [_within(whole, start, start + len(part)) for start, part in zip(starts, parts, strict=True)]
            spans = (*(span for span in spans if span is not whole), *pieces)
        return self._tokenised(text, spans, "", 0)

    def _render(self, prompt: Prompt, prefix: str, tools: str) -> Rendered:
        if isinstance(prompt, Chat):
            text, spans = self._chat(prompt, tools=tools)
            return self._tokenised(text, spans, prefix, len(prompt.messages))
        if isinstance(prompt, Text):
            head = Span(0, 0, len(prompt.text))
            return self._tokenised(prompt.text, (head,), prefix, 1, parsed=(head,), add_special=True)
        return self._given(prompt.ids, prefix)

    def _given(self, ids: Sequence[int], prefix: str) -> Rendered:
        origins = _in_a_row([str(self.tokenizer.decode([index])) for index in ids], 0)
        tail = self._tokenised("", (), prefix, 1)
        return Rendered((*ids, *tail.ids), (*origins, *tail.origins))

    def _tokenised(
        self,
        text: str,
        spans: Sequence[Span],
        prefix: str,
        answer: int,
        *,
        parsed: Sequence[Span] = (),
        add_special: bool = False,
    ) -> Rendered:
        """Tokenise `text + prefix`; spans outside `parsed` that hold special tokens are taken literally."""
        if prefix:
            spans = (*spans, Span(answer, len(text), len(text) + len(prefix)))
            text += prefix
        literal = [span for span in spans if span not in parsed and self._is_special(text[span.start : span.end])]
        ids: list[int] = []
        origins: list[Origin] = []
        shown_spans = sorted((span for span in spans if span.start < span.end), key=_start)
        for start, end, plain in _segments(len(text), literal):
            encoded = self._encode(text[start:end], add_special and start == 0, literal=plain)
            ids += encoded.ids
            for (low, high), content in zip(encoded.offsets, encoded.tokens, strict=True):
                shown = text[start + low : start + high] if high > low else content
                origins.append(_origin(start + low, start + high, shown, shown_spans))
        return Rendered(tuple(ids), tuple(origins))

    def encode(self, text: str, special: bool = True) -> list[int]:
        ids: list[int] = self._encode(text, special, literal=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids))

    @property
    def controls(self) -> frozenset[int]:
        return self._controls

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        given = self.tokenizer.init_kwargs.items()
        plain = {
            key: value
            for key, value in given
            if isinstance(value, _PLAIN) and not key.endswith(_PLACES) and value != VERY_LARGE_INTEGER
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
        ids: list[int] = self._encode(head + text, False, literal=True).ids
        return ids[len(head_ids) :]

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

    def _is_special(self, text: str) -> bool:
        return any(string in text for string in self._special)

    def _chat(self, chat: Chat, asking: bool = True, tools: str = _NONE) -> tuple[str, tuple[Span, ...]]:
        contents = [message.content for message in chat.messages]
        turns = tuple((message.role, message.extra) for message in chat.messages)
        form = Form(turns, chat.thinking, asking, tools)
        text = self._apply(form, contents)
        spans = _spans_in_frame(text, self._frame(form), contents)
        if spans is None:
            spans = _spans_by_search(text, contents)
        placed = {span.message for span in spans}
        for index, (content, (_, extra)) in enumerate(zip(contents, turns, strict=True)):
            if index not in placed and self._is_special(content):
                raise RequestError(f"message {index} holds special tokens and the chat template rewrites it")
            if self._is_special(_json(_calls(extra))):
                raise RequestError(f"the tool calls of message {index} hold special tokens")
        if self._is_special(tools):
            raise RequestError("the tools hold special tokens")
        if tools != _NONE and text == self._apply(replace(form, tools=_NONE), contents):
            raise RequestError(f"{self.tokenizer.name_or_path}: the chat template shows the model no tools")
        return text, spans

    def _frame_of(self, form: Form) -> tuple[str, ...]:
        """The template's own text around the contents."""
        marks = [f"\ue000{index}\ue001" for index in range(len(form.turns))]
        text, frame = self._apply(form, marks), []
        position = 0
        for mark in marks:
            at = text.find(mark, position)
            end = len(text) if at < 0 else at
            frame.append(text[position:end])
            position = min(end + len(mark), len(text))
        return (*frame, text[position:])

    def _apply(self, form: Form, contents: Iterable[str]) -> str:
        if not self.tokenizer.chat_template:
            raise RequestError(f"{self.tokenizer.name_or_path}: the tokenizer has no chat template; send a text prompt")
        turns = [
            {"role": role, "content": content, **_calls(extra)}
            for (role, extra), content in zip(form.turns, contents, strict=True)
        ]
        thinking = self.thinking if form.thinking is None else form.thinking
        options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        options["add_generation_prompt"] = form.asking
        if form.tools != _NONE:
            options["tools"] = json.loads(form.tools)
        try:
            text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, **options))
            text.encode()  # what is no character is refused, too
        except Exception as error:  # whatever a template raises, it is about these messages
            raise RequestError(f"the chat template refuses these messages: {error}") from error
        return text


def _weight(rendered: Rendered, prompt: Prompt, prefix: str, tools: str) -> int:
    """Bytes that a rendered prompt takes about, with what was asked."""
    said = [prompt.text] if isinstance(prompt, Text) else []
    if isinstance(prompt, Chat):
        said = [part for message in prompt.messages for part in (message.content, message.extra)]
    return _TOKEN * (len(rendered.ids) + len(said) + 1) + sum(map(sys.getsizeof, (*said, prefix, tools)))


def _weight_of_frame(frame: tuple[str, ...], form: Form) -> int:
    turns = (sys.getsizeof(part) for turn in form.turns for part in turn)
    return sum(map(sys.getsizeof, (*frame, form.tools))) + sum(turns)


def _json(value: Any) -> str:
    """As JSON, with every character as it is."""
    return json.dumps(value, ensure_ascii=False)


def _calls(extra: str) -> dict[str, Any]:
    """A message's further fields as templates expect them: the arguments of calls are objects there.

    Raises:
        RequestError: they are no JSON.
    """
    fields: dict[str, Any] = json.loads(extra) if extra else {}
    for call in fields.get("tool_calls") or ():
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"] or "{}")
            except (ValueError, RecursionError) as error:
                raise RequestError(f"the arguments of a tool call are no JSON: {error}") from error
    return fields


def _within(whole: Span, start: int, end: int) -> Span:
    """Characters `start` to `end` of the message that `whole` shows, as far as it shows them."""
    moved = whole.start - whole.offset
    return Span(
        whole.message,
        min(max(start + moved, whole.start), whole.end),
        min(max(end + moved, whole.start), whole.end),
        max(start, whole.offset),
    )


def _segments(length: int, literal: Sequence[Span]) -> list[tuple[int, int, bool]]:
    """(start, end, taken literally) of the parts to tokenise one by one."""
    parts, position = [], 0
    for span in literal:
        parts += [(position, span.start, False), (span.start, span.end, True)]
        position = span.end
    parts.append((position, length, False))
    return [part for part in parts if part[0] < part[1] or part[0] == 0 == length]


def _origin(start: int, end: int, text: str, spans: Sequence[Span]) -> Origin:
    """A token belongs to the message that its first character is of (an empty one to the template).

    Args:
        spans: in the order of the text, none of them empty.
    """
    index = bisect_right(spans, start, key=_start) - 1
    if index < 0 or start >= spans[index].end or end <= start:
        return Origin(None, start, end, text)
    span = spans[index]
    moved = span.offset - span.start
    return Origin(span.message, start + moved, min(end, span.end) + moved, text)


def _start(span: Span) -> int:
    return span.start


def _in_a_row(texts: Sequence[str], message: int, start: int = 0) -> list[Origin]:
    """Origins of tokens that follow each other from character `start` of a message on."""
    ends = accumulate(map(len, texts), initial=start)
    return [Origin(message, end, end + len(text), text) for text, end in zip(texts, ends, strict=False)]


def _spans_in_frame(text: str, frame: Sequence[str], contents: Sequence[str]) -> tuple[Span, ...] | None:
    """Where the contents stand if the template puts them, as they are or stripped, into its frame."""
    spans, position = [], 0
    for index, content in enumerate(contents):
        position += len(frame[index])
        stripped = content.strip()
        shown = content if text.startswith(content + frame[index + 1], position) else stripped
        offset = 0 if shown is content else len(content) - len(content.lstrip())
        spans.append(Span(index, position, position + len(shown), offset))
        position += len(shown)
    rebuilt = "".join(head + text[span.start : span.end] for head, span in zip(frame, spans, strict=False))
    whole = rebuilt + frame[-1] == text
    exact = all(text[span.start : span.end].strip() == contents[span.message].strip() for span in spans)
    return tuple(spans) if whole and exact else None


def _spans_by_search(text: str, contents: Sequence[str]) -> tuple[Span, ...]:
    """Where the contents stand, looked for one after the other; those not found are left out."""
    spans, position = [], 0
    for index, content in enumerate(contents):
        for shown, offset in ((content, 0), (content.strip(), len(content) - len(content.lstrip()))):
            at = text.find(shown, position) if shown else -1
            if at >= 0:
                spans.append(Span(index, at, at + len(shown), offset))
                position = at + len(shown)
                break
    return tuple(spans)
