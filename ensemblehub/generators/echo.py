"""`echo`: a model-free engine that plays scripted text, logprobs and delays.

It ships in the product: tests, documentation and server checks run on it.  Tokens are words with the
white space before them.  The reply is the first of `replies` whose key is in the prompt ("" matches any
prompt); it is the whole answer, so a request that continues a prefix of it gets the rest.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from annotated_types import Ge

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import EngineError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.generators.text.stops import StoppedBy
from ensemblehub.schema import (
    Alternative,
    Capability,
    Chat,
    Finish,
    ModelInfo,
    Piece,
    Price,
    Request,
    Scored,
    ScoredToken,
    Text,
    Token,
)

_WORD = re.compile(r"\s*\S+|\s+")


@dataclass(frozen=True)
class EchoOptions:
    """Options of the echo engine.

    Attributes:
        replies: answer by a string in the prompt; "" matches any prompt.
        delay: seconds per token.
        logprob, entropy: of every token, in nats.
        best: logprob of the most probable token of a prompt's positions; by default that of the token itself.
        confident: strings; logprob and entropy of a prompt that contains one, and of its reply, are near 0.
        fail_after: raise an `EngineError` after this many tokens (for tests of failure handling).
        lookahead: tokens written beyond those that were read, as by a remote engine.
    """

    replies: Mapping[str, str] = field(default_factory=lambda: {"": "ok"})
    delay: Annotated[float, Ge(0)] = 0.0
    logprob: float = -1.0
    entropy: float = 1.0
    best: float | None = None
    confident: tuple[str, ...] = ()
    fail_after: Annotated[int, Ge(0)] | None = None
    lookahead: Annotated[int, Ge(0)] = 0
    parameters: Annotated[int, Ge(0)] = 1_000_000
    context: Annotated[int, Ge(0)] = 0
    price: Price | None = None


class EchoEngine(Engine):
    """Plays a script."""

    options: ClassVar[type] = EchoOptions
    capabilities: frozenset[Capability] = frozenset({"prefix", "logprobs", "score"})

    def __init__(self, name: str, options: EchoOptions) -> None:
        self.name = name
        self.script = options
        self.info = ModelInfo(options.parameters, options.parameters, 0.0, options.context, 0, options.price)
        self.written = 0  # tokens written since the engine was made, to prove that a closed stream stops

    async def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        self.offers(request)
        rendered = self._rendered(request)
        prompt, (logprob, entropy) = _words(rendered), self._certainty(rendered)
        reply, finish = self._reply(self.fitted(request, len(prompt)))
        delivered = written = 0
        started = asyncio.get_running_loop().time()
        try:
            if request.sampling.logit_bias:
                raise RequestError(f"{self.name} plays a script and takes no logit_bias")
            for index, word in enumerate(reply):
                if index == self.script.fail_after:
                    raise EngineError(f"{self.name} failed after {index} tokens, as scripted", self.name)
                await asyncio.sleep(self.script.delay)
                self.written += 1
                written = min(index + 1 + self.script.lookahead, len(reply))
                top = (Alternative(word, logprob),) if request.sampling.top_logprobs else ()
                token = Token(word, None, logprob, entropy, top)
                last = index + 1 == len(reply)
                delivered = index + 1
                yield Piece(word, self.name, meter.purpose, (token,), finish if last else None)
            if not reply:
                yield Piece("", self.name, meter.purpose, (), finish)
        finally:
            seconds = asyncio.get_running_loop().time() - started
            meter.record(
                self.name,
                self.info,
                prompt_tokens=len(prompt),
                completion_tokens=written,
                discarded_tokens=written - delivered,
                seconds=seconds,
            )

    def _certainty(self, prompt: str) -> tuple[float, float]:
        """Logprob and entropy of the tokens of a prompt and of its reply."""
        sure = any(mark in prompt for mark in self.script.confident)
        return (-0.01, 0.01) if sure else (self.script.logprob, self.script.entropy)

    async def score(self, request: Request, meter: UsageMeter) -> Scored:
        script = self.script
        logprob, entropy = self._certainty(self._rendered(request))
        best = logprob if logprob > script.logprob or script.best is None else script.best
        top = Alternative("", best)
        tokens: list[ScoredToken] = []
        for index, text in enumerate(self._messages(request)):
            for match in _WORD.finditer(text):
                word = match.group()
                start = match.start()
                end = match.end()
                if not tokens:  # nothing predicts the first
                    tokens.append(ScoredToken(word, None, None, None, index, start, end))
                    continue
                shown = replace(top, text=word) if best == logprob else top
                tokens.append(ScoredToken(word, None, logprob, entropy, index, start, end, best, (shown,)))
        meter.record(self.name, self.info, prompt_tokens=len(tokens))
        return Scored(tuple(tokens))

    def count(self, request: Request) -> int | None:
        return len(_words(self._rendered(request)))

    def _messages(self, request: Request) -> list[str]:
        prompt = request.prompt
        texts = [message.content for message in prompt.messages] if isinstance(prompt, Chat) else []
        if isinstance(prompt, Text):
            texts = [prompt.text]
        return [*texts, request.prefix] if request.prefix else texts

    def _rendered(self, request: Request) -> str:
        return "\n".join(self._messages(request))

    def _reply(self, request: Request) -> tuple[list[str], Finish]:
        asked = self._rendered(Request(request.prompt))
        text = next((reply for key, reply in self.script.replies.items() if key in asked), "")
        text = text.removeprefix(request.prefix)
        ends = [(text.find(mark), mark) for mark in request.sampling.stop if mark in text]
        finish: Finish = StoppedBy.finish(min(ends)[1]) if ends else "stop"
        words = _words(text[: min(ends)[0]] if ends else text)
        limit = request.sampling.max_tokens
        return words[:limit], "length" if len(words) > limit else finish


def _words(text: str) -> list[str]:
    return _WORD.findall(text)
