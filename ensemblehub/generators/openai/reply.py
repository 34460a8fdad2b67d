"""Replies of an OpenAI-compatible API, read once into typed records.

Covers the events of a stream and whole replies, of chats and of text completions.  Strict about the answer: text, tool
calls, logprobs and finish reasons of another type are a `MalformedError`.  Tolerant about the rest: unknown fields are
ignored, ids and indices of another type count as missing, and so does impossible usage.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError

from ensemblehub.schema import Alternative, Finish, Token
from ensemblehub.surrogates import whole

End = Finish | Literal["unknown", "failed"]
UNLIKELY = -9999.0  # OpenAI's logprob of a token outside the top alternatives
_ROUNDING = 1e-3  # by which a logprob may exceed 0
_MOST_TOKENS = 10**9
_MOST_DOLLARS = 1e6
_SILENT_PARTS = ("reference", "citation", "citations")  # of a content, that are no text
_THOUGHT_PARTS = ("thinking", "reasoning", "thought")
_NOT_ENDED = ("", "null", "none", "undefined", "not_finished", "unspecified", "in_progress")
_STOPPED = (
    "stop(ped|_sequence|_token|_str)?|eos(_token)?|eod|end(_turn|_of_text|_of_sequence)?|completed?|done"
    "|finish(ed)?|normal|success"
)
_BROKEN_OFF = (
    "error|fail|abort|cancel|interrupt|preempt|kill|disconnect|timeout|timed_out|rate_limit|filter|safety|block"
    "|prohibit|refus|recitation|sensitive|moderation|guardrail|toxic|spii|malformed|unexpected|insufficient|overload"
)
_CUT = "length|limit|max|trunc|budget|exceed|incomplete|cut_?off|out_of"
_ENDS: tuple[tuple[End, str], ...] = (
    ("failed", _BROKEN_OFF),
    ("length", _CUT),
    ("tool_calls", "tool|function"),
)
_NOT_THAT = {"list_type": "it is no list", "model_type": "it is no object", "dict_type": "it is no object"}


class MalformedError(Exception):
    """A reply that is not what the API promises; its text is one line that names the field."""


def finish_of(word: str) -> End | None:
    """How an answer ended, by any provider's word for it; None where it has not ended.

    `failed`: the provider broke it off.  `unknown`: a word that says none of this.
    """
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word.strip(" .\t\r\n").rpartition(".")[2]).lower()
    name = re.sub(r"[\s-]+", "_", name).removeprefix("finish_reason_")
    if name in _NOT_ENDED:
        return None
    if re.fullmatch(_STOPPED, name):
        return "stop"
    return next((end for end, pattern in _ENDS if re.search(pattern, name)), "unknown")


@dataclass(frozen=True)
class Words:
    """Text of an answer, and the thoughts among it."""

    said: str = ""
    thought: str = ""


def _words(value: Any) -> Words:
    if value is None:
        return Words()
    if isinstance(value, str):
        return Words(value)
    if not isinstance(value, list):
        raise ValueError(f"{_kind(value)} where text belongs")
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
        raise ValueError(f"a part that is no text ({kind if isinstance(kind, str) else _kind(part)})")
    return Words(text)


def _word(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{_kind(value)} where a word belongs")
    return value


def _place(value: Any) -> int | None:
    count = number(value, _MOST_TOKENS)
    return None if count is None else int(count)


def _name(value: Any) -> str:
    """An id, which may be anything that can be written."""
    return whole(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _arguments(value: Any) -> str:
    """The arguments of a call as JSON text; some servers give the object itself."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else _word(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", str: "text"}
    return names.get(type(value), "a number")


Content = Annotated[Words, PlainValidator(_words)]
Word = Annotated[str, PlainValidator(_word)]
Place = Annotated[int | None, PlainValidator(_place)]
Name = Annotated[str, PlainValidator(_name)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)


class Called(_Record):
    """The function of a call, or a part of it."""

    name: Word = ""
    arguments: Annotated[str, PlainValidator(_arguments)] = ""


class Call(_Record):
    """A tool call, or a part of it; what a provider adds to it comes along."""

    model_config = ConfigDict(extra="allow")
    index: Place = None
    id: Name = ""
    function: Called | None = None


class Said(_Record):
    """A message, or what is added to it."""

    content: Content = Words()
    refusal: Content = Words()
    reasoning_content: Content = Words()
    reasoning: Content = Words()
    tool_calls: list[Call] | None = None
    function_call: Called | None = None

    @property
    def words(self) -> Words:
        """What it says and thinks."""
        first = next((one for one in (self.reasoning_content, self.reasoning) if one != Words()), Words())
        thought = first.said + first.thought + self.content.thought
        return Words(self.content.said + self.refusal.said, thought)

    @property
    def calls(self) -> list[Call]:
        """The calls that it makes, in today's form or the first one."""
        first = [Call(index=0, function=self.function_call)] if self.function_call else []
        return self.tool_calls or first


def _tokens(value: Any) -> tuple[Token, ...]:
    """Written tokens with their logprobs; chat's form, or that of text completions."""
    if not value:
        return ()
    if not isinstance(value, dict):
        raise ValueError(f"{_kind(value)} where an object belongs")
    if value.get("content") is not None:
        return tuple(_token(entry) for entry in listed(value["content"], "content"))
    texts, values = (listed(value.get(name), name) for name in ("tokens", "token_logprobs"))
    if len(texts) != len(values):
        raise ValueError(f"{len(values)} logprobs for {len(texts)} tokens")
    tops = [alternatives(entry) for entry in listed(value.get("top_logprobs"), "top_logprobs")[: len(texts)]]
    tops += [()] * (len(texts) - len(tops))
    rows = zip(texts, values, tops, strict=True)
    return tuple(Token(_word(text), None, _known(logprob), None, top) for text, logprob, top in rows)


