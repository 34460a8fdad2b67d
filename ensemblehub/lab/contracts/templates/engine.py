"""An engine that answers with words of the question, drawn by lot: put your model in `_next_word`."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import CapabilityError
from ensemblehub.generators.base import Engine
from ensemblehub.generators.text.stops import StopFilter
from ensemblehub.schema import Capability, Chat, Finish, ModelInfo, Piece, Request, Text, Token


@dataclass(frozen=True)
class MyEngineOptions:
    """Options of the engine, as in YAML.

    Attributes:
        context: longest prompt and answer together, in words.
    """

    context: int = 2048


class MyEngine(Engine):
    """Answers with words of the question."""

    options: ClassVar[type] = MyEngineOptions
    capabilities: frozenset[Capability] = frozenset()  # of: prefix, logprobs, score, decode, tools, ...

    def __init__(self, name: str, options: MyEngineOptions) -> None:
        self.name = name
        self.info = ModelInfo(
            parameters=1, active=1, attention_flops=0.0, context=options.context, vocabulary=0
        )

    async def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        self.offers(request)
        if request.prefix:
            raise CapabilityError(f"engine {self.name!r} cannot continue an answer")
        words = _prompt(request).split()
        sampling = self.fitted(request, len(words)).sampling
        draw = random.Random(sampling.seed if sampling.temperature else 0)
        stops = StopFilter[Token](sampling.stop)
        written = delivered = 0
        finish: Finish | None = None
        try:
            while finish is None:
                word = self._next_word(words, draw)
                written += 1
                tokens = stops.push(Token(word))
                ended = written >= 20 and not sampling.ignore_eos
                finish = "stop" if stops.stopped or ended else None
                if finish is None and written >= sampling.max_tokens:
                    finish = "length"
                if finish is not None:
                    tokens += stops.flush()
                delivered += len(tokens)
                text = "".join(token.text for token in tokens)
                yield Piece(text, self.name, meter.purpose, tuple(tokens), finish)
        finally:  # also when the stream is closed or fails
            lost = written - delivered
            meter.record(
                self.name,
                self.info,
                prompt_tokens=len(words),
                completion_tokens=written,
                discarded_tokens=0 if finish else lost,
            )

    def _next_word(self, words: list[str], draw: random.Random) -> str:
        return " " + draw.choice(words)


def _prompt(request: Request) -> str:
    if isinstance(request.prompt, Chat):
        return " ".join(message.content for message in request.prompt.messages)
    return request.prompt.text if isinstance(request.prompt, Text) else ""
