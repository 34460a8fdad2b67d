"""From a request to token ids, each with the message and the characters it comes from.

Text inside messages and in the answer so far is never read as special tokens.  Knows tokenizers; knows
no model.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from ensemblehub.errors import ConfigError, RequestError, one_line
from ensemblehub.generators.base import Tokenizer
from ensemblehub.generators.text.recent import Recent
from ensemblehub.generators.text.spans import (
    Cut,
    Origin,
    Place,
    Span,
    Veil,
    cuts,
    in_a_row,
    literal_places,
    marks_for,
    origin_of,
    segments,
    shown_spans,
    spans_by_search,
    spans_in_frame,
    without,
)
from ensemblehub.schema import Chat, Message, Piece, Prompt, Request, Text

_NONE = '""'  # no tools, as JSON
_PLAIN = (str, int, float, bool, type(None))
VERY_LARGE_INTEGER = int(1e30)  # transformers' word for a length that it does not know
_KEPT = 2**26  # bytes of rendered prompts that are kept
_TOKEN = 250  # bytes that a rendered token takes about
_PLACES = ("_path", "_file")  # settings that say where files lie, which is nobody else's business


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model reads it; `ids` and `origins` are of one length."""

    ids: tuple[int, ...]
    origins: tuple[Origin, ...]


