"""Answers of vLLM in a response format or with tool calls, by its own grammars and parsers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ensemblehub.errors import ConfigError, EngineError, RequestError
from ensemblehub.generators.structure.answer import StructuredAnswer, reason_of
from ensemblehub.schema import Chat, Request


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


class Structure(StructuredAnswer):
    """An answer with a response format or tool calls.

    Args:
        ids: of the prompt.
        parser: as `parser_of` gives it.

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
        super().__init__(name, request, names)
        messages = (
            [message.wire for message in request.prompt.messages] if isinstance(request.prompt, Chat) else []
        )
        self._ids = list(ids)
        try:
            from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

            self._asked = ChatCompletionRequest(messages=messages, **request.extra)
            called = bool(self._asked.tools) and self._asked.tool_choice != "none"
            self._parser: Any = parser(tokenizer, self._asked.tools) if parser and called else None
            if self._parser is not None:
                self._asked = self._parser.adjust_request(self._asked)
            self.constraint = self._asked.to_sampling_params(1, {}).structured_outputs
        except Exception as error:  # pydantic's and vLLM's own kinds
            raise RequestError(f"{name}: {reason_of(error)}") from error
        self.calling = self._parser is not None
        self.named = not isinstance(self._asked.tool_choice, str)

    def read(self, text: str, ids: Sequence[int], finished: bool) -> tuple[str, Sequence[Mapping[str, Any]]]:
        try:
            delta = self._parser.parse_delta(text, ids, self._asked, self._ids, finished=finished)
        except Exception as error:  # whatever a parser raises
            raise EngineError(
                f"{self.name}: vLLM's tool parser failed: {reason_of(error)}", self.name
            ) from error
        calls = (delta.tool_calls or ()) if delta else ()
        return (delta.content or "") if delta else "", [call.model_dump(exclude_none=True) for call in calls]
