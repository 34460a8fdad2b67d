"""`api`: a scorer behind HTTP; LLaMA-Factory's `/v1/score/evaluation` is one (`form: strings`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import ConfigError, EngineError, MissingExtraError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.generators.openai.errors import one_line
from ensemblehub.generators.openai.patience import Patience
from ensemblehub.generators.openai.usage import APIUsage
from ensemblehub.schema import Chat, Message, ModelInfo, Price, Request, TokenIds
from ensemblehub.scorers.base import Scorer

if TYPE_CHECKING:
    from ensemblehub.generators.openai.endpoint import Endpoint


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
        timeout: seconds to wait for a connection, for the start of an answer, and for the rest of it.
        tries: how often it is asked at most; again only after a failed connection, a timeout, HTTP 429 or 5xx.
        backoff: seconds before the second try at most, doubled for each further one; a random part of it is waited,
            or the server's `Retry-After` where that is longer.
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
            raise ConfigError(
                "timeout must be above 0, tries at least 1, backoff and longest_wait at least 0"
            )


class APIScorer(Scorer):
    """Scores from `{"scores": [...]}` or `{"results": [...]}`, one finite number per text in their order.

    A result may be a number or an object with a `score`.  The scale is the server's.  A failure, and any other
    answer, is an `EngineError` that names the URL; keys are in no message.
    """

    options: ClassVar[type] = APIOptions

    def __init__(self, name: str, options: APIOptions, engines: Sequence[Engine] = ()) -> None:
        self.name, self.settings = name, options
        self.info = ModelInfo(price=options.price)
        self._url, _, self._query = options.path.partition("?")  # a query may hold a secret

    @property
    def model(self) -> str:
        return self.settings.model or self._url

    async def score(self, request: Request, texts: Sequence[str], meter: UsageMeter) -> list[float]:
        body = self.body(request, texts)
        started, read = time.perf_counter(), None
        try:
            answer = await self._endpoint.fetch(f"?{self._query}" if self._query else "", body)
            usage = APIUsage.of(answer)
            read = usage.read if usage else None
            return self._scores(answer, len(texts))
        finally:
            seconds = time.perf_counter() - started
            meter.record(
                self.name, self.info, prompt_tokens=read or 0, seconds=seconds, estimated=read is None
            )

    def body(self, request: Request, texts: Sequence[str]) -> dict[str, Any]:
        """What is posted.

        Raises:
            RequestError: the question is given in another model's token ids.
        """
        if isinstance(request.prompt, TokenIds):
            raise RequestError(f"scorer {self.name!r} cannot read the token ids of another model")
        prompt = request.prompt
        asked = prompt.messages if isinstance(prompt, Chat) else (Message("user", prompt.text),)
        question, replies = (
            "\n\n".join(message.content for message in asked),
            [request.prefix + text for text in texts],
        )
        named = {} if self.settings.model is None else {"model": self.settings.model}
        if self.settings.form == "completions":
            return named | {"prompt": question, "completions": replies}
        if self.settings.form == "strings":
            return named | {"messages": [f"{question}\n{reply}" for reply in replies]}
        turns = [{"role": message.role, "content": message.content} for message in asked]
        return named | {"messages": [[*turns, {"role": "assistant", "content": reply}] for reply in replies]}

    def _scores(self, answer: Mapping[str, Any], count: int) -> list[float]:
        given = answer.get("scores", answer.get("results"))
        if not isinstance(given, list):
            raise self._failure("the answer has no list of `scores` or `results`")
        if len(given) != count:
            raise self._failure(f"{len(given)} scores for {count} texts")
        values: list[Any] = [one.get("score") if isinstance(one, dict) else one for one in given]
        for value in values:
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not abs(value) <= sys.float_info.max
            ):
                raise self._failure(f"a score is {value!r:.40}, not a finite number")
        return [float(value) for value in values]

    def _failure(self, reason: str) -> EngineError:
        return EngineError(f"scorer {self.name!r} failed at {self._url}: {one_line(reason)}")

    @cached_property
    def _endpoint(self) -> Endpoint:
        try:
            from ensemblehub.generators.openai.endpoint import Endpoint, key_of
        except MissingExtraError as error:
            raise MissingExtraError(str(error).replace("[openai]", "[hf]")) from error
        settings, whose = self.settings, f"scorer {self.name!r}"
        waits = settings.tries * 3 * settings.timeout + (settings.tries - 1) * settings.longest_wait
        patience = Patience(
            connect=settings.timeout,
            first_token=settings.timeout,
            total=waits,
            tries=settings.tries,
            backoff=settings.backoff,
            longest_wait=settings.longest_wait,
        )
        return Endpoint(whose, self._url, key_of(settings.api_key_env, whose), patience, secret=self._query)

    async def load(self) -> None:
        """Check the key, without asking the server.

        Raises:
            ConfigError: the key is not there.
        """
        self._endpoint  # noqa: B018  # raises

    async def close(self) -> None:
        endpoint = self.__dict__.pop("_endpoint", None)
        if endpoint is not None:
            await endpoint.close()
