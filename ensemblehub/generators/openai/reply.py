"""Replies of an OpenAI-compatible API as typed records: stream events and whole replies, chats and texts.

Strict about the answer: text, tool calls, logprobs and finish reasons of another type are a `MalformedError`.
Tolerant about the rest: unknown fields are ignored, and ids and indices of another type count as missing.
Text is checked by functions of this module because pydantic's own `str` refuses halves of surrogate pairs,
which providers split over two events.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError

from ensemblehub.generators.openai.usage import MOST_TOKENS, number
from ensemblehub.schema import Alternative, Finish, Token
from ensemblehub.surrogates import whole

UNLIKELY = -9999.0  # OpenAI's logprob of a token outside the top alternatives
_ROUNDING = 1e-3  # by which a logprob may exceed 0
_SILENT_PARTS = ("reference", "citation", "citations")  # parts of a content that are no text
_THOUGHT_PARTS = ("thinking", "reasoning", "thought")
_NOT_ENDED = ("", "null", "none", "undefined", "not_finished", "unspecified", "in_progress")
_STOPPED = (
    "stop(ped|_sequence|_token|_str)?|eos(_token)?|eod|end(_turn|_of_text|_of_sequence)?|completed?|done"
    "|finish(ed)?|normal|success"
)
_BROKEN_OFF = (
    "error|fail|abort|cancel|interrupt|preempt|kill|disconnect|timeout|timed_out|rate_limit|filter|safety"
    "|block|prohibit|refus|recitation|sensitive|moderation|guardrail|toxic|spii|malformed|unexpected"
    "|insufficient|overload"
)
_CUT = "length|limit|max|trunc|budget|exceed|incomplete|cut_?off|out_of"
_TYPES = {"list_type": "it is no list", "model_type": "it is no object", "dict_type": "it is no object"}


class MalformedError(Exception):
    """A reply that violates the API's schema; its text is one line that names the field."""


def finish_of(word: str) -> Finish | Literal["unknown", "failed"] | None:
    """Return the finish reason from any provider's term for it, or None if the answer has not ended.

    `failed`: the provider broke it off.  `unknown`: a word that says none of this.
    """
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word.strip(" .\t\r\n").rpartition(".")[2]).lower()
    name = re.sub(r"[\s-]+", "_", name).removeprefix("finish_reason_")
    if name in _NOT_ENDED:
        return None
    if re.fullmatch(_STOPPED, name):
        return "stop"
    if re.search(_BROKEN_OFF, name):
        return "failed"
    if re.search(_CUT, name):
        return "length"
    return "tool_calls" if re.search("tool|function", name) else "unknown"


@dataclass(frozen=True)
class Words:
    """Text of an answer, and the thoughts among it."""

    said: str = ""
    thought: str = ""

    def __add__(self, other: Words) -> Words:
        return Words(self.said + other.said, self.thought + other.thought)

    def __bool__(self) -> bool:
        return bool(self.said or self.thought)


def _words(value: Any) -> Words:
    """Text, or a list of parts."""
    if not isinstance(value, list):
        return Words(_text(value))
    parts = [_part(part) for part in value]
    return Words("".join(part.said for part in parts), "".join(part.thought for part in parts))


def _part(part: Any) -> Words:
    if isinstance(part, str):
        return Words(part)
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _THOUGHT_PARTS:
        inner = _words(next((part[name] for name in (*_THOUGHT_PARTS, "text") if name in part), None))
        return Words("", inner.thought + inner.said)
    if kind in _SILENT_PARTS:
        return Words()
    text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"a part that is no text ({kind if isinstance(kind, str) else _type(part)})")
    return Words(text)


def _text(value: Any) -> str:
    """Text that may be missing."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{_type(value)} where text belongs")
    return value or ""


def _arguments(value: Any) -> str:
    """The arguments of a call as JSON text; some servers send the object itself."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else _text(value)


def _index(value: Any) -> int | None:
    count = number(value, MOST_TOKENS)
    return None if count is None else int(count)


