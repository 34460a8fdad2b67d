"""`api`: a scorer behind HTTP; LLaMA-Factory's `/v1/score/evaluation` is one (`form: strings`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import EngineError, RequestError, one_line
from ensemblehub.generators.base import Engine
from ensemblehub.generators.openai.endpoint import Endpoint, key_of
from ensemblehub.generators.openai.options import checked_url
from ensemblehub.generators.openai.patience import Patience
from ensemblehub.generators.openai.usage import APIUsage
from ensemblehub.schema import Chat, Message, ModelInfo, Price, Request, TokenIds
from ensemblehub.scorers.base import Scorer


@dataclass(frozen=True)
class APIOptions:
    """Options of the HTTP scorer.

    Attributes:
        path: the URL to post to.
        form: what is posted besides `model`: `completions` is `{prompt, completions}`, one prompt (the
            messages' contents, joined by blank lines) and a list of replies; `messages` a list of
            conversations of `{role, content}`; `strings` a list of texts under `messages`, prompt and reply
            joined by a line break.
        model: name of the model to ask for, and the one that judges; without it none is sent, and the URL
            judges.
        api_key_env: environment variable that holds the key, sent as a bearer token.
        timeout: seconds to wait for a connection, for the start of an answer, and for the rest of it.
        tries: maximum number of tries; a request is retried after a failed connection, a timeout, HTTP 429 or
            5xx.
        backoff: maximum delay in seconds before the second try, doubled for each further one.  The actual
            delay is drawn from the upper half of that range, or is the server's `Retry-After` where that is
            longer.
        longest_wait: seconds; a server that asks for a longer delay is not tried again.
        price: price of the prompt tokens that the server reports (`usage.prompt_tokens`).
    """

    path: str
    form: Literal["completions", "messages", "strings"] = "completions"
    model: str | None = None
    api_key_env: str | None = None
    timeout: Annotated[float, Gt(0)] = 30.0
    tries: Annotated[int, Ge(1)] = 3
    backoff: Annotated[float, Ge(0)] = 0.5
    longest_wait: Annotated[float, Ge(0)] = 60.0
    price: Price | None = None

    def __post_init__(self) -> None:
        checked_url(self.path, "path", "http://localhost:8000/v1/score")


class APIScorer(Scorer):
    """Scores from `{"scores": [...]}` or `{"results": [...]}`, one finite number per text in their order.

    A result may be a number or an object with a `score`.  The scale is the server's.  A failure, and any
    other answer, is an `EngineError` that names the URL; keys are masked in messages.
    """

    options: ClassVar[type] = APIOptions

    def __init__(self, name: str, options: APIOptions, engines: Sequence[Engine] = ()) -> None:
        self.name = name
        self.settings = options
        self.info = ModelInfo(price=options.price)
        self._url, _, self._query = options.path.partition("?")  # a query may hold a secret

    @property
    def model(self) -> str:
        return self.settings.model or self._url

    async def score(self, request: Request, texts: Sequence[str], meter: UsageMeter) -> list[float]:
        body = self.body(request, texts)
        started = time.perf_counter()
        read = None
        try:
            reply = await self._endpoint.fetch(f"?{self._query}" if self._query else "", body)
            read = (APIUsage.of(reply) or APIUsage()).read
            return self._scores(reply, len(texts))
        finally:
            meter.record(
                self.name,
                self.info,
                prompt_tokens=read or 0,
                seconds=time.perf_counter() - started,
                estimated=read is None,
            )

    def body(self, request: Request, texts: Sequence[str]) -> dict[str, Any]:
        """The JSON body.

        Raises:
            RequestError: the question consists of another model's token ids.
        """
        prompt = request.prompt
        if isinstance(prompt, TokenIds):
            raise RequestError(f"scorer {self.name!r} cannot read the token ids of another model")
        asked = prompt.messages if isinstance(prompt, Chat) else (Message("user", prompt.text),)
        question = "\n\n".join(message.content for message in asked)
        replies = [request.prefix + text for text in texts]
        body: dict[str, Any] = {} if self.settings.model is None else {"model": self.settings.model}
        if self.settings.form == "completions":
            return body | {"prompt": question, "completions": replies}
        if self.settings.form == "strings":
            return body | {"messages": [f"{question}\n{reply}" for reply in replies]}
        turns = [{"role": message.role, "content": message.content} for message in asked]
        return body | {"messages": [[*turns, {"role": "assistant", "content": reply}] for reply in replies]}

    def _scores(self, reply: Mapping[str, Any], count: int) -> list[float]:
        given = reply.get("scores", reply.get("results"))
        if not isinstance(given, list):
            raise self._error("the answer has no list of `scores` or `results`")
        if len(given) != count:
            raise self._error(f"{len(given)} scores for {count} texts")
        values: list[Any] = [entry.get("score") if isinstance(entry, dict) else entry for entry in given]
        for value in values:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not abs(value) <= sys.float_info.max:
                raise self._error(f"a score is {value!r:.40}, not a finite number")
        return [float(value) for value in values]

    def _error(self, reason: str) -> EngineError:
        return EngineError(f"scorer {self.name!r} failed at {self._url}: {one_line(reason)}")

    @cached_property
    def _endpoint(self) -> Endpoint:
        settings = self.settings
        whose = f"scorer {self.name!r}"
        patience = Patience(
            connect=settings.timeout,
            first_token=settings.timeout,
            total=settings.tries * 3 * settings.timeout + (settings.tries - 1) * settings.longest_wait,
            tries=settings.tries,
            backoff=settings.backoff,
            longest_wait=settings.longest_wait,
        )
        return Endpoint(whose, self._url, key_of(settings.api_key_env, whose), patience, secret=self._query)

    async def load(self) -> None:
        """Check the key, without asking the server.

        Raises:
            ConfigError: the key is not set.
        """
        self._endpoint  # noqa: B018  # raises

    async def close(self) -> None:
        endpoint = self.__dict__.pop("_endpoint", None)
        if endpoint is not None:
            await endpoint.close()