def _token(entry: Any) -> Token:
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
        raise ValueError("an entry without a token")
    top = tuple(map(_alternative, listed(entry.get("top_logprobs"), "top_logprobs")))
    return Token(entry["token"], None, _known(entry.get("logprob")), None, top, _bytes(entry))


def _alternative(entry: Any) -> Alternative:
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
        raise ValueError("an alternative without a token")
    value = _known(entry.get("logprob"))
    return Alternative(whole(entry["token"]), UNLIKELY if value is None else value, None, _bytes(entry))


def _bytes(entry: dict[str, Any]) -> bytes | None:
    """The bytes of a token that are no text by themselves, where the API gives them."""
    given = entry.get("bytes")
    try:
        own = bytes(given) if isinstance(given, list) else b""
    except (TypeError, ValueError):
        return None
    return own if "\ufffd" in own.decode(errors="replace") else None


def listed(value: Any, name: str) -> list[Any]:
    """A list that may be missing; a `ValueError` where it is something else."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"`{name}`: {_kind(value)} where a list belongs")
    return value


def alternatives(entry: Any) -> tuple[Alternative, ...]:
    """The top tokens at a place of a text completion, most likely first.

    Raises:
        ValueError: the entry is not a mapping of tokens to logprobs.
    """
    if entry is None:
        return ()
    if not isinstance(entry, dict):
        raise ValueError(f"`top_logprobs`: {_kind(entry)} where an object belongs")
    known = [(name, _known(value)) for name, value in entry.items()]
    found = [Alternative(whole(name), value) for name, value in known if value is not None]
    return tuple(sorted(found, key=lambda one: -one.logprob))


def _known(value: Any) -> float | None:
    return None if value is None else logprob(value)


def logprob(value: Any) -> float:
    """A logprob in nats; a `ValueError` where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= _ROUNDING:
        raise ValueError(f"{_kind(value)} that is no logprob")
    return min(0.0, max(UNLIKELY, value))


class Choice(_Record):
    """An answer, or what is added to it."""

    index: Place = None
    delta: Said | None = None
    message: Said | None = None
    text: Content = Words()
    finish_reason: Word = ""
    logprobs: Annotated[tuple[Token, ...], PlainValidator(_tokens)] = ()


class Reply(_Record):
    """A reply, or an event of a stream of them."""

    choices: list[Choice] | None = None

    @classmethod
    def read(cls, reply: Mapping[str, Any]) -> Reply:
        """From its JSON.

        Raises:
            MalformedError: a field that is the answer's has another type.
        """
        try:
            return cls.model_validate(reply)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            reason = _NOT_THAT.get(first["type"]) or first["msg"].removeprefix("Value error, ")
            raise MalformedError(f"`{where}`: {reason}") from error
        except RecursionError as error:
            raise MalformedError("it is nested too deeply") from error


@dataclass(frozen=True)
class Usage:
    """What a reply says that it cost; None where it does not say, or says what cannot be.

    Attributes:
        read, cached, written: tokens.
        usd: US dollars.
        sure: whether all that is needed was said, and is no estimate of the provider's own.
    """

    read: int | None = None
    cached: int = 0
    written: int | None = None
    usd: float | None = None
    sure: bool = False

    @classmethod
    def told(cls, reply: Mapping[str, Any]) -> Usage | None:
        """From a reply in any of the places where providers put it; None where it has none."""
        choices = reply.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        for place in (reply, reply.get("x_groq"), first):
            usage = place.get("usage") if isinstance(place, dict) else None
            if isinstance(usage, dict) and usage:
                return cls._of(usage)
        return None

    @classmethod
    def _of(cls, usage: Mapping[str, Any]) -> Usage:
        read, written = (
            _tokens_of(usage, *names)
            for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
        )
        details = usage.get("prompt_tokens_details")
        own = [details.get("cached_tokens") if isinstance(details, dict) else details]
        given = next(
            (
                one
                for one in (*own, usage.get("cached_tokens"), usage.get("prompt_cache_hit_tokens"))
                if one is not None
            ),
            0,
        )
        cached = number(given, _MOST_TOKENS)
        known = read is not None and written is not None and cached is not None and cached <= read
        usd, sure = _dollars(usage)
        return cls(read, min(int(cached or 0), read or 0), written, usd, known and sure)


def _tokens_of(usage: Mapping[str, Any], *names: str) -> int | None:
    value = next((usage[name] for name in names if usage.get(name) is not None), None)
    count = number(value, _MOST_TOKENS)
    return None if count is None else int(count)


def _dollars(usage: Mapping[str, Any]) -> tuple[float | None, bool]:
    """The price in US dollars, and whether it can be trusted; `cost` is a number, or an object that holds one."""
    cost, details = usage.get("cost"), usage.get("cost_details")
    objects = [entry for entry in (cost, details) if isinstance(entry, dict)]
    values = [] if isinstance(cost, dict) else [cost]
    values += [entry.get(name) for entry in objects for name in ("usd", "total_cost")]
    given = next((value for value in values if value is not None), None)
    usd = number(given, _MOST_DOLLARS)
    sure = (given is None or usd is not None) and not any(entry.get("estimated") is True for entry in objects)
    return usd, sure


def number(value: Any, most: float) -> float | None:
    """A number from 0 to `most`, also where it is written as text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,15}(\.\d{1,15})?\s*", value, re.ASCII):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        return None
    return float(value) if math.isfinite(value) else None