@dataclass(frozen=True)
class Shown:
    """What a chat template makes of a conversation.

    Attributes:
        spans: where its messages stand.
        literal: where special tokens stand that somebody wrote, which are plain text; in order.
    """

    text: str
    spans: tuple[Span, ...]
    literal: tuple[Place, ...] = ()


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
        controls = {
            index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._controls = frozenset(controls)
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        self._guarded = self._controls - (
            {tokenizer.unk_token_id} - ends
        )  # any text may hold what is unknown
        longest_first = sorted(filter(None, controls.values()), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
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
        turns = [
            self._own(turn) if turn.engine == author else self._read(turn.text) for turn in request.written
        ]
        ids, texts = (
            [index for ids, _ in turns for index in ids],
            [text for _, texts in turns for text in texts],
        )
        answer = len(request.prompt.messages) if isinstance(request.prompt, Chat) else 1
        return Rendered((*head.ids, *ids), (*head.origins, *in_a_row(texts, answer, start)))

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
        shown = self._chat(Chat((*chat.messages, answer), chat.thinking), asking=False, last=(parts, mark))
        whole = next((span for span in shown.spans if span.message == len(chat.messages)), None)
        if whole is not None:
            starts = accumulate((len(part + mark) for part in parts[:-1]), initial=0)
            pieces = [whole.part(start, start + len(part)) for start, part in zip(starts, parts, strict=True)]
            shown = replace(shown, spans=(*(span for span in shown.spans if span is not whole), *pieces))
        return self._tokenised(shown, "", 0)

    def _render(self, prompt: Prompt, prefix: str, tools: str) -> Rendered:
        if isinstance(prompt, Chat):
            return self._tokenised(self._chat(prompt, tools=tools), prefix, len(prompt.messages))
        if isinstance(prompt, Text):
            head = Span(0, 0, len(prompt.text))
            return self._tokenised(Shown(prompt.text, (head,)), prefix, 1, raw=True)
        return self._given(prompt.ids, prefix)

    def _given(self, ids: Sequence[int], prefix: str) -> Rendered:
        origins = in_a_row([str(self.tokenizer.decode([index])) for index in ids], 0)
        tail = self._tokenised(Shown("", ()), prefix, 1, middle=True)
        return Rendered((*ids, *tail.ids), (*origins, *tail.origins))

    def _tokenised(
        self, shown: Shown, prefix: str, answer: int, *, raw: bool = False, middle: bool = False
    ) -> Rendered:
        """Tokenise what is shown and the answer so far; no control token comes of what a message or the answer says.

        Args:
            raw: what is shown is a raw prompt, in which control tokens are meant; the tokenizer adds its own.
            middle: the text stands behind another.
        """
        text, spans, literal = shown.text, shown.spans, list(shown.literal)
        guarded = () if raw else spans
        if prefix:
            said = Span(answer, len(text), len(text) + len(prefix))
            text, spans, guarded = text + prefix, (*spans, said), (*guarded, said)
        while True:
            tokens = self._cut(text, literal, raw, middle)
            controls = [one for one in tokens if one.id in self._guarded and one.start < one.end]
            found = literal_places(controls, guarded, literal)
            if found == literal:
                break
            literal = found
        shown_at = shown_spans(spans)
        origins = tuple(origin_of(one.start, one.end, one.text, shown_at) for one in tokens)
        return Rendered(tuple(one.id for one in tokens), origins)

    def _cut(self, text: str, literal: Sequence[Place], raw: bool, middle: bool) -> list[Cut]:
        """The tokens of a text, parts of which are taken literally."""
        tokens: list[Cut] = []
        for start, end, plain in segments(len(text), literal):
            if raw and start == 0:
                tokens += self._raw(text[:end])
                continue
            head, skipped = self._anchor if start or middle else ("", ())
            encoded = self._encode(head + text[start:end], False, literal=plain)
            tokens += cuts(encoded, text, start - len(head))[len(skipped) :]
        return tokens

    def _raw(self, text: str) -> list[Cut]:
        """The tokens of a raw prompt with those that the tokenizer puts around it, unless they stand there already."""
        encoded = self._encode(text, True, literal=False)
        tokens, added = cuts(encoded, text), encoded.special_tokens_mask
        inner = [index for index, mark in enumerate(added) if not mark]
        if not inner:
            return tokens
        ids = [one.id for one in tokens]
        first, last = inner[0], inner[-1] + 1
        after = len(ids) - last
        start = first if first and ids[:first] == ids[first : min(2 * first, last)] else 0
        end = last if after and ids[last:] == ids[max(first, last - after) : last] else len(ids)
        return tokens[start:end]

    def encode(self, text: str, special: bool = True) -> list[int]:
        return (
            [one.id for one in self._raw(text)] if special else self._encode(text, False, literal=False).ids
        )

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids))

    @property
    def controls(self) -> frozenset[int]:
        return self._controls

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer: the tokenizer's end of text, and what the chat template puts behind a last reply."""
        added = {
            token.content: index
            for index, token in self.tokenizer.added_tokens_decoder.items()
            if token.content
        }
        marks, behind = marks_for(["question", "reply"]), ""
        with suppress(RequestError):  # there is no template, or it wants another conversation
            behind = self._apply(Form((("user", ""), ("assistant", "")), None, asking=False), marks)
        behind = behind.rpartition(marks[-1])[2].lstrip()
        closing = max((content for content in added if behind.startswith(content)), key=len, default=None)
        found = (self.tokenizer.eos_token_id, added.get(closing or ""))
        return frozenset(index for index in found if index is not None)

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
        ids: list[int] = self._encode(head + text, False, literal=True).ids[len(head_ids) :]
        if self._guarded.isdisjoint(ids):
            return ids
        return list(self._tokenised(Shown("", ()), text, 0, middle=True).ids)

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

    def _chat(
        self,
        chat: Chat,
        asking: bool = True,
        tools: str = _NONE,
        last: tuple[Sequence[str], str] | None = None,
    ) -> Shown:
        """What the template shows, and where the messages and what they hold of special tokens stand in it.

        Args:
            last: the parts of the last message, and a special token after each that is not part of what it says.
        """
        contents = [message.content for message in chat.messages]
        form = Form(tuple((one.role, one.extra) for one in chat.messages), chat.thinking, asking, tools)
        self._check_fields(form)
        text = self._apply(form, contents)
        if tools != _NONE and text == self._apply(replace(form, tools=_NONE), contents):
            raise RequestError(f"{self.tokenizer.name_or_path}: the chat template shows the model no tools")
        veil = Veil(self._special, (text, *contents))
        veiled = [veil.hide(content) for content in contents]
        if last is not None:
            veiled[-1] = "".join(veil.hide(part) + last[1] for part in last[0])
        literal: tuple[Place, ...] = ()
        if veiled != contents:
            text, literal = self._literal(form, text, veil, veiled)
        spans = spans_in_frame(text, self._frame(form), contents)
        if spans is None:  # shown twice, or rewritten
            spans = spans_by_search(text, contents)
            if self._adds(without(text, literal), self._apply(form, marks_for(veiled))):
                raise RequestError("special tokens come of a message as the chat template rewrites it")
        return Shown(text, spans, literal)

    def _literal(
        self, form: Form, text: str, veil: Veil, veiled: Sequence[str]
    ) -> tuple[str, tuple[Place, ...]]:
        """The rendered text, and where the special tokens that the messages hold stand in it.

        Raises:
            RequestError: the template cuts them.
        """
        hidden = self._apply(form, veiled)
        shown, places = veil.show(hidden)
        if shown != text and not self._adds(text, hidden):
            return text, ()  # it takes them out, as earlier reasoning
        if veil.remains(shown):
            raise RequestError("the messages hold special tokens and the chat template rewrites them")
        return shown, tuple(places)

    def _adds(self, text: str, own: str) -> bool:
        """Whether a rendered `text` has more special tokens than the template's `own`."""
        return bool(Counter(self._special.findall(text)) - Counter(self._special.findall(own)))

    def _check_fields(self, form: Form) -> None:
        """Refuse special tokens in what a template shows besides contents."""
        for index, (_, extra) in enumerate(form.turns):
            if self._special.search(_json(_calls(extra))):
                raise RequestError(f"the tool calls of message {index} hold special tokens")
        if self._special.search(form.tools):
            raise RequestError("the tools hold special tokens")

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
            raise RequestError(
                f"{self.tokenizer.name_or_path}: the tokenizer has no chat template; send a text prompt"
            )
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
            raise RequestError(f"the chat template refuses these messages: {one_line(error)}") from error
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
