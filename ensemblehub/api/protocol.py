"""The wire: requests as OpenAI clients send them, and what they ask for in the project's own vocabulary.

A field that is not here is refused by name; one that cannot be honoured is refused where that is known.
Source: the OpenAI API reference, and the extensions that vLLM documents.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    StrictBool,
    StrictInt,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from ensemblehub.api.problems import Problem
from ensemblehub.schema import Chat, Message, Prompt, Role, Sampling, Text, TokenIds

TokenId = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _fail_fast(schema: Any) -> None:
    """Have every list in a schema end at its first error: 300,000 of them take seconds to collect, and one is told."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            _fail_fast(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _fail_fast(part)


class Wire(BaseModel):
    """A request body; unknown fields are errors, and a list is left at its first wrong entry."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _fail_fast(schema)
        return schema


class StreamOptions(Wire):
    """How to stream."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TemplateOptions(Wire):
    """What the chat template is told."""

    enable_thinking: bool | None = None


class EnsembleOptions(Wire):
    """What a request may say about the ensemble; it never loads a model.

    Attributes:
        method: another of the configured ensembles, by name or by the name of its aggregation.
        params: options of the aggregation, within the bounds that the operator set (`request_params`).
        context_tokens: where the context ends, for a log-likelihood of tandem.
    """

    method: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    context_tokens: StrictInt | None = Field(default=None, ge=1)


class TextPart(Wire):
    """A part of a message; only text is understood."""

    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None

    @model_validator(mode="after")
    def _text(self) -> TextPart:
        if self.type != "text" or self.text is None:
            raise ValueError(f"{self.type}: only text is understood, no images, audio or files")
        return self


class ChatMessage(Wire):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Annotated[str, Tag("~text")] | Annotated[list[TextPart], Tag("~parts")],
            Discriminator(lambda given: "~parts" if isinstance(given, list) else "~text"),
        ]
        | None
    ) = None
    name: str | None = None
    refusal: None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @property
    def message(self) -> Message:
        """The message in words; earlier reasoning is not shown to the models again."""
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(part.text or "" for part in parts)
        role: Role = "system" if self.role == "developer" else self.role
        about = {"tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id}
        extra = {name: value for name, value in about.items() if value is not None}
        return Message(role, text, json.dumps(extra) if extra else "")


Conversation = Annotated[list[ChatMessage], Field(min_length=1)]


class Generate(Wire, ABC):
    """What chat and text completions have in common."""

    model: str = "ensemble"
    max_tokens: StrictInt | None = Field(default=None, ge=0)
    min_tokens: StrictInt | None = Field(default=None, ge=0)
    temperature: Number | None = Field(default=None, ge=0, le=2)
    top_p: Number | None = Field(default=None, gt=0, le=1)
    top_k: StrictInt | None = Field(default=None, ge=-1, lt=2**31)
    n: StrictInt | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    seed: StrictInt | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: Number | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: Number | None = Field(default=None, gt=0, le=10)
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    ignore_eos: StrictBool | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    extract_after: str | list[str] | None = None
    ensemble: EnsembleOptions | None = None
    user: str | None = Field(default=None, description="Accepted; has no effect on the answer.")
    metadata: dict[str, str] | None = Field(default=None, description="Accepted; has no effect on the answer.")
    safety_identifier: str | None = Field(default=None, description="Accepted; has no effect on the answer.")
    prompt_cache_key: str | None = Field(default=None, description="Accepted; prefixes are always cached.")
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, value: Mapping[str, float] | None) -> Any:
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise ValueError(f"{key!r} is not a token id")
        return value

    @model_validator(mode="after")
    def _streamed(self) -> Generate:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options go with stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Its stop strings."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(string for string in given if string)

    @property
    def marks(self) -> list[str] | None:
        """Its marks to extract after; None where it says nothing."""
        return [self.extract_after] if isinstance(self.extract_after, str) else self.extract_after

    @property
    @abstractmethod
    def alternatives(self) -> int | None:
        """How many alternatives per token are wanted; None where no logprobs are."""

    @property
    def limit(self) -> int | None:
        """Tokens of the answer at most."""
        return self.max_tokens

    def sampling(self, defaults: Sampling) -> Sampling:
        """How to generate: `defaults`, changed by what the request says."""
        given: dict[str, Any] = {
            "max_tokens": self.limit,
            "min_tokens": self.min_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "stop": (*defaults.stop, *self.stops),
            "stop_token_ids": None if self.stop_token_ids is None else tuple(self.stop_token_ids),
            "seed": self.seed,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": None
            if self.logit_bias is None
            else {int(key): bias for key, bias in self.logit_bias.items()},
            "ignore_eos": self.ignore_eos,
            "top_logprobs": self.alternatives,
        }
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})

    @abstractmethod
    def prompts(self) -> list[tuple[Prompt, str]]:
        """The prompts, each with the start of its answer."""


