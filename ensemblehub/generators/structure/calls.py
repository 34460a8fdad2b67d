"""How model families write tool calls, and the calls in what a model writes.

The names are those of vLLM's `--tool-call-parser`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from ensemblehub.generators.text.stops import overlap

ToolParser = Literal["hermes", "llama3_json", "mistral"]
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class CallFormat:
    """A way to write tool calls: perhaps text, then `start`, `opening`, the calls, `closing`.

    Attributes:
        start: what tells a call from text; text itself, or a control token's name.
        before, middle, after: what stands around a call's name and its arguments, which are JSON.
        between: what stands between two calls.
        opening: white space in front of it may be left out.
        repeated: whether `start` stands before every call, not only the first.
        behind_text: whether calls may follow text; otherwise they are the whole reply.
    """

    start: str
    before: str
    middle: str
    after: str
    between: str = ""
    opening: str = ""
    closing: str = ""
    repeated: bool = True
    behind_text: bool = True

    @property
    def following(self) -> str:
        """What stands between the arguments of a call and the name of the next, behind `after`."""
        return self.between + (self.start if self.repeated else "") + self.before


FORMATS: dict[ToolParser, CallFormat] = {
    "hermes": CallFormat("<tool_call>", '\n{"name": "', '", "arguments": ', "}\n</tool_call>", between="\n"),
    "llama3_json": CallFormat('{"name": "', "", '", "parameters": ', "}", between="; ", behind_text=False),
    "mistral": CallFormat(
        "[TOOL_CALLS]",
        '{"name": "',
        '", "arguments": ',
        "}",
        between=", ",
        opening=" [",
        closing="]",
        repeated=False,
    ),
}
_MISTRAL_11 = CallFormat("[TOOL_CALLS]", "", "[ARGS]", "")


def format_of(parser: ToolParser, controls: Collection[str]) -> CallFormat:
    """The format that a parser's name stands for, with a tokenizer that has these control tokens."""
    return _MISTRAL_11 if parser == "mistral" and "[ARGS]" in controls else FORMATS[parser]


class JSONObject:
    """Finds the end of a JSON object that comes in parts."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = False

    @property
    def begun(self) -> bool:
        """Whether its first brace has come."""
        return self._depth > 0

    def end(self, text: str) -> int | None:
        """Position behind the object's last brace in the next `text`; None where it goes on."""
        for at, letter in enumerate(text):
            if self._quoted:
                self._quoted = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
            elif letter == '"':
                self._quoted = True
            elif letter == "{":
                self._depth += 1
            elif letter == "}":
                self._depth -= 1
                if not self._depth:
                    return at + 1
        return None


class CallReader:
    """Finds text and tool calls in what a model writes; names come once, arguments bit by bit."""

    def __init__(self, form: CallFormat, functions: Collection[str]) -> None:
        self._form = form
        self._held = ""
        self._begun = False  # whether anything but white space was said
        self._calls = 0
        self._object: JSONObject | None = None  # the arguments that are being written
        names = "|".join(map(re.escape, sorted(functions, key=len, reverse=True)))
        head = f"({names}){_loose(form.middle)}"
        self._first = re.compile(r"\s*" + _loose(form.start + form.opening + form.before) + head)
        self._next = re.compile(_loose(form.after + form.following) + head)

    def read(self, text: str, finished: bool) -> tuple[str, list[dict[str, Any]]]:
        """Take what was written; return the text outside of calls, and parts of calls as OpenAI streams them."""
        self._held += text
        said, calls = "" if self._calls else self._said(finished), list[dict[str, Any]]()
        while True:
            calls += self._arguments()
            head = (self._next if self._calls else self._first).match(self._held)
            if self._object is not None or head is None:
                return said, calls
            self._calls += 1
            self._object = JSONObject()
            self._held = self._held[head.end() :]
            named = self._part({"name": head[1], "arguments": ""})
            calls.append({"id": _call_id(), "type": "function", **named})

    def _arguments(self) -> list[dict[str, Any]]:
        """Take what is held of the arguments that are being written."""
        if self._object is None:
            return []
        written = self._held if self._object.begun else self._held.lstrip()
        end = self._object.end(written)
        if end is None:
            self._held = ""
        else:
            written, self._held = written[:end], written[end:]
            self._object = None
        return [self._part({"arguments": written})] if written else []

    def _part(self, function: dict[str, str]) -> dict[str, Any]:
        return {"index": self._calls - 1, "function": function}

    def _said(self, finished: bool) -> str:
        """Take the held text that is not, and does not begin, a call."""
        start, held = self._form.start, self._held
        if self._form.behind_text:
            found = held.find(start)
            cut = found if found >= 0 else len(held) - overlap(held, (start,))
        else:
            first = held.lstrip()[: len(start)]
            cut = len(held) if self._begun or not start.startswith(first) else 0
        if finished and not self._first.match(held[cut:]):
            cut = len(held)  # a call that was not begun is text
        said, self._held = held[:cut], held[cut:]
        self._begun = self._begun or bool(said.strip())
        return said


def _loose(literal: str) -> str:
    """A pattern for a literal with any white space where it has some."""
    return r"\s*".join(map(re.escape, _SPACE.split(literal)))


def _call_id() -> str:
    """An id of nine letters and digits, the only ones that Mistral's templates take."""
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(9))
