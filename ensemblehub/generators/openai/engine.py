"""Any OpenAI-compatible API: OpenAI, OpenRouter, vLLM, SGLang, llama.cpp's server, Ollama, or our own.

Turns requests into the API's, its events into pieces, and its usage into a bill.  What goes wrong on the way is
`endpoint`'s.  An answer that broke off, or an error, is never text.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, cast
from urllib.parse import urlsplit

from ensemblehub.cost import UsageLedger, UsageMeter
from ensemblehub.errors import (
    CapabilityError,
    ConfigError,
    ContextOverflowError,
    EngineError,
    MissingExtraError,
    RequestError,
    one_line,
)
from ensemblehub.generators.base import Engine, Finding, Tokenizer
from ensemblehub.generators.entropies import bounded
from ensemblehub.generators.openai.answer import Answer
from ensemblehub.generators.openai.endpoint import Endpoint, Refused, key_of
from ensemblehub.generators.openai.errors import OVERFLOW
from ensemblehub.generators.openai.patience import Patience
from ensemblehub.generators.openai.score import Echo
from ensemblehub.generators.text.rendering import Renderer
from ensemblehub.schema import Capability, Chat, ModelInfo, Piece, Price, Request, Sampling, Scored, Text

log = logging.getLogger(__name__)
_SPEC = re.compile(r"(?P<model>.+?):(?P<url>https?://.+?)(:\$(?P<key>\w+))?")
_KEYS = {"openrouter.ai": "OPENROUTER_API_KEY", "api.openai.com": "OPENAI_API_KEY"}
_VLLM = ("top_k", "min_p", "min_tokens", "repetition_penalty", "ignore_eos", "stop_token_ids")
_OPENAI = ("top_p", "seed", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class OpenAIOptions:
    """Options of an OpenAI-compatible API.

    Attributes:
        path: the model's name there, or in the reference's form `NAME:BASE_URL:$KEY_VARIABLE`.
        base_url: up to `/v1`.
        api_key_env: environment variable with the key; that of OpenRouter or OpenAI at their addresses, else none.
        dialect: `vllm` for servers that understand its fields besides (`top_k`, `min_p`, `min_tokens`, chat
            template options).
        prefix: how the start of an answer is given: `continue_final_message` (vLLM, SGLang, llama.cpp, this project's
            server), `assistant` (a last message of the assistant's, which is continued), `flag` (the same with
            `prefix: true`), or `none`; by default `continue_final_message` in vLLM's dialect, else `none`.
        logprobs: whether it gives logprobs of what it writes; they are asked for where a request wants them.
        score: how a prompt is read: `echo` where `/completions` gives logprobs of a prompt (`echo` with `logprobs`, as
            vLLM and this project's server do), or `none`.  A chat is rendered here, which takes the `tokenizer`.
        entropy_top_k: from how many of the likeliest tokens a reading takes its entropies, the others counting as one,
            so that they are lower bounds; servers give 20 (vLLM) or 5 (OpenAI) at most.  0: the server gives exact ones
            beside the logprobs, as this project's does.
        tools, response_format: whether the model calls tools, and keeps to a format.
        reasoning: what becomes of a reasoning model's thoughts: `inline` puts them before the answer between
            <think> and </think>, as local models write them; `drop` leaves them out.
        max_tokens_field: `max_completion_tokens` for OpenAI's own reasoning models.
        extra_body: fields sent with every request.
        parameters: of the model, in all; guessed from a size such as `7B` in its name.
        context: in tokens, where known.
        price: US dollars per million tokens; by default what `genai-prices` knows, where it is installed.
        tokenizer: folder or hub id of the model's own tokenizer, to score chats and to count tokens.
        patience: deadlines and retries.
        concurrency: requests at the same time.
    """

    path: str
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str | None = None
    dialect: Literal["openai", "vllm"] = "openai"
    prefix: Literal["continue_final_message", "assistant", "flag", "none"] | None = None
    logprobs: bool = False
    score: Literal["echo", "none"] = "none"
    entropy_top_k: int = 20
    tools: bool = False
    response_format: bool = False
    reasoning: Literal["inline", "drop"] = "inline"
    max_tokens_field: str = "max_tokens"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    context: int = 0
    price: Price | None = None
    tokenizer: str | None = None
    patience: Patience = field(default_factory=Patience)
    concurrency: int = 64

    def __post_init__(self) -> None:
        if self.entropy_top_k < 0:
            raise ConfigError(f"entropy_top_k must be at least 0, not {self.entropy_top_k}")


@dataclass(frozen=True)
class Address:
    """Where a model is asked for: its name, the URL up to `/v1`, and the variable that holds the key."""

    model: str
    url: str
    key_variable: str | None

    @classmethod
    def of(cls, options: OpenAIOptions) -> Address:
        """From the options, the reference's `NAME:BASE_URL:$KEY` included.

        Raises:
            ConfigError: the URL is none, or holds a user's name and password.
        """
        spec = _SPEC.fullmatch(options.path)
        model, url = (spec["model"], spec["url"]) if spec else (options.path, options.base_url)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"base_url must be a URL such as http://localhost:8000/v1, not {url!r}")
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                f"base_url: no user, password or query belong in it ({parts.hostname}); use api_key_env"
            )
        variable = (spec and spec["key"]) or options.api_key_env or _KEYS.get(parts.hostname)
        return cls(model, url.rstrip("/"), variable)


class OpenAIEngine(Engine):
    """A model behind an OpenAI-compatible API.

    The endpoint may run ahead of its reader: what it wrote and nobody read is billed as discarded.  Where a stream
    is closed before the provider has told its usage, the bill is an estimate and says so.
    """

    options: ClassVar[type] = OpenAIOptions

    def __init__(self, name: str, options: OpenAIOptions) -> None:
        self.name, self.settings, self.address = name, options, Address.of(options)
        self.capabilities, self._said = _capabilities(options), False
        size = _size(self.address.model) if options.parameters is None else options.parameters
        self.info = ModelInfo(
            size, size, 0.0, options.context, 0, options.price or _known_price(self.address)
        )

    @property
    def model(self) -> str:
        """Its name and where; with how many tokens entropies are taken from, where they are not exact."""
        name = f"{self.address.model} at {urlsplit(self.address.url).netloc}"
        return name if self.exact else bounded(name, self.settings.entropy_top_k)

    @property
    def exact(self) -> bool:
        return "score" not in self.capabilities or not self.settings.entropy_top_k

    def describe(self) -> str:
        """One line: which model, where."""
        size = f", about {self.info.parameters:,} parameters" if self.info.parameters else ""
        return f"{self.name}: {self.address.model} at {self.address.url}{size}"

    async def load(self) -> None:
        """Check the key and load the tokenizer, if one is named; asks nothing of the endpoint.

        Raises:
            ConfigError: the key is not there, or the tokenizer cannot be loaded.
        """
        self._endpoint  # noqa: B018  # raises
        self.tokenizer  # noqa: B018

    async def close(self) -> None:
        endpoint = self.__dict__.pop("_endpoint", None)
        if endpoint is not None:
            await endpoint.close()

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        if self.settings.tokenizer is None:
            return None
        try:
            import transformers
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{error.name} is not installed: pip install 'ensemblehub[hf]'"
            ) from error
        try:
            return Renderer(transformers.AutoTokenizer.from_pretrained(self.settings.tokenizer))
        except (OSError, ValueError) as error:
            place = f"tokenizer {self.settings.tokenizer}"
            raise ConfigError(f"model {self.name!r}: {place}: {one_line(error)}") from error

    async def listed(self) -> dict[str, Any]:
        """What the API answers when it is asked for its models.

        Raises:
            EngineError: it cannot be asked, or refuses.
        """
        return await self._endpoint.get("/models")

    async def probe(self, ledger: UsageLedger) -> Sequence[Finding]:
        from ensemblehub.generators.openai.probe import probe

        return await probe(self, ledger)

    def count(self, request: Request) -> int | None:
        render: Any = self.tokenizer
        try:
            return None if render is None else len(render(request, self.name).ids)
        except RequestError:  # by a template that is perhaps not the provider's
            return None

    async def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        self.offers(request)
        request = self.fitted(request, self.count(request) if self.info.context else None)
        path, body = self.asked(request)
        answer, started = self._answer(request, meter, body), time.perf_counter()
        try:
            async with aclosing(self._pieces(path, body, answer)) as pieces:
                async for piece in pieces:
                    yield piece
            for piece in answer.end():
                yield piece
        except Refused as error:
            raise _plain(error) from error
        finally:
            answer.record(time.perf_counter() - started)

    async def _pieces(
        self, path: str, body: Mapping[str, Any], answer: Answer
    ) -> AsyncGenerator[Piece, None]:
        try:
            async with aclosing(self._endpoint.events(path, body)) as events:
                async for event in events:
                    for piece in answer.pieces(event):
                        yield piece
                    if answer.over:
                        return
        except EngineError as error:
            if not answer.complete:
                raise
            log.warning("%s; the answer had ended before", error)

    def _answer(self, request: Request, meter: UsageMeter, body: Mapping[str, Any]) -> Answer:
        settings = self.settings
        asked = body.get(settings.max_tokens_field)  # `extra_body` may ask for another number
        limit = asked if isinstance(asked, int) else request.sampling.max_tokens
        return Answer(
            self,
            request,
            meter,
            limit,
            thoughts=settings.reasoning == "inline",
            bound_thoughts=settings.max_tokens_field == "max_completion_tokens",
            stop=() if body.get("include_stop_str_in_output") else request.sampling.stop,
            several=body.get("n") not in (None, 1),
        )

    async def score(self, request: Request, meter: UsageMeter) -> Scored:
        """Read the rendered prompt; what the API writes behind it, one token at most, is billed as discarded.

        Raises:
            CapabilityError: the options do not say that the API can.
            RequestError: a chat, and no tokenizer to render it with.
            EngineError: as `stream`, or the answer is no reading of this prompt.
        """
        if "score" not in self.capabilities:
            raise CapabilityError(f"engine {self.name!r} cannot score a prompt (option `score`)")
        settings, renderer = self.settings, cast(Renderer | None, self.tokenizer)
        echo = Echo(
            self.name,
            self.address.model,
            request,
            renderer,
            settings.entropy_top_k,
            settings.dialect == "vllm",
        )
        body = echo.body() | dict(settings.extra_body)
        self.fits(self.count(request) if self.info.context else None, body["max_tokens"])
        bill, started = Answer(self, request, meter, body["max_tokens"]), time.perf_counter()
        try:
            answer = await self._endpoint.post("/completions", body)
            bill.told(answer)
            bill.finish, bill.written = "length", body["max_tokens"]
            return echo.scored(answer)
        except asyncio.CancelledError:
            bill.finish = "length"  # it may have read all of it
            raise
        except Refused as error:
            raise _plain(error) from error
        finally:
            bill.record(time.perf_counter() - started, reading=True)

    def asked(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The path and the body that ask the API.

        Raises:
            CapabilityError, RequestError: the API cannot be asked that.
        """
        self.offers(request)
        body: dict[str, Any] = {
            "model": self.address.model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body |= self._sampling(request.sampling) | dict(request.extra) | dict(self.settings.extra_body)
        if isinstance(request.prompt, Chat):
            return "/chat/completions", body | self._messages(request.prompt, request.prefix)
        if not isinstance(request.prompt, Text):
            raise RequestError(f"{self.name}: an API is asked in words, not in token ids")
        if "logprobs" in body:
            body["logprobs"] = body.pop("top_logprobs")
        return "/completions", body | {"prompt": request.prompt.text + request.prefix}

    def _sampling(self, sampling: Sampling) -> dict[str, Any]:
        changed = [
            name for name in (*_OPENAI, *_VLLM) if getattr(sampling, name) != getattr(Sampling(), name)
        ]
        foreign = [name for name in changed if name in _VLLM]
        if foreign and self.settings.dialect != "vllm":
            raise RequestError(f"{self.name}: the API takes no {foreign[0]} (dialect: vllm does)")
        body: dict[str, Any] = {name: getattr(sampling, name) for name in changed}
        body |= {self.settings.max_tokens_field: sampling.max_tokens, "temperature": sampling.temperature}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.logit_bias:
            body["logit_bias"] = {str(index): bias for index, bias in sampling.logit_bias.items()}
        if self.settings.logprobs:
            body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        return body

    def _messages(self, chat: Chat, prefix: str) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": [message.wire for message in chat.messages]}
        if chat.thinking is not None and self.settings.dialect == "vllm":
            body["chat_template_kwargs"] = {"enable_thinking": chat.thinking}
        elif chat.thinking is not None and not self._said:
            self._said = True  # once
            log.warning(
                "%s: OpenAI's API has no word for whether to think; `extra_body` may have one", self.name
            )
        if not prefix:
            return body
        way = prefix_way(self.settings)
        if way == "none":
            raise RequestError(f"{self.name}: the API cannot continue an answer (option `prefix`)")
        last: dict[str, Any] = {"role": "assistant", "content": prefix} | (
            {"prefix": True} if way == "flag" else {}
        )
        body["messages"].append(last)
        if way == "continue_final_message":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    @cached_property
    def _endpoint(self) -> Endpoint:
        key, settings = key_of(self.address.key_variable, f"model {self.name!r}"), self.settings
        return Endpoint(self.name, self.address.url, key, settings.patience, settings.concurrency)


def _capabilities(options: OpenAIOptions) -> frozenset[Capability]:
    capabilities: set[Capability] = {"prefix"} if prefix_way(options) != "none" else set()
    capabilities |= {"score"} if options.score != "none" else set()
    named: tuple[Literal["logprobs", "tools", "response_format"], ...] = (
        "logprobs",
        "tools",
        "response_format",
    )
    return frozenset(capabilities | {name for name in named if getattr(options, name)})


def prefix_way(options: OpenAIOptions) -> str:
    """How the start of an answer is given."""
    return options.prefix or ("continue_final_message" if options.dialect == "vllm" else "none")


def _plain(error: Refused) -> Exception:
    """A refusal by what it means here."""
    if error.code == OVERFLOW:
        return ContextOverflowError(str(error))
    return RequestError(str(error)) if error.status in (400, 413, 422) else error


def _size(name: str) -> int:
    """Parameters by a size in the model's name, such as `7B` or `1.5b`; 0 where there is none."""
    found = re.findall(
        r"(?<![\w.])(\d+(?:\.\d+)?)b(?![a-z])", name.lower().replace("-", " ").replace("_", " ")
    )
    return round(float(found[0]) * 1e9) if found else 0


def _known_price(address: Address) -> Price | None:
    """The price of `genai-prices`, where it is installed and knows the model."""
    try:
        from genai_prices import Usage, calc_price
    except ModuleNotFoundError:
        return None
    million = 1_000_000
    try:
        read, written = (
            calc_price(usage, model_ref=address.model, provider_api_url=address.url)
            for usage in (Usage(input_tokens=million), Usage(output_tokens=million))
        )
    except LookupError:
        return None
    return Price(float(read.input_price), float(written.output_price))