class ChatRequest(Generate):
    """`POST /v1/chat/completions`; `messages` may be a list of conversations, which are answered together."""

    messages: Annotated[
        Annotated[Conversation, Tag("~one")]
        | Annotated[Annotated[list[Conversation], Field(min_length=1)], Tag("~several")],
        Discriminator(lambda given: "~several" if _nested(given) else "~one"),
    ]
    max_completion_tokens: StrictInt | None = Field(default=None, ge=1)
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = Field(default=None, ge=0, le=20)
    add_generation_prompt: StrictBool | None = None
    continue_final_message: StrictBool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    enable_thinking: bool | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs go with logprobs: true")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        if self.add_generation_prompt is False and not self.continue_final_message:
            raise ValueError("add_generation_prompt: false goes with continue_final_message: true")
        if self.max_tokens == 0:
            raise ValueError("max_tokens must be at least 1")
        return self

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def passed_on(self) -> dict[str, Any]:
        """Fields that only an engine's own server understands."""
        tools = {"tools": self.tools, "tool_choice": self.tool_choice, "parallel_tool_calls": self.parallel_tool_calls}
        form = self.response_format or {}
        found = {"response_format": form} if form.get("type", "text") != "text" else {}
        return found | ({name: value for name, value in tools.items() if value is not None} if self.tools else {})

    @property
    def calls_tools(self) -> bool:
        """Whether tools are offered, or were called before."""
        several = [one for one in self.messages if isinstance(one, list)]
        messages = [message for one in several for message in one] or self.messages
        called = any(isinstance(one, ChatMessage) and (one.role == "tool" or one.tool_calls) for one in messages)
        return bool(self.tools) or called

    @property
    def thinking(self) -> bool | None:
        """The template's `enable_thinking`."""
        options = self.chat_template_kwargs or TemplateOptions()
        return options.enable_thinking if self.enable_thinking is None else self.enable_thinking

    def prompts(self) -> list[tuple[Prompt, str]]:
        several = [one for one in self.messages if isinstance(one, list)]
        conversations = several or [[one for one in self.messages if isinstance(one, ChatMessage)]]
        return [self._prompt([one.message for one in conversation]) for conversation in conversations]

    def _prompt(self, messages: Sequence[Message]) -> tuple[Prompt, str]:
        if not self.continue_final_message:
            return Chat(tuple(messages), self.thinking), ""
        *before, last = messages
        if last.role != "assistant" or not before:
            raise Problem(
                400, "continue_final_message needs a last message of the assistant's, after another", "unsupported"
            )
        return Chat(tuple(before), self.thinking), last.content


class CompletionRequest(Generate):
    """`POST /v1/completions`: raw prompts, as text or token ids, one or several."""

    prompt: Annotated[
        Annotated[str, Tag("~text")]
        | Annotated[Annotated[list[TokenId], Field(min_length=1)], Tag("~ids")]
        | Annotated[Annotated[list[str], Field(min_length=1)], Tag("~texts")]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Tag("~several")],
        Discriminator(lambda given: _kind_of_prompt(given)),
    ]
    logprobs: StrictInt | None = Field(default=None, ge=0, le=20)
    echo: StrictBool | None = None
    return_tokens_as_token_ids: StrictBool | None = Field(
        default=None, description="With logprobs: tokens as `token_id:N`; those of an API have no ids and stay text."
    )
    suffix: Literal[""] | None = None
    best_of: StrictInt | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _together(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of other than n is not offered; the aggregation best_of is")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 goes with echo: true")
        return self

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[tuple[Prompt, str]]:
        given = self.prompt
        if isinstance(given, str):
            return [(Text(given), "")]
        if all(isinstance(one, int) for one in given):
            return [(TokenIds(tuple(one for one in given if isinstance(one, int))), "")]
        return [(Text(one) if isinstance(one, str) else TokenIds(tuple(_ids(one))), "") for one in given]


def _nested(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and isinstance(given[0], list)


def _kind_of_prompt(given: Any) -> str:
    if not isinstance(given, list):
        return "~text"
    if _nested(given):
        return "~several"
    return "~texts" if given and isinstance(given[0], str) else "~ids"


def _ids(value: Any) -> list[int]:
    return [int(one) for one in value]


class TokenizeRequest(Wire):
    """`POST /tokenize`."""

    prompt: str
    add_special_tokens: bool = True
    model: str = "ensemble"


class DetokenizeRequest(Wire):
    """`POST /detokenize`."""

    tokens: list[TokenId]
    model: str = "ensemble"
