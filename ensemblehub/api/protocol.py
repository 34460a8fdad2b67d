"""Request bodies as OpenAI clients send them, and what they ask for in the project's own vocabulary.

Unknown fields of a message are left out; `fields` says which others have no effect and which are refused.
Source: the OpenAI API reference, and the extensions that vLLM documents.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AfterValidator, Discriminator, Field, StrictBool, StrictInt, Tag, model_validator

from ensemblehub.api.fields import Hints, LenientObject, RequestBody, StrictObject, similar
from ensemblehub.api.problems import Problem
from ensemblehub.config.sections import Budget
from ensemblehub.schema import Chat, Message, Prompt, Role, Sampling, Text, TokenIds

_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("thinking", "redacted_thinking", "reasoning")

Count = Annotated[StrictInt, Ge(0)]
PositiveCount = Annotated[StrictInt, Ge(1)]
TopLogprobs = Annotated[StrictInt, Ge(0), Le(20)]
TokenId = Annotated[StrictInt, Ge(0), Lt(2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[Number, Ge(0), Le(1)]
Penalty = Annotated[Number, Ge(-2), Le(2)]
NonEmptyIds = Annotated[list[TokenId], Len(1)]


def _is_token_id(key: str) -> str:
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise ValueError(f"{key!r} is not a token id")
    return key


LogitBias = dict[Annotated[str, AfterValidator(_is_token_id)], Annotated[Number, Ge(-100), Le(100)]]


class StreamOptions(StrictObject):
    """OpenAI's `stream_options`.

    Attributes:
        continuous_usage_stats: with `include_usage`, every chunk has the usage so far, as vLLM's.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Any = Field(default=None, description="Accepted; nothing is padded.")

    @classmethod
    def is_idle(cls, name: str, value: Any) -> bool:
        return value is None or not (name in cls.model_fields or similar(name, cls.model_fields))


class TemplateOptions(StrictObject):
    """Variables of the chat template."""

    enable_thinking: bool | None = None


class EnsembleOptions(StrictObject):
    """Options of the ensemble in a request; they never load a model.

    Attributes:
        method: another of the configured ensembles, by name or by the name of its aggregation.
        params: options of the aggregation, within the bounds that the operator set (`request_params`).
        context_tokens: where the context ends, for a log-likelihood of tandem.
        exclude, require: members that take no part, and members that no selection may drop.
        budget: what the request may spend; its answers end once it is reached.
        conversation: an id of the client's; its turns are answered by the members of the first.
    """

    method: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    context_tokens: PositiveCount | None = None
    exclude: Annotated[list[str], Len(0, 64)] = Field(default_factory=list)
    require: Annotated[list[str], Len(0, 64)] = Field(default_factory=list)
    budget: Budget | None = None
    conversation: Annotated[str, Len(1, 256)] | None = None


class TextPart(LenientObject):
    """A part of a message: text, a refusal, or earlier reasoning, which the models do not read again."""

    type: str
    text: str | None = None
    refusal: str | None = None

    @property
    def content(self) -> str | None:
        """Return the message's text for the models, or None if it has none."""
        if self.type in _REASONING_PARTS:
            return ""
        return self.refusal if self.type == "refusal" else self.text if self.type in _TEXT_PARTS else None

    @model_validator(mode="after")
    def _only_text(self) -> TextPart:
        if self.content is None:
            raise ValueError(f"{self.type}: only text is understood, no images, audio or files")
        return self


Content = Annotated[
    Annotated[str, Tag("~text")] | Annotated[list[TextPart], Tag("~parts")],
    Discriminator(lambda given: "~parts" if isinstance(given, list) else "~text"),
]


def text_of(content: str | list[TextPart] | None) -> str:
    """The text of a content; that of its parts is joined."""
    parts = content if isinstance(content, list) else []
    return content if isinstance(content, str) else "".join(part.content or "" for part in parts)


