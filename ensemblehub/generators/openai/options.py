"""Options of the `openai` engine, and what they tell of a model: its address, abilities, size and price."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from annotated_types import Ge

from ensemblehub.errors import ConfigError
from ensemblehub.generators.openai.patience import Patience
from ensemblehub.schema import Capability, ModelInfo, Price

Continuation = Literal["continue_final_message", "assistant", "flag", "none"]
_SPEC = re.compile(r"(?P<model>.+?):(?P<url>https?://.+?)(:\$(?P<key>\w+))?")
_KEYS = {"openrouter.ai": "OPENROUTER_API_KEY", "api.openai.com": "OPENAI_API_KEY"}
_MILLION = 1_000_000


@dataclass(frozen=True)
class OpenAIOptions:
    """Options of an OpenAI-compatible API.

    Attributes:
        path: the model's name at the API, or the reference toolkit's form `NAME:BASE_URL:$KEY_VARIABLE`.
        base_url: URL of the API, up to `/v1`.
        api_key_env: environment variable that holds the key; by default that of OpenRouter or OpenAI at their
            addresses, else none.
        dialect: `vllm` for servers that also accept its fields (`top_k`, `min_p`, `min_tokens`, chat template
            options).
        prefix: how the start of an answer is sent: `continue_final_message` (vLLM, SGLang, llama.cpp, this
            project's server), `assistant` (a last message of the assistant, which is continued), `flag` (the
            same with `prefix: true`), or `none`; by default `continue_final_message` in vLLM's dialect, else
            `none`.
        logprobs: whether the API returns logprobs of what it writes; they are requested with every answer.
        score: how a prompt is scored: `echo` where `/completions` returns logprobs of a prompt (`echo` with
            `logprobs`, as vLLM and this project's server do), or `none`.  Chats are rendered locally, which
            requires `tokenizer`.
        entropy_top_k: number of top tokens from which entropies are computed, all others counting as one
            token, so that they are lower bounds; servers return at most 20 (vLLM) or 5 (OpenAI).  0: the
            server returns exact entropies beside the logprobs, as this project's does.
        tools, response_format: whether the model calls tools, and keeps to a format.
        reasoning: `inline` puts a reasoning model's thoughts before the answer between <think> and </think>,
            as local models write them; `drop` leaves them out.
        max_tokens_field: `max_completion_tokens` for OpenAI's own reasoning models.
        extra_body: fields sent with every request.
        parameters: total parameters of the model; by default taken from a size such as `7B` in its name.
        context: context length in tokens; 0 where unknown.
        price: US dollars per million tokens; by default that of `genai-prices`, where it is installed.
        tokenizer: folder or hub id of the model's own tokenizer, to score chats and to count tokens.
        patience: deadlines and retries.
        concurrency: maximum number of simultaneous requests.
    """

    path: str
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str | None = None
    dialect: Literal["openai", "vllm"] = "openai"
    prefix: Continuation | None = None
    logprobs: bool = False
    score: Literal["echo", "none"] = "none"
    entropy_top_k: Annotated[int, Ge(0)] = 20
    tools: bool = False
    response_format: bool = False
    reasoning: Literal["inline", "drop"] = "inline"
    max_tokens_field: str = "max_tokens"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    parameters: Annotated[int, Ge(0)] | None = None
    context: Annotated[int, Ge(0)] = 0
    price: Price | None = None
    tokenizer: str | None = None
    patience: Patience = field(default_factory=Patience)
    concurrency: Annotated[int, Ge(1)] = 64

    @property
    def continuation(self) -> Continuation:
        """How the prefix of an answer is sent."""
        return self.prefix or ("continue_final_message" if self.dialect == "vllm" else "none")

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Capabilities of the model besides generating text."""
        declared: dict[Capability, bool] = {
            "prefix": self.continuation != "none",
            "score": self.score != "none",
            "logprobs": self.logprobs,
            "tools": self.tools,
            "response_format": self.response_format,
        }
        return frozenset(name for name, able in declared.items() if able)


def thinking_in(body: Mapping[str, Any]) -> bool | None:
    """The chat template's `enable_thinking` in the fields of a request; None where they leave it."""
    options = body.get("chat_template_kwargs")
    thinking = options.get("enable_thinking") if isinstance(options, Mapping) else None
    return thinking if isinstance(thinking, bool) else None


@dataclass(frozen=True)
class Address:
    """The model's name, the URL up to `/v1`, and the environment variable that holds the key."""

    model: str
    url: str
    key_variable: str | None

    @classmethod
    def of(cls, options: OpenAIOptions) -> Address:
        """The address in the options, the reference toolkit's `NAME:BASE_URL:$KEY` included.

        Raises:
            ConfigError: the URL is malformed, or holds a user name, password or query.
        """
        spec = _SPEC.fullmatch(options.path)
        model, url = (spec["model"], spec["url"]) if spec else (options.path, options.base_url)
        parts = checked_url(url, "base_url", "http://localhost:8000/v1")
        if parts.query:
            raise ConfigError(f"base_url: no query belongs in it ({parts.hostname}); use api_key_env")
        variable = (spec and spec["key"]) or options.api_key_env or _KEYS.get(parts.hostname or "")
        return cls(model, url.rstrip("/"), variable)


def checked_url(url: str, option: str, example: str) -> SplitResult:
    """The parts of the URL that an option holds.

    Raises:
        ConfigError: it is malformed, or holds a user name or password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{option} must be a URL such as {example}, not {url!r}")
    if parts.username or parts.password:
        raise ConfigError(f"{option}: no user or password belongs in it ({parts.hostname}); use api_key_env")
    return parts


def info_of(options: OpenAIOptions, address: Address) -> ModelInfo:
    """Return the `ModelInfo`; the size is 0 if neither an option nor the name states it."""
    size = _size(address.model) if options.parameters is None else options.parameters
    price = options.price or _known_price(address)
    return ModelInfo(parameters=size, active=size, context=options.context, price=price)


def _size(name: str) -> int:
    """Parameters by a size in a model's name, such as `7B` or `1.5b`; 0 where there is none."""
    words = re.sub("[-_]", " ", name.lower())
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)b(?![a-z])", words)
    return round(float(found[1]) * 1e9) if found else 0


def _known_price(address: Address) -> Price | None:
    """The price according to `genai-prices`, where it is installed and knows the model."""
    try:
        from genai_prices import Usage, calc_price
    except ModuleNotFoundError:
        return None
    usages = (Usage(input_tokens=_MILLION), Usage(output_tokens=_MILLION))
    try:
        read, written = (calc_price(usage, address.model, provider_api_url=address.url) for usage in usages)
    except LookupError:
        return None
    return Price(float(read.input_price), float(written.output_price))
