"""Answers of vLLM in a response format or with tool calls, by its own grammars and parsers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ensemblehub.errors import ConfigError, EngineError, RequestError, one_line
from ensemblehub.schema import Chat, Piece, Request


def parser_of(name: str, tool_parser: str, tokenizer: Any) -> Any:
    """The class that finds the tool calls of one model in what it writes.

    Args:
        tool_parser: vLLM's name of it, as its server's `--tool-call-parser` takes it.

    Raises:
        ConfigError: this vLLM has none of that name, or it does not go with the tokenizer.
    """
    try:
        from vllm.parser import ParserManager

        return ParserManager.get_parser(
            tool_parser_name=tool_parser, enable_auto_tools=True, tokenizer=tokenizer
        )
    except Exception as error:  # vLLM's own kinds, which change with its versions
        reason = str(error.__cause__ or error).strip("'")
        raise ConfigError(f"{name}: tool_parser {tool_parser!r}: {reason}") from error


class Structure:
    """An answer with a response format or tool calls.

    Args:
        ids: of the prompt.
        parser: as `parser_of` gives it.
        names: the text of control tokens, of which some models make their calls; none of those that end.

    Attributes:
        constraint: vLLM's `StructuredOutputsParams`; None leaves the model free.

    Raises:
        RequestError: vLLM does not understand the format or the tools.
    """

    def __init__(
        self,
        name: str,
        request: Request,
        ids: Sequence[int],
        parser: Any,
        tokenizer: Any,
        names: Mapping[int, str],
    ) -> None:
        if request.prefix:
            raise RequestError(f"{name}: an answer that keeps to a format or calls tools cannot be continued")
        messages = (
            [message.wire for message in request.prompt.messages] if isinstance(request.prompt, Chat) else []
        )
        self._name = name
        self._ids = list(ids)
        self._names = names
        self._called = False
        try:
            from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

            self._asked = ChatCompletionRequest(messages=messages, **request.extra)
            called = bool(self._asked.tools) and self._asked.tool_choice != "none"
            self._parser = parser(tokenizer, self._asked.tools) if parser and called else None
            if self._parser is not None:
                self._asked = self._parser.adjust_request(self._asked)
            self.constraint = self._asked.to_sampling_params(1, {}).structured_outputs
        except Exception as error:  # pydantic's and vLLM's own kinds
            raise RequestError(f"{name}: {_reason(error)}") from error

    def piece(self, piece: Piece) -> Piece:
        """The same tokens, with what is said as the text and the calls beside it.

        Raises:
            EngineError: vLLM's parser failed.
        """
        if self._parser is None:
            return piece
        ids = [token.id for token in piece.tokens if token.id is not None]
        text = "".join(
            token.text or self._names.get(index, "") for token, index in zip(piece.tokens, ids, strict=True)
        )
        try:
            delta = self._parser.parse_delta(
                text, ids, self._asked, self._ids, finished=piece.finish is not None
            )
        except Exception as error:  # whatever a parser raises
            raise EngineError(
                f"{self._name}: vLLM's tool parser failed: {_reason(error)}", self._name
            ) from error
        said, calls = (delta.content or "", delta.tool_calls or ()) if delta else ("", ())
        self._called = self._called or bool(calls)
        named = isinstance(
            self._asked.tool_choice, str
        )  # a function that is named is called, with no word about it
        finish = "tool_calls" if piece.finish == "stop" and self._called and named else piece.finish
        return replace(
            piece,
            text=said,
            finish=finish,
            tool_calls=tuple(call.model_dump(exclude_none=True) for call in calls),
        )


def _reason(error: Exception) -> str:
    """One line of pydantic's many, or all of another error in one."""
    listed = getattr(error, "errors", None)
    if callable(listed):
        first = listed()[0]
        where = [
            str(part) for part in first["loc"] if "[" not in str(part)
        ]  # pydantic's own steps have brackets
        return f"{'.'.join(where) or 'request'}: {first['msg']}"
    return one_line(error)