class ChatMessage(LenientObject):
    """A message; other fields, such as earlier reasoning, are ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Any = Field(default=None, description="Accepted; the models do not read it.")
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    function_call: Any = None

    @model_validator(mode="before")
    @classmethod
    def _has_content(cls, data: Any) -> Any:
        asking = isinstance(data, Mapping) and data.get("role") in ("system", "developer", "user")
        if asking and "content" not in data:
            raise ValueError(f"a message of role {data['role']} needs content")
        return data

    @model_validator(mode="after")
    def _no_function_call(self) -> ChatMessage:
        if self.function_call:
            raise ValueError("function_call is not understood in messages: send tool_calls")
        return self

    @property
    def message(self) -> Message:
        """The message as the models read it."""
        role: Role = "system" if self.role == "developer" else self.role
        fields = {"tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id}
        extra = {name: value for name, value in fields.items() if value}
        return Message(role, text_of(self.content) or self.refusal or "", json.dumps(extra) if extra else "")


Conversation = Annotated[list[ChatMessage], Len(1)]


class GenerationRequest(RequestBody, Hints, ABC):
    """Fields common to chat and text completions.

    Attributes:
        prompt_field: name of the field with the prompt, for errors.
        endpoint: the API's name in metrics.
        exact_limit: whether a length that the client asks for is refused, not cut, where it does not fit.
    """

    prompt_field: ClassVar[str]
    endpoint: ClassVar[str]
    exact_limit: ClassVar[bool] = True

    model: str = "ensemble"
    max_tokens: Count | None = Field(default=None, description="Maximum number of tokens of the answer.")
    max_completion_tokens: PositiveCount | None = Field(
        default=None, description="Maximum number of tokens of insight and answer together."
    )
    min_tokens: Count | None = None
    temperature: Annotated[Number, Ge(0), Le(2)] | None = None
    top_p: Annotated[Number, Gt(0), Le(1)] | None = None
    top_k: Annotated[StrictInt, Ge(-1), Lt(2**31)] | None = None
    min_p: Probability | None = None
    n: PositiveCount | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    seed: Annotated[StrictInt, Ge(-(2**63)), Lt(2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[Number, Gt(0), Le(10)] | None = None
    logit_bias: LogitBias | None = None
    ignore_eos: StrictBool | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    extract_after: str | list[str] | None = None
    ensemble: EnsembleOptions | None = None
    reasoning_effort: str | None = Field(
        default=None, description="How far a Tandem goes: none, low, medium, high, or one of its levels."
    )
    include_reasoning: StrictBool | None = Field(default=None, description="false: the insight is not sent.")

    @property
    def conversation(self) -> str | None:
        """Id of the conversation that the request is a turn of."""
        return self.ensemble.conversation if self.ensemble else None

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
        """Alternatives per token that are wanted; None where no logprobs are."""

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens of the answer."""
        given = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(given, default=None)

    def sampling(self, defaults: Sampling) -> Sampling:
        """Return `defaults` with the sampling options of the request."""
        same = ("max_completion_tokens", "min_tokens", "temperature", "top_p", "min_p", "seed", "ignore_eos")
        penalties = ("presence_penalty", "frequency_penalty", "repetition_penalty")
        given: dict[str, Any] = {name: getattr(self, name) for name in (*same, *penalties)}
        given |= {"max_tokens": self.limit, "top_logprobs": self.alternatives}
        given["stop"] = tuple(dict.fromkeys((*defaults.stop, *self.stops)))
        if self.top_k is not None:
            given["top_k"] = max(0, self.top_k)
        if self.stop_token_ids is not None:
            given["stop_token_ids"] = tuple(self.stop_token_ids)
        if self.logit_bias is not None:
            given["logit_bias"] = {int(key): bias for key, bias in self.logit_bias.items() if bias}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})

    @abstractmethod
    def prompts(self) -> list[tuple[Prompt, str]]:
        """The prompts, each with the start of its answer."""


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`; `messages` may be a list of conversations, which are answered together."""

    prompt_field: ClassVar[str] = "messages"
    endpoint: ClassVar[str] = "chat"

    messages: Annotated[
        Annotated[Conversation, Tag("~one")]
        | Annotated[Annotated[list[Conversation], Len(1)], Tag("~several")],
        Discriminator(lambda given: "~several" if _is_nested(given) else "~one"),
    ]
    logprobs: StrictBool | None = None
    top_logprobs: TopLogprobs | None = None
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
    def _check_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs go with logprobs: true")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        if self.add_generation_prompt is False and not self.continue_final_message:
            raise ValueError("add_generation_prompt: false goes with continue_final_message: true")
        if self.max_tokens == 0:
            raise ValueError("max_tokens must be at least 1")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice goes with tools")
        return self

    @classmethod
    def is_idle(cls, name: str, value: Any) -> bool:
        return (name == "logprobs" and not value) or super().is_idle(name, value)

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def passed_on(self) -> dict[str, Any]:
        """Fields that only an engine's own server understands."""
        found = {}
        if (self.response_format or {}).get("type", "text") != "text":
            found["response_format"] = self.response_format
        if self.tools:
            names = ("tools", "tool_choice", "parallel_tool_calls")
            found |= {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return found

    @property
    def calls_tools(self) -> bool:
        """Whether the request offers tools or contains tool calls."""
        if self.tools and self.tool_choice != "none":
            return True
        messages = [message for conversation in self.conversations for message in conversation]
        return any(message.role == "tool" or message.tool_calls for message in messages)

    @property
    def conversations(self) -> list[list[ChatMessage]]:
        """The conversations, several or one."""
        several = [messages for messages in self.messages if isinstance(messages, list)]
        return several or [[message for message in self.messages if isinstance(message, ChatMessage)]]

    @property
    def thinking(self) -> bool | None:
        """The template's `enable_thinking`."""
        options = self.chat_template_kwargs or TemplateOptions()
        return options.enable_thinking if self.enable_thinking is None else self.enable_thinking

    def prompts(self) -> list[tuple[Prompt, str]]:
        return [self._prompt([message.message for message in messages]) for messages in self.conversations]

    def _prompt(self, messages: Sequence[Message]) -> tuple[Prompt, str]:
        if not self.continue_final_message:
            return Chat(tuple(messages), self.thinking), ""
        *before, last = messages
        if last.role != "assistant" or not before:
            text = "continue_final_message needs a last message of the assistant's, after another"
            raise Problem(400, text, "unsupported")
        return Chat(tuple(before), self.thinking), last.content


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`: raw prompts, as text or token ids, one or several."""

    prompt_field: ClassVar[str] = "prompt"
    endpoint: ClassVar[str] = "text"

    prompt: Annotated[
        Annotated[str, Tag("~text")]
        | Annotated[NonEmptyIds, Tag("~ids")]
        | Annotated[Annotated[list[str], Len(1)], Tag("~texts")]
        | Annotated[list[NonEmptyIds], Tag("~several")],
        Discriminator(lambda given: _kind_of_prompt(given)),
    ]
    logprobs: TopLogprobs | None = None
    echo: StrictBool | None = None
    return_tokens_as_token_ids: StrictBool | None = Field(
        default=None,
        description="With logprobs: tokens as `token_id:N`; those of an API have no ids and stay text.",
    )
    suffix: Literal[""] | None = None
    best_of: PositiveCount | None = None

    @model_validator(mode="after")
    def _check_together(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of other than n is not offered; the aggregation best_of is")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 goes with echo: true")
        return self

    @classmethod
    def is_idle(cls, name: str, value: Any) -> bool:
        return (name == "logprobs" and value is False) or super().is_idle(name, value)

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[tuple[Prompt, str]]:
        kind = _kind_of_prompt(self.prompt)
        given: list[Any] = [self.prompt] if kind in ("~text", "~ids") else list(self.prompt)
        return [(Text(part) if isinstance(part, str) else TokenIds(tuple(part)), "") for part in given]


def _is_nested(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and isinstance(given[0], list)


def _kind_of_prompt(given: Any) -> str:
    if not isinstance(given, list):
        return "~text"
    if _is_nested(given):
        return "~several"
    return "~texts" if given and isinstance(given[0], str) else "~ids"
