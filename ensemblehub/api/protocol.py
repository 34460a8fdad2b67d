"""The wire: requests as OpenAI clients send them, and what they ask for in the project's own vocabulary.

What is unknown in a message is left out; at the top `fields` says what is accepted without effect and what is refused.
Source: the OpenAI API reference, and the extensions that vLLM documents.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, StrictBool, StrictInt, Tag, field_validator, model_validator

from ensemblehub.api.characters import WholeCharacters
from ensemblehub.api.fields import Body, Hints, Open, Wire, near
from ensemblehub.api.problems import Problem
from ensemblehub.schema import Chat, Message, Prompt, Role, Sampling, Text, TokenIds

_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
TokenId = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class StreamOptions(Wire):
    """How to stream.

    Attributes:
        continuous_usage_stats: with `include_usage`, every chunk has the usage so far, as vLLM's.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Any = Field(default=None, description="Accepted; nothing is padded.")

    @classmethod
    def idle(cls, name: str, value: Any) -> bool:
        return value is None or not (name in cls.model_fields or near(name, cls.model_fields))


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


class TextPart(Open):
    """A part of a message: text, a refusal, or earlier thoughts, which are not shown to the models again."""

    type: str
    text: str | None = None
    refusal: str | None = None

    @property
    def said(self) -> str | None:
        """Its words for the models; None where there are none to be had."""
        if self.type in _THOUGHTS:
            return ""
        return self.refusal if self.type == "refusal" else self.text if self.type in _TEXTS else None

    @model_validator(mode="after")
    def _text(self) -> TextPart:
        if self.said is None:
            raise ValueError(f"{self.type}: only text is understood, no images, audio or files")
        return self


class ChatMessage(Open):
    """One message; fields besides, such as earlier reasoning, are left out."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Annotated[str, Tag("~text")] | Annotated[list[TextPart], Tag("~parts")],
            Discriminator(lambda given: "~parts" if isinstance(given, list) else "~text"),
        ]
        | None
    ) = None
    name: Any = Field(default=None, description="Accepted; the models are not told it.")
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    function_call: Any = None

    @model_validator(mode="before")
    @classmethod
    def _content(cls, data: Any) -> Any:
        if (
            isinstance(data, Mapping)
            and data.get("role") in ("system", "developer", "user")
            and "content" not in data
        ):
            raise ValueError(f"a message of role {data['role']} needs content")
        return data

    @model_validator(mode="after")
    def _called(self) -> ChatMessage:
        if self.function_call:
            raise ValueError("function_call is not understood in messages: send tool_calls")
        return self

    @property
    def message(self) -> Message:
        """The message in words; earlier reasoning is not shown to the models again."""
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(part.said or "" for part in parts)
        role: Role = "system" if self.role == "developer" else self.role
        about = {"tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id}
        extra = {name: value for name, value in about.items() if value}
        return Message(role, text or self.refusal or "", json.dumps(extra) if extra else "")


Conversation = Annotated[list[ChatMessage], Field(min_length=1)]


class Generate(WholeCharacters, Body, Hints, ABC):
    """What chat and text completions have in common."""

    prompt_field: ClassVar[str]

    model: str = "ensemble"
    max_tokens: StrictInt | None = Field(default=None, ge=0, description="Tokens of the answer at most.")
    max_completion_tokens: StrictInt | None = Field(
        default=None, ge=1, description="Tokens of insight and answer together at most."
    )
    min_tokens: StrictInt | None = Field(default=None, ge=0)
    temperature: Number | None = Field(default=None, ge=0, le=2)
    top_p: Number | None = Field(default=None, gt=0, le=1)
    top_k: StrictInt | None = Field(default=None, ge=-1, lt=2**31)
    min_p: Number | None = Field(default=None, ge=0, le=1)
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
    reasoning_effort: str | None = Field(
        default=None, description="How far a Tandem goes: none, low, medium, high, or one of its levels."
    )
    include_reasoning: StrictBool | None = Field(default=None, description="false: the insight is not sent.")

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, value: Mapping[str, float] | None) -> Any:
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise ValueError(f"{key!r} is not a token id")
        return value

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
        given = [one for one in (self.max_tokens, self.max_completion_tokens) if one is not None]
        return min(given, default=None)

    def sampling(self, defaults: Sampling) -> Sampling:
        """How to generate: `defaults`, changed by what the request says."""
        given: dict[str, Any] = {
            "max_tokens": self.limit,
            "max_completion_tokens": self.max_completion_tokens,
            "min_tokens": self.min_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "min_p": self.min_p,
            "stop": (*defaults.stop, *self.stops),
            "stop_token_ids": None if self.stop_token_ids is None else tuple(self.stop_token_ids),
            "seed": self.seed,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": None
            if self.logit_bias is None
            else {int(key): bias for key, bias in self.logit_bias.items() if bias},
            "ignore_eos": self.ignore_eos,
            "top_logprobs": self.alternatives,
        }
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})

    @abstractmethod
    def prompts(self) -> list[tuple[Prompt, str]]:
        """The prompts, each with the start of its answer."""


class ChatRequest(Generate):
    """`POST /v1/chat/completions`; `messages` may be a list of conversations, which are answered together."""

    prompt_field: ClassVar[str] = "messages"

    messages: Annotated[
        Annotated[Conversation, Tag("~one")]
        | Annotated[Annotated[list[Conversation], Field(min_length=1)], Tag("~several")],
        Discriminator(lambda given: "~several" if _nested(given) else "~one"),
    ]
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
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice goes with tools")
        return self

    @classmethod
    def idle(cls, name: str, value: Any) -> bool:
        return (name == "logprobs" and not value) or super().idle(name, value)

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def passed_on(self) -> dict[str, Any]:
        """Fields that only an engine's own server understands."""
        tools = {
            "tools": self.tools,
            "tool_choice": self.tool_choice,
            "parallel_tool_calls": self.parallel_tool_calls,
        }
        form = self.response_format or {}
        found = {"response_format": form} if form.get("type", "text") != "text" else {}
        return found | (
            {name: value for name, value in tools.items() if value is not None} if self.tools else {}
        )

    @property
    def calls_tools(self) -> bool:
        """Whether tools may be called, or were called before."""
        several = [one for one in self.messages if isinstance(one, list)]
        messages = [message for one in several for message in one] or self.messages
        called = any(
            isinstance(one, ChatMessage) and (one.role == "tool" or one.tool_calls) for one in messages
        )
        return bool(self.tools and self.tool_choice != "none") or called

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
                400,
                "continue_final_message needs a last message of the assistant's, after another",
                "unsupported",
            )
        return Chat(tuple(before), self.thinking), last.content


class CompletionRequest(Generate):
    """`POST /v1/completions`: raw prompts, as text or token ids, one or several."""

    prompt_field: ClassVar[str] = "prompt"

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
        default=None,
        description="With logprobs: tokens as `token_id:N`; those of an API have no ids and stay text.",
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

    @classmethod
    def idle(cls, name: str, value: Any) -> bool:
        return (name == "logprobs" and value is False) or super().idle(name, value)

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


_WHOSE = "Whose tokenizer; may be left out where all that are served have the same."


class TokenizeRequest(WholeCharacters, Body):
    """`POST /tokenize`."""

    prompt: str
    add_special_tokens: bool = True
    model: str | None = Field(default=None, description=_WHOSE)


class DetokenizeRequest(WholeCharacters, Body):
    """`POST /detokenize`."""

    tokens: list[TokenId]
    model: str | None = Field(default=None, description=_WHOSE)
