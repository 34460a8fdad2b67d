"""`api`: a scorer behind HTTP; LLaMA-Factory's `/v1/score/evaluation` is one (`form: strings`)."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from ensemblehub.cost import Meter
from ensemblehub.errors import ConfigError, EngineError, MissingExtraError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.generators.endpoint import key_of, retry_after
from ensemblehub.schema import Card, Chat, Message, Price, Request, TokenIds
from ensemblehub.scorers.base import Scorer


@dataclass(frozen=True)
class APIOptions:
    """Options of the HTTP scorer.

    Attributes:
        path: the URL to post to.
        form: what is posted besides `model`: `completions` is `{prompt, completions}`, one prompt (the messages'
            contents, joined by blank lines) and a list of replies; `messages` a list of conversations of
            `{role, content}`; `strings` a list of texts under `messages`, prompt and reply joined by a line break.
        model: name of the model to ask for, and the one that judges; without it none is sent, and the URL judges.
        api_key_env: environment variable with the key, sent as a bearer token.
        timeout: seconds to wait for a connection, and for each part of an answer.
        tries: how often it is asked at most; again only after a failed connection, a timeout, HTTP 429 or 5xx.
        backoff: seconds before the second try, doubled for each further one; the server's `Retry-After` where
            that is longer.
        longest_wait: seconds; a server that asks for more is not tried again.
        price: what the prompt tokens that the server reports (`usage.prompt_tokens`) are billed.
    """

    path: str
    form: Literal["completions", "messages", "strings"] = "completions"
    model: str | None = None
    api_key_env: str | None = None
    timeout: float = 30.0
    tries: int = 3
    backoff: float = 0.5
    longest_wait: float = 60.0
    price: Price | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.path)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"path must be a URL such as http://localhost:8000/v1/score, not {self.path!r}")
        if parts.username or parts.password:
            raise ConfigError(f"path: name no user in the URL ({parts.hostname}); use api_key_env")
        if self.timeout <= 0 or self.tries < 1 or self.backoff < 0 or self.longest_wait < 0:
            raise ConfigError("timeout must be above 0, tries at least 1, backoff and longest_wait at least 0")


class APIScorer(Scorer):
    """Scores from `{"scores": [...]}` or `{"results": [...]}`, one finite number per text in their order.

    A result may be a number or an object with a `score`.  The scale is the server's.  A failure, and any other
    answer, is an `EngineError` that names the URL; keys are in no message.
    """

    options: ClassVar[type] = APIOptions

    def __init__(self, name: str, options: APIOptions, engines: Sequence[Engine] = ()) -> None:
        self.name, self.settings = name, options
        self.card = Card(price=options.price)
        self._url = options.path.partition("?")[0]  # a query may hold a secret

    @property
    def model(self) -> str:
        return self.settings.model or self._url

    async def score(self, request: Request, texts: Sequence[str], meter: Meter) -> list[float]:
        body = self.body(request, texts)
        started, usage = time.perf_counter(), None
        try:
            answer = await self._answer(body)
            usage = _usage(answer)
            return self._scores(answer, len(texts))
        finally:
            seconds = time.perf_counter() - started
            meter.record(self.name, self.card, prompt_tokens=usage or 0, seconds=seconds, estimated=usage is None)

    def body(self, request: Request, texts: Sequence[str]) -> dict[str, Any]:
        """What is posted.

        Raises:
            RequestError: the question is given in another model's token ids.
        """
        if isinstance(request.prompt, TokenIds):
            raise RequestError(f"scorer {self.name!r} cannot read the token ids of another model")
        prompt = request.prompt
        asked = prompt.messages if isinstance(prompt, Chat) else (Message("user", prompt.text),)
        question, replies = "\n\n".join(message.content for message in asked), [request.prefix + text for text in texts]
        named = {} if self.settings.model is None else {"model": self.settings.model}
        if self.settings.form == "completions":
            return named | {"prompt": question, "completions": replies}
        if self.settings.form == "strings":
            return named | {"messages": [f"{question}\n{reply}" for reply in replies]}
        turns = [{"role": message.role, "content": message.content} for message in asked]
        return named | {"messages": [[*turns, {"role": "assistant", "content": reply}] for reply in replies]}

    async def _answer(self, body: dict[str, Any]) -> Any:
        """The server's JSON, tried again where that may help."""
        import httpx2

        for left in reversed(range(self.settings.tries)):
            wait = self.settings.backoff * 2 ** (self.settings.tries - 1 - left)
            try:
                response = await self._client.post(self.settings.path, json=body, headers=self._headers)
            except httpx2.TransportError as error:
                reason = f"{type(error).__name__} {error}".strip()
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise self._failure(f"{type(error).__name__} {error}".strip()) from error
            else:
                if response.is_success:
                    return self._json(response)
                reason = f"HTTP {response.status_code} {response.text[:10_000]}"
                wait = max(wait, retry_after(response.headers.get("retry-after", "")))
                if response.status_code != 429 and response.status_code < 500:
                    break
            if not left or wait > self.settings.longest_wait:
                break
            await asyncio.sleep(wait)
        raise self._failure(reason)

    def _json(self, response: Any) -> Any:
        try:
            return response.json()
        except ValueError as error:  # not JSON, or not text
            kind = response.headers.get("content-type", "unknown type")
            raise self._failure(f"the answer is not JSON but {kind}") from error

    def _scores(self, answer: Any, count: int) -> list[float]:
        given = answer.get("scores", answer.get("results")) if isinstance(answer, dict) else None
        if not isinstance(given, list):
            raise self._failure("the answer has no list of `scores` or `results`")
        if len(given) != count:
            raise self._failure(f"{len(given)} scores for {count} texts")
        values: list[Any] = [one.get("score") if isinstance(one, dict) else one for one in given]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
                raise self._failure(f"a score is {value!r:.40}, not a finite number")
        return [float(value) for value in values]

    def _failure(self, reason: str) -> EngineError:
        key = os.environ.get(self.settings.api_key_env or "", "").strip()
        for secret in filter(None, (key, urlsplit(self.settings.path).query)):
            reason = reason.replace(secret, "***")
        return EngineError(f"scorer {self.name!r} failed at {self._url}: {' '.join(reason.split())[:300]}")

    @property
    def _headers(self) -> dict[str, str]:
        """With the key, which must be there by now.

        Raises:
            ConfigError: the environment variable is empty, or no key.
        """
        key = key_of(self.settings.api_key_env, f"scorer {self.name!r}")
        return {"Authorization": f"Bearer {key}"} if key else {}

    @cached_property
    def _client(self) -> Any:
        try:
            import httpx2
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[hf]'") from error
        return httpx2.AsyncClient(timeout=self.settings.timeout)

    async def load(self) -> None:
        """Check the key, without asking the server.

        Raises:
            ConfigError: the key is not there.
        """
        self._headers  # noqa: B018  # raises
        self._client  # noqa: B018

    async def close(self) -> None:
        client = self.__dict__.pop("_client", None)
        if client is not None:
            await client.aclose()


def _usage(answer: Any) -> int | None:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0 else None