def _identifier(value: Any) -> str:
    return whole(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", str: "text"}
    return names.get(type(value), "a number")


def listed(value: Any, name: str) -> list[Any]:
    """A list that may be missing.

    Raises:
        ValueError: it is something else.
    """
    if value is not None and not isinstance(value, list):
        raise ValueError(f"`{name}`: {_type(value)} where a list belongs")
    return value or []


def logprob(value: Any) -> float:
    """A logprob in nats.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= _ROUNDING:
        raise ValueError(f"{_type(value)} that is no logprob")
    return min(0.0, max(UNLIKELY, value))


def alternatives(entry: Any) -> tuple[Alternative, ...]:
    """The top tokens at a position of a text completion, most probable first.

    Raises:
        ValueError: the entry is not a mapping of tokens to logprobs.
    """
    if entry is not None and not isinstance(entry, dict):
        raise ValueError(f"`top_logprobs`: {_type(entry)} where an object belongs")
    known = [(name, value) for name, value in (entry or {}).items() if value is not None]
    found = [Alternative(whole(name), logprob(value)) for name, value in known]
    return tuple(sorted(found, key=lambda alternative: -alternative.logprob))


def _tokens(value: Any) -> tuple[Token, ...]:
    """Written tokens with their logprobs, in the form of chats or that of text completions."""
    if not value:
        return ()
    if not isinstance(value, dict):
        raise ValueError(f"{_type(value)} where an object belongs")
    if value.get("content") is not None:
        return tuple(_token(entry) for entry in listed(value["content"], "content"))
    texts = listed(value.get("tokens"), "tokens")
    logprobs = listed(value.get("token_logprobs"), "token_logprobs")
    if len(texts) != len(logprobs):
        raise ValueError(f"{len(logprobs)} logprobs for {len(texts)} tokens")
    tops = [alternatives(entry) for entry in listed(value.get("top_logprobs"), "top_logprobs")[: len(texts)]]
    tops += [()] * (len(texts) - len(tops))
    return tuple(
        Token(_text(text), logprob=None if given is None else logprob(given), top=top)
        for text, given, top in zip(texts, logprobs, tops, strict=True)
    )


def _token(entry: Any) -> Token:
    text, value, part = _read_entry(entry, "an entry")
    top = []
    for given in listed(entry.get("top_logprobs"), "top_logprobs"):
        name, other, own = _read_entry(given, "an alternative")
        top.append(Alternative(whole(name), UNLIKELY if other is None else other, part=own))
    return Token(text, logprob=value, top=tuple(top), part=part)


def _read_entry(entry: Any, what: str) -> tuple[str, float | None, bytes | None]:
    """A token, its logprob, and its bytes where they are no text by themselves and the API gives them."""
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
        raise ValueError(f"{what} without a token")
    value = entry.get("logprob")
    given = entry.get("bytes")
    try:
        part = bytes(given) if isinstance(given, list) else b""
    except (TypeError, ValueError):
        part = b""
    broken = "\ufffd" in part.decode(errors="replace")
    return entry["token"], None if value is None else logprob(value), part if broken else None


Content = Annotated[Words, PlainValidator(_words)]
OptionalText = Annotated[str, PlainValidator(_text)]
Index = Annotated[int | None, PlainValidator(_index)]


class APIFunction(BaseModel):
    """The function of a tool call, or a part of it."""

    name: OptionalText = ""
    arguments: Annotated[str, PlainValidator(_arguments)] = ""


class APIToolCall(BaseModel):
    """A tool call, or a part of it; fields that a provider adds to it are kept."""

    model_config = ConfigDict(extra="allow")
    index: Index = None
    id: Annotated[str, PlainValidator(_identifier)] = ""
    function: APIFunction | None = None


class APIMessage(BaseModel):
    """A message, or what is added to it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    content: Content = Words()
    refusal: Content = Words()
    reasoning_content: Content = Words()
    reasoning: Content = Words()
    tool_calls: list[APIToolCall] | None = None
    function_call: APIFunction | None = None

    @property
    def words(self) -> Words:
        """Its text and its thoughts."""
        thoughts = self.reasoning_content or self.reasoning
        return Words("", thoughts.said + thoughts.thought) + self.content + self.refusal

    @property
    def calls(self) -> list[APIToolCall]:
        """Its tool calls, in today's form or the first one."""
        first = [APIToolCall(index=0, function=self.function_call)] if self.function_call else []
        return self.tool_calls or first


class APIChoice(BaseModel):
    """An answer, or what is added to it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    index: Index = None
    delta: APIMessage | None = None
    message: APIMessage | None = None
    text: Content = Words()
    finish_reason: OptionalText = ""
    logprobs: Annotated[tuple[Token, ...], PlainValidator(_tokens)] = ()


class APIReply(BaseModel):
    """A reply, or an event of a stream."""

    choices: list[APIChoice] | None = None

    @classmethod
    def read(cls, reply: Mapping[str, Any]) -> APIReply:
        """The record of a JSON object.

        Raises:
            MalformedError: a field of the answer has another type.
        """
        try:
            return cls.model_validate(reply)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            reason = _TYPES.get(first["type"]) or first["msg"].removeprefix("Value error, ")
            raise MalformedError(f"`{where}`: {reason}") from error
        except RecursionError as error:
            raise MalformedError("it is nested too deeply") from error
