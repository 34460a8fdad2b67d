"""`/v1/responses`: OpenAI's Responses API, as a translation of chat completions.

What a request asks for becomes a `ChatRequest`; `response_events` turns the events of its answer into typed ones.
Source: the OpenAI API reference, and the models of the `openai` SDK.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len
from pydantic import Discriminator, Field, StrictBool, Tag, model_validator

from ensemblehub.api.answering import Answering
from ensemblehub.api.fields import Hint, Hints, LenientObject, RequestBody, StrictObject
from ensemblehub.api.problems import Problem
from ensemblehub.api.protocol import (
    ChatRequest,
    Content,
    EnsembleOptions,
    Number,
    PositiveCount,
    StreamOptions,
    TopLogprobs,
    text_of,
)
from ensemblehub.api.reading import validated
from ensemblehub.api.stored import StoredResponses

_LOGPROBS = "message.output_text.logprobs"
_CHAT_NAMES = {  # names of chat completions in errors
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


class InputItem(LenientObject):
    """An item of the input: a message, a call of a tool or its output; earlier reasoning is not read again."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    output: Content | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_thoughts(cls, data: Any) -> Any:
        return {"type": "reasoning"} if isinstance(data, dict) and data.get("type") == "reasoning" else data

    @model_validator(mode="after")
    def _complete(self) -> InputItem:
        needed = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
        }
        missing = [name for name in needed.get(self.type, ()) if getattr(self, name) is None]
        if missing:
            raise ValueError(f"an item of type {self.type} needs {missing[0]}")
        return self

    @property
    def call(self) -> dict[str, Any]:
        """The call of a tool as chat completions have it."""
        function = {"name": flat(self.namespace, self.name or ""), "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


class ReasoningOptions(StrictObject):
    """OpenAI's `reasoning`; the insight is sent as it is, not summarised."""

    effort: str | None = None
    summary: Hint = None
    generate_summary: Hint = None
    context: Literal["auto", "current_turn"] | None = None
    mode: Literal["standard"] | None = None


class TextFormat(StrictObject):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> TextFormat:
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise ValueError("a format of type json_schema needs name and schema")
        return self

    @property
    def chat(self) -> dict[str, Any] | None:
        """The form as chat completions have it."""
        if self.type != "json_schema":
            return None if self.type == "text" else {"type": self.type}
        given = self.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
        return {"type": self.type, "json_schema": given}


class TextOptions(StrictObject):
    """OpenAI's `text`."""

    format: TextFormat | None = None
    verbosity: Hint = None


def flat(namespace: str | None, name: str) -> str:
    """The name of a function in chat completions, which know no namespaces."""
    return f"{namespace}__{name}" if namespace else name


class FunctionTool(LenientObject):
    """A function of the client's; OpenAI's own tools are not offered."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if kind not in (None, "function"):
            raise ValueError(f"{kind!r} is not offered here, only functions of the client; leave it out")
        return data

    def chat(self, namespace: str | None = None) -> dict[str, Any]:
        """The tool as chat completions have it."""
        given = self.model_dump(exclude_none=True, exclude={"type"})
        return {"type": "function", "function": given | {"name": flat(namespace, self.name)}}


class Namespace(LenientObject):
    """Functions under a common name."""

    type: Literal["namespace"]
    name: str
    description: Any = Field(default=None, description="Accepted; the models read that of each function.")
    tools: list[FunctionTool]


Tool = Annotated[
    Annotated[FunctionTool, Tag("~function")] | Annotated[Namespace, Tag("~namespace")],
    Discriminator(
        lambda given: (
            "~namespace" if isinstance(given, dict) and given.get("type") == "namespace" else "~function"
        )
    ),
]


class NamedTool(StrictObject):
    """The function that has to be called."""

    type: Literal["function"]
    name: str

    @property
    def chat(self) -> dict[str, Any]:
        """The choice as chat completions have it."""
        return {"type": self.type, "function": {"name": self.name}}


class ResponsesRequest(RequestBody, Hints):
    """`POST /v1/responses`."""

    model: str = "ensemble"
    input: Annotated[
        Annotated[str, Tag("~text")] | Annotated[list[InputItem], Tag("~items"), Len(1)],
        Discriminator(lambda given: "~items" if isinstance(given, list) else "~text"),
    ]
    instructions: str | None = None
    previous_response_id: str | None = Field(
        default=None, description="Continues a stored response; where the server stores some."
    )
    max_output_tokens: PositiveCount | None = Field(
        default=None, description="Maximum number of tokens of insight and answer together."
    )
    temperature: Annotated[Number, Ge(0), Le(2)] | None = None
    top_p: Annotated[Number, Gt(0), Le(1)] | None = None
    top_logprobs: TopLogprobs | None = None
    include: list[str] | None = Field(
        default=None, description=f"Only {_LOGPROBS} has an effect: there is nothing else to include."
    )
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    tools: list[Tool] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["auto", "none", "required"], Tag("~mode")]
            | Annotated[NamedTool, Tag("~function")],
            Discriminator(lambda given: "~mode" if isinstance(given, str) else "~function"),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    max_tool_calls: Hint = None  # of tools that the server would call itself
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    ensemble: EnsembleOptions | None = None

    @property
    def functions(self) -> list[tuple[str | None, FunctionTool]]:
        """Its functions, each with its namespace."""
        spaces = [
            (None, [tool]) if isinstance(tool, FunctionTool) else (tool.name, tool.tools)
            for tool in self.tools or ()
        ]
        return [(space, tool) for space, tools in spaces for tool in tools]

    def turns(self, stored: StoredResponses, owner: str) -> list[dict[str, Any]]:
        """The messages of the conversation, with those that it continues and without the instructions.

        Raises:
            Problem: there are none, or the response that it continues is not stored.
        """
        earlier = stored.conversation(owner, self.previous_response_id) if self.previous_response_id else []
        asked = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        messages = conversation(earlier, asked)
        if not messages:
            raise Problem(400, "input holds no message", "invalid_value", "input")
        return messages

    def chat(self, answering: Answering, owner: str = "") -> ChatRequest:
        """The request as chat completions have it, with the conversation that it continues.

        Raises:
            Problem: it cannot be translated.
        """
        messages = self.turns(answering.stored, owner)
        reasoning, text = self.reasoning or ReasoningOptions(), self.text or TextOptions()
        choice = self.tool_choice
        wants_logprobs = _LOGPROBS in (self.include or ()) or bool(self.top_logprobs)
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": with_instructions(self.instructions, messages),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": wants_logprobs,
            "top_logprobs": self.top_logprobs,
            "reasoning_effort": reasoning.effort,
            "response_format": text.format.chat if text.format else None,
            "tools": [tool.chat(space) for space, tool in self.functions] or None,
            "tool_choice": choice.chat if isinstance(choice, NamedTool) else choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "ensemble": self.ensemble,
            "turn_after": self.previous_response_id,
        }
        return validated(fields, ResponsesChat)


class ResponsesChat(ChatRequest):
    """A request for a response as chat completions have it."""

    endpoint: ClassVar[str] = "responses"
    prompt_field: ClassVar[str] = "input"

    turn_after: str | None = None  # the response that it continues

    @property
    def conversation(self) -> str | None:
        return super().conversation or self.turn_after


def conversation(
    earlier: Iterable[dict[str, Any]], items: Iterable[InputItem | dict[str, Any]]
) -> list[dict[str, Any]]:
    """The messages of chat completions; calls of tools belong to the assistant's message before them."""
    messages = list(earlier)
    for item in items:
        if isinstance(item, dict):
            messages.append(item)
        elif item.type == "message":
            messages.append({"role": item.role, "content": text_of(item.content)})
        elif item.type == "function_call_output":
            output = text_of(item.output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
        elif item.type == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(item.call)
    return messages


def with_instructions(instructions: str | None, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation behind one system message of the instructions and of those it begins with.

    Chat templates take one system message, at the start.
    """
    first = next(
        (at for at, said in enumerate(messages) if said["role"] not in ("system", "developer")), None
    )
    leading = messages[:first]
    parts = [part for part in (instructions, *(said["content"] for said in leading)) if part]
    system = [{"role": "system", "content": "\n\n".join(parts)}] if parts else []
    return system + messages[len(leading) :]


def in_its_names(problem: Problem) -> Problem:
    """A problem of the chat in the names of the Responses API."""
    name = _CHAT_NAMES.get(problem.param or "")
    if problem.param is None or name is None:
        return problem
    text = problem.detail.replace(problem.param, name)
    return Problem(problem.status_code, text, problem.code, name, problem.headers)
