"""Fields of request bodies that this server does not know: hints are accepted, the rest is refused by name.

Strict in what changes an answer, tolerant in what does not.  `docs/server.md` has the same lists for users.
Source: the OpenAI API reference, and what vLLM, SGLang, llama.cpp, Ollama, OpenRouter and LiteLLM add to it.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema

HINT_PREFIXES = ("prompt_cache_", "litellm_", "x_", "x-")
_SIMILARITY = 0.75  # from which a name counts as a misspelling
_MAX_FIELDS = 256  # of an object; each is compared with the known ones
_MAX_NAME = 64  # characters of a name that may be a misspelling


class ForeignField(NamedTuple):
    """A field of another server that would change the answer and cannot be honoured.

    Attributes:
        why: what to use instead, or what is missing here.
        neutral: values that ask for nothing; null, false, 0 and empty ones do so for every field.
        strict: whether false, 0 and empty values ask for something.
    """

    why: str
    neutral: tuple[Any, ...] = ()
    strict: bool = False


_NAMES_BY_REASON = {
    "use response_format": "ebnf format grammar guided_choice guided_grammar guided_json guided_regex "
    "json_schema regex structured_outputs",
    "this sampler is not offered": "dry_multiplier dynatemp_range epsilon_cutoff eta_cutoff mirostat top_a "
    "xtc_probability",
    "prompts are never shortened": "transforms truncate_prompt_tokens",
    "there is no beam search": "use_beam_search",
    "tokens cannot be restricted; logit_bias may do": "allowed_token_ids",
    "only text is written": "audio",
    "words cannot be forbidden; logit_bias may do": "bad_words",
    "each model has its own chat template": "chat_template",
    "put documents into a message": "documents",
    "it is an argument of the SDK; its fields stand beside `model` in the body": "extra_body",
    "use tools": "functions",
    "a stop string is never part of the answer": "include_stop_str_in_output",
    "conversations have no names here; send the whole one, or previous_response_id to /v1/responses": "conversation",
    "it belongs to the Responses API; send `messages`": "input",
    "it belongs to the Responses API; send a system message": "instructions",
    "no code of a client runs here": "logits_processors",
    "a request loads no weights": "lora_path",
    "use max_completion_tokens": "max_output_tokens",
    "name one in `model`": "models",
    "the context of a model is fixed when the server starts": "num_ctx",
    "write its fields beside `model`": "options",
    "there are none": "plugins",
    "it belongs to the Responses API; send the whole conversation": "previous_response_id",
    "use /v1/completions with echo and logprobs": "prompt_logprobs",
    "use reasoning_effort": "reasoning",
    "use /v1/completions with logprobs and return_tokens_as_token_ids": "return_token_ids",
    "use /detokenize": "return_token_strs",
}
_THINKING = ForeignField("use reasoning_effort, or chat_template_kwargs.enable_thinking", strict=True)
FOREIGN: dict[str, ForeignField] = {
    name: ForeignField(why) for why, names in _NAMES_BY_REASON.items() for name in names.split()
} | {
    "add_special_tokens": ForeignField(
        "special tokens are added as the model's tokenizer says", (True,), True
    ),
    "function_call": ForeignField("use tool_choice", ("none", "auto")),
    "length_penalty": ForeignField("there is no beam search", (1,)),
    "n_predict": ForeignField("use max_tokens", (-1,)),
    "num_beams": ForeignField("there is no beam search", (1,)),
    "num_predict": ForeignField("use max_tokens", (-1,)),
    "repeat_penalty": ForeignField("use repetition_penalty", (1,)),
    "tfs_z": ForeignField("this sampler is not offered", (1,)),
    "think": _THINKING,
    "thinking": _THINKING,
    "top_n_sigma": ForeignField("this sampler is not offered", (-1,)),
    "typical_p": ForeignField("this sampler is not offered", (1,)),
    "web_search_options": ForeignField("nothing is looked up on the web", strict=True),
}


def _fail_fast(schema: Any) -> None:
    """Make every list end at its first error: 300,000 take seconds to collect, and only one is reported."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            _fail_fast(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _fail_fast(part)


class StrictObject(BaseModel):
    """A JSON object of a request: null asks for nothing, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _fail_fast(schema)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _without_idle(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if len(data) > _MAX_FIELDS:
            raise ValueError(f"an object has at most {_MAX_FIELDS} fields here, not {len(data)}")
        return {name: value for name, value in data.items() if not cls.is_idle(name, value)}

    @classmethod
    def is_idle(cls, name: str, value: Any) -> bool:  # noqa: ARG003  # subclasses look at the name
        """Return whether a field has a neutral value and can be ignored."""
        return value is None


class LenientObject(StrictObject):
    """A JSON object in which unknown fields are left out."""

    model_config = ConfigDict(extra="ignore")


class RequestBody(StrictObject):
    """A request body: unknown fields that ask for nothing are left out, others are errors."""

    @classmethod
    def is_idle(cls, name: str, value: Any) -> bool:
        if value is None or name in cls.model_fields:
            return value is None
        if name in Hints.model_fields or name.startswith(HINT_PREFIXES):
            return True
        foreign = FOREIGN.get(name, ForeignField("", strict=bool(similar(name, cls.model_fields))))
        return value in foreign.neutral or not (value or foreign.strict)


Hint = Annotated[Any, Field(description="Accepted; has no effect on the answer.")]


class Hints(BaseModel):
    """Fields that are accepted with any value and have no effect on the answer."""

    user: Hint = None
    metadata: Hint = None
    safety_identifier: Hint = None
    store: Hint = None
    service_tier: Hint = None
    verbosity: Hint = None
    prediction: Hint = None
    prompt_cache_key: Hint = None
    prompt_cache_retention: Hint = None
    include_obfuscation: Hint = None
    skip_special_tokens: Hint = None
    spaces_between_special_tokens: Hint = None
    priority: Hint = None
    request_id: Hint = None
    rid: Hint = None
    session_id: Hint = None
    chat_id: Hint = None
    conversation_id: Hint = None
    trace_id: Hint = None
    tags: Hint = None
    timeout: Hint = None
    cache_salt: Hint = None
    cache_prompt: Hint = None
    id_slot: Hint = None
    keep_alive: Hint = None
    provider: Hint = None
    usage: Hint = None
    separate_reasoning: Hint = None
    stream_reasoning: Hint = None
    guided_decoding_backend: Hint = None
    timings_per_token: Hint = None
    drop_params: Hint = None
    client_metadata: Hint = None


def similar(name: str, known: Collection[str]) -> str | None:
    """Return the known name closest to `name`, ignoring case, underscores and hyphens."""
    if len(name) > _MAX_NAME:
        return None
    plain = {_plain(other): other for other in known}
    found = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=_SIMILARITY)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def refusal(name: str, known: Collection[str]) -> tuple[str, str]:
    """Why a field is refused: a message and a code."""
    if name in FOREIGN:
        return f"{name} cannot be honoured: {FOREIGN[name].why}", "unsupported"
    meant = similar(name, known)
    hint = f"did you mean {meant!r}?" if meant else "it may change the answer, so it is not ignored"
    return f"unknown field {name!r}; {hint}", "unknown_field"
