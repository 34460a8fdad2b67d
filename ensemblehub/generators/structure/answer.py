"""An answer with a response format or tool calls, whichever engine writes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ensemblehub.errors import RequestError, one_line
from ensemblehub.schema import Piece, Request


class StructuredAnswer(ABC):
    """Turns what a model writes into text and tool calls.

    Args:
        names: the text of control tokens, of which some models make their calls; none of those that end.

    Attributes:
        calling: whether tool calls are looked for.
        named: the request names the function to call, and `finish` stays "stop", as in OpenAI's API.

    Raises:
        RequestError: the request continues a given start of an answer.
    """

    def __init__(self, name: str, request: Request, names: Mapping[int, str]) -> None:
        if request.prefix:
            raise RequestError(f"{name}: an answer that keeps to a format or calls tools cannot be continued")
        self.name = name
        self.calling = self.named = False
        self._names = names
        self._called = False

    @abstractmethod
    def read(self, text: str, ids: Sequence[int], finished: bool) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """What the next tokens add to the answer: its text, and parts of tool calls as OpenAI streams them."""

    def piece(self, piece: Piece) -> Piece:
        """The same tokens, with the text outside of calls as their text, and the calls beside it.

        Raises:
            EngineError: the calls cannot be read.
        """
        if not self.calling:
            return piece
        ids = [token.id for token in piece.tokens if token.id is not None]
        text = "".join(
            token.text or self._names.get(index, "") for token, index in zip(piece.tokens, ids, strict=True)
        )
        said, calls = self.read(text, ids, piece.finish is not None)
        self._called = self._called or bool(calls)
        called = piece.finish == "stop" and self._called and not self.named
        finish = "tool_calls" if called else piece.finish
        return replace(piece, text=said, finish=finish, tool_calls=tuple(calls))


def reason_of(error: Exception) -> str:
    """One line of pydantic's many, or all of another error in one."""
    listed = getattr(error, "errors", None)
    if callable(listed):
        first = listed()[0]
        where = [
            str(part) for part in first["loc"] if "[" not in str(part)
        ]  # pydantic's own steps have brackets
        return f"{'.'.join(where) or 'request'}: {first['msg'].removeprefix('Value error, ')}"
    return one_line(error)
