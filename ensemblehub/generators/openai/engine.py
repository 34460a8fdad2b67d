"""Models behind an OpenAI-compatible API.

The API may be that of OpenAI, OpenRouter, vLLM, SGLang, llama.cpp's server, Ollama or this project.  Turns a
request into an HTTP body, and the events of the answer into pieces and usage.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import urlsplit

from ensemblehub.cost import UsageLedger, UsageMeter
from ensemblehub.errors import (
    CapabilityError,
    ConfigError,
    ContextOverflowError,
    EngineError,
    EnsembleHubError,
    MissingExtraError,
    RequestError,
    one_line,
)
from ensemblehub.generators.base import Engine, Finding
from ensemblehub.generators.entropies import bounded
from ensemblehub.generators.openai.answer import APIAnswer
from ensemblehub.generators.openai.endpoint import Endpoint, key_of
from ensemblehub.generators.openai.errors import OVERFLOW, RefusedError
from ensemblehub.generators.openai.options import Address, OpenAIOptions, info_of, thinking_in
from ensemblehub.generators.openai.probe import Probe
from ensemblehub.generators.openai.score import EchoPrompt
from ensemblehub.generators.text.rendering import Renderer
from ensemblehub.schema import Chat, Piece, Request, Sampling, Scored, Text

log = logging.getLogger(__name__)
_OPENAI_FIELDS = ("top_p", "seed", "presence_penalty", "frequency_penalty")
_VLLM_FIELDS = ("top_k", "min_p", "min_tokens", "repetition_penalty", "ignore_eos", "stop_token_ids")


class OpenAIEngine(Engine):
    """A model behind an OpenAI-compatible API.

    The endpoint may run ahead of its reader; what it wrote and nobody read is recorded as discarded.  Where a
    stream is closed before the provider has reported its usage, the cost is an estimate and marked as one.
    """

    options: ClassVar[type] = OpenAIOptions

    def __init__(self, name: str, options: OpenAIOptions) -> None:
        self.name = name
        self.settings = options
        self.address = Address.of(options)
        self.capabilities = options.capabilities
        self.info = info_of(options, self.address)
        self._warned = False

    @property
    def model(self) -> str:
        """The model's name and host, and from how many tokens entropies are computed unless exact."""
        name = f"{self.address.model} at {urlsplit(self.address.url).netloc}"
        return name if self.exact else bounded(name, self.settings.entropy_top_k)

    @property
    def exact(self) -> bool:
        return "score" not in self.capabilities or not self.settings.entropy_top_k

    def describe(self) -> str:
        """Return a one-line description: model and host."""
        size = f", about {self.info.parameters:,} parameters" if self.info.parameters else ""
        return f"{self.name}: {self.address.model} at {self.address.url}{size}"

    async def load(self) -> None:
        """Check the key and load the tokenizer, if one is configured; sends no request.

        Raises:
            ConfigError: the key is not set, or the tokenizer cannot be loaded.
        """
        self._endpoint  # noqa: B018  # raises
        self.tokenizer  # noqa: B018

    async def close(self) -> None:
        endpoint = self.__dict__.pop("_endpoint", None)
        if endpoint is not None:
            await endpoint.close()

    @cached_property
    def tokenizer(self) -> Renderer | None:
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

    def count(self, request: Request) -> int | None:
        try:
            return None if self.tokenizer is None else len(self.tokenizer(request, self.name).ids)
        except RequestError:  # by a template that is perhaps not the provider's
            return None

    @property
    def thinking(self) -> bool | None:
        return thinking_in(self.settings.extra_body)

    def same_prompt(self, first: Request, second: Request) -> bool:
        return self.path_and_body(first) == self.path_and_body(second)

    async def probe(self, ledger: UsageLedger) -> Sequence[Finding]:
        def engine(settings: OpenAIOptions) -> OpenAIEngine:
            return OpenAIEngine(self.name, settings)

        return await Probe(engine, ledger, self.settings).findings()

    async def listed(self) -> dict[str, Any]:
        """The API's list of models, as it answers.

        Raises:
            EngineError: it cannot be asked, or refuses.
        """
        return await self._endpoint.fetch("/models")

    async def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        request = self.fitted(request, self.count(request) if self.info.context else None)
        path, body = self.path_and_body(request)
        answer = self._answer(request, meter, body)
        started = time.perf_counter()
        try:
            async with aclosing(self._pieces(path, body, answer)) as pieces:
                async for piece in pieces:
                    yield piece
            for piece in answer.end():
                yield piece
        finally:
            answer.record(time.perf_counter() - started)

    async def _pieces(
        self, path: str, body: Mapping[str, Any], answer: APIAnswer
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
                raise _meant(error) from error.__cause__
            log.warning("%s; the answer had ended before", error)

    def _answer(self, request: Request, meter: UsageMeter, body: Mapping[str, Any]) -> APIAnswer:
        settings = self.settings
        limit = body.get(settings.max_tokens_field)  # `extra_body` may ask for another number
        return APIAnswer(
            self,
            request,
            meter,
            limit if isinstance(limit, int) else request.sampling.max_tokens,
            show_thoughts=settings.reasoning == "inline",
            bound_thoughts=settings.max_tokens_field == "max_completion_tokens",
            stop=() if body.get("include_stop_str_in_output") else request.sampling.stop,
            several=body.get("n") not in (None, 1),
        )

    async def score(self, request: Request, meter: UsageMeter) -> Scored:
        """Score the rendered prompt; a token that the API writes behind it is recorded as discarded.

        Raises:
            CapabilityError: the option `score` is not set.
            RequestError: the request is a chat, and there is no tokenizer to render it.
            EngineError: as `stream`, or the answer does not fit this prompt.
        """
        if "score" not in self.capabilities:
            raise CapabilityError(f"engine {self.name!r} cannot score a prompt (option `score`)")
        settings = self.settings
        prompt = EchoPrompt(self.name, self.address.model, settings, request, self.tokenizer)
        body = prompt.body() | dict(settings.extra_body)
        self.fits(self.count(request) if self.info.context else None, body["max_tokens"])
        answer = APIAnswer(self, request, meter, body["max_tokens"])
        started = time.perf_counter()
        try:
            reply = await self._endpoint.fetch("/completions", body)
            answer.read_usage(reply)
            answer.finish = "length"
            answer.written = body["max_tokens"]
            return prompt.scored(reply)
        except asyncio.CancelledError:
            answer.finish = "length"  # the server may have read all of the prompt
            raise
        except EngineError as error:
            raise _meant(error) from error.__cause__
        finally:
            answer.record(time.perf_counter() - started, scoring=True)

    def path_and_body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The path and the JSON body of a request.

        Raises:
            CapabilityError, RequestError: the API does not offer what the request asks for.
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
        default = Sampling()
        names = (*_OPENAI_FIELDS, *_VLLM_FIELDS)
        changed = [name for name in names if getattr(sampling, name) != getattr(default, name)]
        foreign = next((name for name in changed if name in _VLLM_FIELDS), None)
        if foreign and self.settings.dialect != "vllm":
            raise RequestError(f"{self.name}: the API takes no {foreign} (dialect: vllm does)")
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
        elif chat.thinking is not None and not self._warned:
            self._warned = True
            log.warning(
                "%s: OpenAI's API has no word for whether to think; `extra_body` may have one", self.name
            )
        if not prefix:
            return body
        way = self.settings.continuation
        if way == "none":
            raise RequestError(f"{self.name}: the API cannot continue an answer (option `prefix`)")
        flag = {"prefix": True} if way == "flag" else {}
        body["messages"].append({"role": "assistant", "content": prefix, **flag})
        if way == "continue_final_message":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    @cached_property
    def _endpoint(self) -> Endpoint:
        settings = self.settings
        key = key_of(self.address.key_variable, f"model {self.name!r}")
        return Endpoint(self.name, self.address.url, key, settings.patience, settings.concurrency)


def _meant(error: EngineError) -> EnsembleHubError:
    """The error itself, or the request's fault where the API refused the request."""
    if not isinstance(error, RefusedError):
        return error
    if error.code == OVERFLOW:
        return ContextOverflowError(str(error))
    return RequestError(str(error)) if error.status in (400, 413, 422) else error
