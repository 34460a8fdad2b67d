"""Rendering conversations with a chat template, and the positions of the messages in the result.

Special tokens that a message holds are found again in the rendered text, so that they can be taken literally.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ensemblehub.errors import RequestError, one_line
from ensemblehub.generators.text.lru_cache import LRUCache
from ensemblehub.generators.text.spans import (
    Place,
    SpecialTokenMask,
    TextSpan,
    marks_for,
    spans_by_search,
    spans_in_frame,
    without,
)
from ensemblehub.schema import Chat

NO_TOOLS = '""'  # as JSON
_CACHED = 2**23  # bytes of templates' own texts that are kept


@dataclass(frozen=True)
class RenderedChat:
    """A conversation rendered by a chat template.

    Attributes:
        spans: where its messages stand.
        literal: where special tokens stand that a message holds, which are plain text; in order.
    """

    text: str
    spans: tuple[TextSpan, ...]
    literal: tuple[Place, ...] = ()


@dataclass(frozen=True)
class ChatForm:
    """A conversation without its contents.

    Attributes:
        turns: role of each message, and its further fields as JSON.
        thinking: as the chat's.
        asking: whether an answer is asked for.
        tools: those that may be called, as JSON.
    """

    turns: tuple[tuple[str, str], ...]
    thinking: bool | None
    asking: bool
    tools: str = NO_TOOLS


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        thinking: `enable_thinking` for chats that do not set it themselves.
        special: matches the tokenizer's special tokens.
    """

    def __init__(self, tokenizer: Any, thinking: bool | None, special: re.Pattern[str]) -> None:
        self._tokenizer = tokenizer
        self._thinking = thinking
        self._special = special
        self._frame = LRUCache(self._frame_of, _weight, _CACHED)

    def render(
        self,
        chat: Chat,
        asking: bool = True,
        tools: str = NO_TOOLS,
        last: tuple[Sequence[str], str] | None = None,
    ) -> RenderedChat:
        """Render a conversation.

        Args:
            last: the parts of the last message, and a special token after each that is no content.

        Raises:
            RequestError: the template refuses the messages, or rewrites special tokens in them.
        """
        contents = [message.content for message in chat.messages]
        turns = tuple((message.role, message.extra) for message in chat.messages)
        form = ChatForm(turns, chat.thinking, asking, tools)
        self._check_fields(form)
        text = self.apply(form, contents)
        if tools != NO_TOOLS and text == self.apply(replace(form, tools=NO_TOOLS), contents):
            raise RequestError(f"{self._tokenizer.name_or_path}: the chat template shows the model no tools")
        mask = SpecialTokenMask(self._special, (text, *contents))
        masked = [mask.hide(content) for content in contents]
        if last is not None:
            masked[-1] = "".join(mask.hide(part) + last[1] for part in last[0])
        literal: tuple[Place, ...] = ()
        if masked != contents:
            text, literal = self._literal(form, text, mask, masked)
        spans = spans_in_frame(text, self._frame(form), contents)
        if spans is None:  # shown twice, or rewritten
            spans = spans_by_search(text, contents)
            if self._adds(without(text, literal), self.apply(form, marks_for(masked))):
                raise RequestError("special tokens come of a message as the chat template rewrites it")
        return RenderedChat(text, spans, literal)

    def closing(self) -> str:
        """Text that the template puts after the last reply; empty if unknown."""
        marks = marks_for(["question", "reply"])
        try:
            text = self.apply(ChatForm((("user", ""), ("assistant", "")), None, asking=False), marks)
        except RequestError:  # there is no template, or it wants another conversation
            return ""
        return text.rpartition(marks[-1])[2].lstrip()

    def _literal(
        self, form: ChatForm, text: str, mask: SpecialTokenMask, masked: Sequence[str]
    ) -> tuple[str, tuple[Place, ...]]:
        """The rendered text, and where the special tokens that the messages hold stand in it.

        Raises:
            RequestError: the template cuts them.
        """
        hidden = self.apply(form, masked)
        shown, places = mask.show(hidden)
        if shown != text and not self._adds(text, hidden):
            return text, ()  # it takes them out, as earlier reasoning
        if mask.remains(shown):
            raise RequestError("the messages hold special tokens and the chat template rewrites them")
        return shown, tuple(places)

    def _adds(self, text: str, own: str) -> bool:
        """Whether a rendered `text` has more special tokens than the template's `own`."""
        return bool(Counter(self._special.findall(text)) - Counter(self._special.findall(own)))

    def _check_fields(self, form: ChatForm) -> None:
        """Refuse special tokens in what a template shows besides contents."""
        for index, (_, extra) in enumerate(form.turns):
            if self._special.search(to_json(_fields(extra))):
                raise RequestError(f"the tool calls of message {index} hold special tokens")
        if self._special.search(form.tools):
            raise RequestError("the tools hold special tokens")

    def _frame_of(self, form: ChatForm) -> tuple[str, ...]:
        """The template's own text around the contents."""
        marks = marks_for(["content"] * len(form.turns))
        frame = []
        rest = self.apply(form, marks)
        for mark in marks:
            before, _, rest = rest.partition(mark)
            frame.append(before)
        return (*frame, rest)

    def apply(self, form: ChatForm, contents: Iterable[str]) -> str:
        """The rendered text.

        Raises:
            RequestError: there is no template, or it refuses the messages.
        """
        if not self._tokenizer.chat_template:
            name = self._tokenizer.name_or_path
            raise RequestError(f"{name}: the tokenizer has no chat template; send a text prompt")
        turns = [
            {"role": role, "content": content, **_fields(extra)}
            for (role, extra), content in zip(form.turns, contents, strict=True)
        ]
        options: dict[str, Any] = {"add_generation_prompt": form.asking}
        thinking = self._thinking if form.thinking is None else form.thinking
        if thinking is not None:
            options["enable_thinking"] = thinking
        if form.tools != NO_TOOLS:
            options["tools"] = json.loads(form.tools)
        try:
            text = str(self._tokenizer.apply_chat_template(turns, tokenize=False, **options))
            text.encode()  # lone surrogates are refused, too
        except Exception as error:  # whatever a template raises, it is about these messages
            raise RequestError(f"the chat template refuses these messages: {one_line(error)}") from error
        return text


def _weight(frame: tuple[str, ...], form: ChatForm) -> int:
    turns = (part for turn in form.turns for part in turn)
    return sum(map(sys.getsizeof, (*frame, form.tools, *turns)))


def to_json(value: Any) -> str:
    """As JSON, with every character as it is."""
    return json.dumps(value, ensure_ascii=False)


def _fields(extra: str) -> dict[str, Any]:
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
