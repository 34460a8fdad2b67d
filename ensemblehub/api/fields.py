"""Fields of request bodies that this server has no use for: hints are accepted, the rest is refused by name.

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
_NEAR = 0.75  # similarity from which a name counts as a misspelling
_MOST = 256  # fields of an object, each of which is compared with the known ones
_LONG = 64  # characters of a name that may be a misspelling


class Foreign(NamedTuple):
    """A field of another server that would change the answer and cannot be honoured.

    Attributes:
        why: what to do instead, or what is missing here.
        neutral: values that ask for nothing; null, false, 0 and empty ones do so for every field.
        counts: whether false, 0 and empty values ask for something.
    """

    why: str
    neutral: tuple[Any, ...] = ()
    counts: bool = False


_FORMAT = "use response_format"
_SAMPLER = "this sampler is not offered"
FOREIGN: dict[str, Foreign] = {
    "add_special_tokens": Foreign(
        "special tokens are added as the model's tokenizer says", (True,), counts=True
    ),
    "allowed_token_ids": Foreign("tokens cannot be restricted; logit_bias may do"),
    "audio": Foreign("only text is written"),
    "bad_words": Foreign("words cannot be forbidden; logit_bias may do"),
    "chat_template": Foreign("each model has its own chat template"),
    "documents": Foreign("put documents into a message"),
    "dry_multiplier": Foreign(_SAMPLER),
    "dynatemp_range": Foreign(_SAMPLER),
    "ebnf": Foreign(_FORMAT),
    "epsilon_cutoff": Foreign(_SAMPLER),
    "eta_cutoff": Foreign(_SAMPLER),
    "extra_body": Foreign("it is an argument of the SDK; its fields stand beside `model` in the body"),
    "format": Foreign(_FORMAT),
    "function_call": Foreign("use tool_choice", ("none", "auto")),
    "functions": Foreign("use tools"),
    "grammar": Foreign(_FORMAT),
    "guided_choice": Foreign(_FORMAT),
    "guided_grammar": Foreign(_FORMAT),
    "guided_json": Foreign(_FORMAT),
    "guided_regex": Foreign(_FORMAT),
    "include_stop_str_in_output": Foreign("a stop string is never part of the answer"),
    "input": Foreign("it belongs to the Responses API; send `messages`"),
    "instructions": Foreign("it belongs to the Responses API; send a system message"),
    "json_schema": Foreign(_FORMAT),
    "length_penalty": Foreign("there is no beam search", (1,)),
    "logits_processors": Foreign("no code of a client runs here"),
    "lora_path": Foreign("a request loads no weights"),
    "max_output_tokens": Foreign("use max_completion_tokens"),
    "mirostat": Foreign(_SAMPLER),
    "models": Foreign("name one in `model`"),
    "n_predict": Foreign("use max_tokens", (-1,)),
    "num_beams": Foreign("there is no beam search", (1,)),
    "num_ctx": Foreign("the context of a model is fixed when the server starts"),
    "num_predict": Foreign("use max_tokens", (-1,)),
    "options": Foreign("write its fields beside `model`"),
    "plugins": Foreign("there are none"),
    "previous_response_id": Foreign("nothing is stored; send the whole conversation"),
    "prompt_logprobs": Foreign("use /v1/completions with echo and logprobs"),
    "reasoning": Foreign("use reasoning_effort"),
    "regex": Foreign(_FORMAT),
    "repeat_penalty": Foreign("use repetition_penalty", (1,)),
    "return_token_ids": Foreign("use /v1/completions with logprobs and return_tokens_as_token_ids"),
    "return_token_strs": Foreign("use /detokenize"),
    "structured_outputs": Foreign(_FORMAT),
    "tfs_z": Foreign(_SAMPLER, (1,)),
    "think": Foreign("use reasoning_effort, or chat_template_kwargs.enable_thinking", counts=True),
    "thinking": Foreign("use reasoning_effort, or chat_template_kwargs.enable_thinking", counts=True),
    "top_a": Foreign(_SAMPLER),
    "top_n_sigma": Foreign(_SAMPLER, (-1,)),
    "transforms": Foreign("prompts are never shortened"),
    "truncate_prompt_tokens": Foreign("prompts are never shortened"),
    "typical_p": Foreign(_SAMPLER, (1,)),
    "use_beam_search": Foreign("there is no beam search"),
    "web_search_options": Foreign("nothing is looked up on the web", counts=True),
    "xtc_probability": Foreign(_SAMPLER),
}


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
        if len(data) > _MOST:
            raise ValueError(f"an object has at most {_MOST} fields here, not {len(data)}")
        return {name: value for name, value in data.items() if not cls.idle(name, value)}

    @classmethod
    def idle(cls, name: str, value: Any) -> bool:  # noqa: ARG003  # subclasses look at the name
        """Whether a field asks for nothing and is left out."""
        return value is None


class Open(Wire):
    """A JSON object in which unknown fields are left out."""

    model_config = ConfigDict(extra="ignore")


class Body(Wire):
    """A request body: unknown fields that ask for nothing are left out, others are errors."""

    @classmethod
    def idle(cls, name: str, value: Any) -> bool:
        if value is None or name in cls.model_fields:
            return value is None
        if name in Hints.model_fields or name.startswith(HINT_PREFIXES):
            return True
        foreign = FOREIGN.get(name, Foreign("", counts=bool(near(name, cls.model_fields))))
        return any(value == one for one in foreign.neutral) or not (value or foreign.counts)


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


def near(name: str, known: Collection[str]) -> str | None:
    """The known name of which `name` may be a misspelling: case, underscores and hyphens do not count."""
    if len(name) > _LONG:
        return None
    plain = {_plain(one): one for one in known}
    found = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=_NEAR)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def refusal(name: str, known: Collection[str]) -> tuple[str, str]:
    """Why a field is refused, in words and as a code."""
    if name in FOREIGN:
        return f"{name} cannot be honoured: {FOREIGN[name].why}", "unsupported"
    meant = near(name, known)
    hint = f"did you mean {meant!r}?" if meant else "it may change the answer, so it is not ignored"
    return f"unknown field {name!r}; {hint}", "unknown_field"
