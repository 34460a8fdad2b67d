"""`/v1/messages`: Anthropic's Messages API, as a translation of chat completions.

What a request asks for becomes a `ChatRequest`; `message_events` turns the events of its answer into Anthropic's.
Source: the Messages API reference, and the models of the `anthropic` SDK.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Len
from pydantic import Discriminator, Field, StrictBool, Tag, model_validator

from ensemblehub.api.answering import Answering
from ensemblehub.api.fields import Hint, Hints, LenientObject, RequestBody, StrictObject
from ensemblehub.api.problems import Problem
from ensemblehub.api.protocol import ChatRequest, Content, EnsembleOptions, PositiveCount, text_of
from ensemblehub.api.reading import validated

_IGNORED = ("thinking", "redacted_thinking")
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class MessageBlock(LenientObject):
    """A block of a message: text, a call of a tool or its result; earlier thinking is not read again."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Content | None = None

    @model_validator(mode="after")
    def _known(self) -> MessageBlock:
        needed = {"text": ("text",), "tool_use": ("id", "name", "input"), "tool_result": ("tool_use_id",)}
        if self.type not in (*needed, *_IGNORED):
            raise ValueError(f"{self.type}: only text and function tools are understood")
        missing = [name for name in needed.get(self.type, ()) if getattr(self, name) is None]
        if missing:
            raise ValueError(f"a block of type {self.type} needs {missing[0]}")
        return self


class TurnMessage(LenientObject):
    """A message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[str, Tag("~text")] | Annotated[list[MessageBlock], Tag("~blocks")],
        Discriminator(lambda given: "~blocks" if isinstance(given, list) else "~text"),
    ]

    def messages(self) -> list[dict[str, Any]]:
        """The message as chat completions have it; results of tools are messages of their own."""
        blocks = [] if isinstance(self.content, str) else self.content
        texts = [block.text or "" for block in blocks if block.type == "text"]
        text = self.content if isinstance(self.content, str) else "\n\n".join(texts)
        results = [
            {"role": "tool", "tool_call_id": block.tool_use_id, "content": text_of(block.content)}
            for block in blocks
            if block.type == "tool_result"
        ]
        calls = [
            {
                "id": block.id,
                "type": "function",
                "function": {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)},
            }
            for block in blocks
            if block.type == "tool_use"
        ]
        said = {"role": self.role, "content": text, **({"tool_calls": calls} if calls else {})}
        return [*results, *([said] if text or calls or not results else [])]


class Thinking(StrictObject):
    """Whether the reply has thinking blocks; `disabled` also turns off the thinking of the model's template."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: PositiveCount | None = Field(default=None, description="Bounds a Tandem's level.")
    display: Literal["summarized", "omitted"] | None = None


class ClientTool(LenientObject):
    """A tool of the client's; Anthropic's own tools are not offered."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if kind not in (None, "custom"):
            raise ValueError(f"{kind!r} is not offered here, only functions of the client; leave it out")
        return data

    @property
    def function(self) -> dict[str, Any]:
        """The tool as chat completions have it."""
        fields = {"description": self.description, "parameters": self.input_schema, "strict": self.strict}
        given = {name: value for name, value in fields.items() if value is not None}
        return {"type": "function", "function": {"name": self.name, **given}}


class ToolChoice(StrictObject):
    """Which tool may or has to be called."""

    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @property
    def chat(self) -> Any:
        """The choice as chat completions have it."""
        named = {"type": "function", "function": {"name": self.name}}
        return named if self.type == "tool" else _TOOL_CHOICES[self.type]


class JSONFormat(LenientObject):
    """A JSON schema that the answer keeps to."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(StrictObject):
    """Anthropic's `output_config`."""

    effort: str | None = None
    format: JSONFormat | None = None


class ContextEdit(LenientObject):
    """An edit of the context; earlier thinking is never read again, so clearing it changes nothing."""

    type: Literal["clear_thinking_20251015"]


class ContextManagement(StrictObject):
    """Anthropic's `context_management`."""

    edits: list[ContextEdit] | None = None


class CountRequest(RequestBody, Hints):
    """`POST /v1/messages/count_tokens`: what is counted."""

    model: str = "ensemble"
    messages: Annotated[list[TurnMessage], Len(1)]
    system: Content | None = None
    max_tokens: PositiveCount | None = Field(
        default=None, description="Maximum number of tokens of insight and answer; lowered to what fits."
    )
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31, strict=True)] | None = None
    thinking: Thinking | None = None
    tools: list[ClientTool] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None
    ensemble: EnsembleOptions | None = None
    cache_control: Hint = None
    inference_geo: Hint = None
    diagnostics: Hint = None
    user_profile_id: Hint = None
    workspace_id: Hint = None

    def chat(self, answering: Answering, owner: str = "") -> ChatRequest:
        """The request as chat completions have it, within the limits of this server.

        Raises:
            Problem: it cannot be translated.
        """
        if self.messages[0].role == "assistant" and len(self.messages) == 1:
            raise Problem(400, "the user's message before the assistant's is missing", None, "messages")
        messages = [message for turn in self.messages for message in turn.messages()]
        if self.system is not None:
            parts = [self.system] if isinstance(self.system, str) else [part.content for part in self.system]
            system = "\n\n".join(part for part in parts if part)
            messages = [{"role": "system", "content": system}, *messages] if system else messages
        thinking, output = self.thinking, self.output_config or OutputConfig()
        most = answering.settings.max_output_tokens
        choice = self.tool_choice
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_completion_tokens": min(self.max_tokens or most, most),
            "stop": self.stop_sequences,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "ensemble": self.ensemble,
            "include_reasoning": thinking is not None
            and thinking.type != "disabled"
            and thinking.display != "omitted",
            "enable_thinking": False if thinking and thinking.type == "disabled" else None,
            "reasoning_effort": self._effort(answering),
            "tools": [tool.function for tool in self.tools or ()] or None,
            "tool_choice": choice and choice.chat,
            "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
            "continue_final_message": self.messages[-1].role == "assistant" or None,
        }
        if output.format is not None:
            named = {"name": "answer", "schema": output.format.schema_}
            fields["response_format"] = {"type": "json_schema", "json_schema": named}
        return validated(fields, MessagesChat)

    def _effort(self, answering: Answering) -> str | None:
        """The effort that is asked for, lowered to the highest level within the budget of thinking."""
        effort = self.output_config.effort if self.output_config else None
        budget = self.thinking.budget_tokens if self.thinking else None
        if budget is None:
            return effort
        served = answering.catalog.chosen(self.model, self.ensemble, effort)
        levels = served.ensemble.aggregation.checkpoints
        within = [level.level for level in levels if level.mentor_tokens <= budget]
        return effort if len(within) == len(levels) else within[-1] if within else "none"


class MessagesRequest(CountRequest):
    """`POST /v1/messages`."""

    max_tokens: PositiveCount
    stream: StrictBool | None = None


class MessagesChat(ChatRequest):
    """A request for a message as chat completions have it; its length is an upper bound, which Anthropic's needs."""

    endpoint: ClassVar[str] = "messages"
    exact_limit: ClassVar[bool] = False
