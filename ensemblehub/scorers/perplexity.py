"""`perplexity`: how natural a text is to a language model, the reference toolkit's `hf_gen`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from ensemblehub.concurrency import together
from ensemblehub.cost import UsageMeter
from ensemblehub.errors import CapabilityError, ConfigError, EngineError, did_you_mean
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Request
from ensemblehub.scorers.base import LoadingOptions, Scorer


@dataclass(frozen=True)
class PerplexityOptions(LoadingOptions):
    """Options of the perplexity scorer; either `model` or `path`.

    Attributes:
        model: name of one of the ensemble's models (`model_specs`), which then also judges.
        path: hub id or folder of a model of its own, loaded with the options below as the `hf` engine does.
        device, dtype, quantization, trust_remote_code, max_memory, prefix_cache_tokens, threads, price: those
            of the `hf` engine.
    """

    model: str | None = None
    path: str | None = None
    prefix_cache_tokens: Annotated[int, Ge(0)] = 65536


class PerplexityScorer(Scorer):
    """(mean logprob + mean confidence) / 2 over the tokens of a text, as in the reference toolkit.

    The mean logprob is −log of the perplexity (nats); the confidence is the probability of the top token.
    Only the text's own tokens count, read after the question and the answer so far; an empty text is judged
    by the answer so far.  Between −∞ and 0.5, higher for what the model would have written itself.

    Raises:
        ConfigError: neither or both of `model` and `path`, an unknown model, or one that cannot be loaded.
        CapabilityError: the model cannot score a prompt.
    """

    options: ClassVar[type] = PerplexityOptions

    def __init__(self, name: str, options: PerplexityOptions, engines: Sequence[Engine]) -> None:
        self.name = name
        if (options.model is None) == (options.path is None):
            raise ConfigError(f"scorer {name!r} needs either `model:` (one of model_specs) or `path:`")
        self._owned = options.model is None
        self._engine = _own(name, options) if options.model is None else _named(name, options.model, engines)
        if "score" not in self._engine.capabilities:
            raise CapabilityError(
                f"scorer {name!r} needs score of engine {self._engine.name!r}, which it lacks"
            )

    @property
    def model(self) -> str:
        return self._engine.model

    async def score(self, request: Request, texts: Sequence[str], meter: UsageMeter) -> list[float]:
        return await together(self._score(request, text, meter) for text in texts)

    async def _score(self, request: Request, text: str, meter: UsageMeter) -> float:
        scored = await self._engine.score(request.continued(text), meter)
        tokens = scored.after(request.prompt, len(request.prefix)) or scored.after(request.prompt)
        known = [token for token in tokens if token.logprob is not None]
        if not known:
            raise EngineError(f"scorer {self.name!r}: there is no text to judge")
        confidence = [math.exp(token.best) for token in known if token.best is not None]
        if len(confidence) < len(known):
            raise EngineError(
                f"scorer {self.name!r}: engine {self._engine.name!r} does not tell the top token's logprob"
            )
        logprobs = (token.logprob or 0.0 for token in known)
        return (statistics.fmean(logprobs) + statistics.fmean(confidence)) / 2

    async def load(self) -> None:
        if self._owned:
            await self._engine.load()

    async def close(self) -> None:
        if self._owned:
            await self._engine.close()


def _named(name: str, model: str, engines: Sequence[Engine]) -> Engine:
    for engine in engines:
        if engine.name == model:
            return engine
    raise ConfigError(f"scorer {name!r}: {did_you_mean(model, [engine.name for engine in engines], 'model')}")


def _own(name: str, options: PerplexityOptions) -> Engine:
    from ensemblehub.generators.hf.engine import HFEngine

    return HFEngine(name, options.hf())
