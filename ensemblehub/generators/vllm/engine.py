"""The vLLM engine: a model in vLLM's asynchronous engine, in this process.

vLLM batches and keeps prefixes warm by itself.  It cannot pause a request, so it writes ahead of its reader: a mentor
goes on while the intern reads, and what nobody read is billed as discarded.  Text becomes token ids and ids become
text here, not there, so that both equal the hf engine's.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import (
    CapabilityError,
    ConfigError,
    EngineError,
    MissingExtraError,
    RequestError,
    one_line,
)
from ensemblehub.generators.base import Footprint
from ensemblehub.generators.entropies import bounded, entropy_of
from ensemblehub.schema import Capability, Piece, Price, Request, Scored

try:
    import transformers

    from ensemblehub.generators.batching.prefix_cache import Readings
    from ensemblehub.generators.hf import loading as hf_loading
    from ensemblehub.generators.hf.engine import HFEngine, _scored
    from ensemblehub.generators.vllm.in_flight import Flight, Host, WriteFlight
    from ensemblehub.generators.vllm.structure import Structure, parser_of
except (ModuleNotFoundError, MissingExtraError) as error:
    missing = getattr(error, "name", None) or "torch"
    raise MissingExtraError(f"{missing} is not installed: pip install 'ensemblehub[vllm]'") from error

__all__ = ["VLLMEngine", "VLLMOptions"]

SMALL = 4096  # ids of a vocabulary up to which a reading takes the logprobs of all


@dataclass(frozen=True)
class VLLMOptions:
    """Options of the vLLM engine; those with vLLM's names are passed through.

    Attributes:
        path: hub id or folder.
        dtype: "auto" is the checkpoint's own, and 16 bits for a float32 one.
        max_model_len: longest prompt and answer together, in tokens; None is the model's own.
        tensor_parallel_size, pipeline_parallel_size: over how many GPUs each layer, and the layers, are spread.
        gpu_memory_utilization: share of a GPU's memory that vLLM takes; two engines on one GPU share it.
        block_size: tokens of a block of the KV cache; only whole blocks are found again.  None is vLLM's own.
        enforce_eager: do not compile the model.
        seed: of requests that have none, at vLLM's choice.
        enable_thinking: the chat template's, for chats that do not say themselves.
        trust_remote_code: run Python code that comes with the model.
        tool_parser: vLLM's name for how the model writes tool calls (`hermes` for Qwen, `llama3_json`, ...); without
            one it is offered no tools.
        entropy_top_k: from how many of the likeliest tokens a reading takes its entropies where the vocabulary has
            more than 4096 ids; the others count as one token, so that the entropy is a lower bound.
        extra: further arguments of vLLM's `AsyncEngineArgs`.
        price: what a call is billed; None is free.
    """

    path: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    block_size: int | None = None
    enforce_eager: bool = False
    seed: int = 0
    enable_thinking: bool | None = None
    trust_remote_code: bool = False
    tool_parser: str | None = None
    entropy_top_k: int = 64
    extra: Mapping[str, Any] = field(default_factory=dict)
    price: Price | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.path.expanduser(self.path))
        counts = (self.tensor_parallel_size, self.pipeline_parallel_size, self.entropy_top_k)
        if min(*counts, *(one for one in (self.max_model_len, self.block_size) if one is not None)) < 1:
            raise ConfigError(
                "max_model_len, block_size, entropy_top_k and the parallel sizes must be at least 1"
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization is a share above 0, not {self.gpu_memory_utilization}")

    @property
    def arguments(self) -> dict[str, Any]:
        """What vLLM's engine is made with."""
        named = (
            "dtype",
            "max_model_len",
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "gpu_memory_utilization",
            "block_size",
            "enforce_eager",
            "seed",
            "trust_remote_code",
        )
        given = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        ours = {"enable_prefix_caching": True, "max_logprobs": -1}
        return {"model": self.path, **given, **ours, "disable_log_stats": True, **self.extra}


class VLLMEngine(HFEngine):
    """A model in vLLM: continuous batching, automatic prefix caching, tensor and pipeline parallelism.

    The card is there at once, from the model's configuration; vLLM is imported and started when first needed.

    Raises:
        ConfigError: the model's configuration cannot be read.
        MissingExtraError: vLLM is not installed.
    """

    options: ClassVar[type] = VLLMOptions
    capabilities: frozenset[Capability] = frozenset({"prefix", "logprobs", "score", "response_format"})
    settings: VLLMOptions  # type: ignore[assignment]  # the fields that the hf engine's methods read are the same

    def __init__(self, name: str, options: VLLMOptions) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise MissingExtraError("vllm is not installed: pip install 'ensemblehub[vllm]'")
        self.name, self.settings = name, options
        self.capabilities = VLLMEngine.capabilities | ({"tools"} if options.tool_parser else set())
        self._config = hf_loading.pretrained(transformers.AutoConfig, self._place)
        info = hf_loading.info_of(self._place, self._config)
        self.info = replace(info, context=min(filter(None, (info.context, options.max_model_len)), default=0))
        self._host: Host | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def exact(self) -> bool:
        """Whether a reading's entropies are of the full distribution."""
        return self.info.vocabulary <= SMALL

    @cached_property
    def model(self) -> str:
        """As the hf engine's; with how many tokens entropies are taken from, where they are not exact."""
        name = hf_loading.identity(self._place)
        return name if self.exact else bounded(name, self.settings.entropy_top_k)

    @property
    def footprint(self) -> Footprint:
        dtype = "bfloat16" if self.settings.dtype == "auto" else self.settings.dtype
        return hf_loading.footprint_of(replace(self._place, dtype=dtype), self._config, self.info)

    def describe(self) -> str:
        """One line: where and how the model runs."""
        parts = self.settings.tensor_parallel_size * self.settings.pipeline_parallel_size
        spread = f" on {parts} GPUs" if parts > 1 else ""
        return f"{self.name}: {self.settings.path} in vLLM{spread}, {self.info.parameters:,} parameters"

    async def load(self) -> None:
        """Start vLLM on the engine's own thread.

        Raises:
            ConfigError: it cannot be started, or has no such tool parser.
            EngineError: the engine was closed.
        """
        host = self._started()
        await asyncio.to_thread(getattr, self, "_parser")
        await asyncio.to_thread(getattr, self, "vocabulary")  # computed once and kept
        await asyncio.shield(asyncio.wrap_future(host.loaded))

    async def close(self) -> None:
        """Stop vLLM and free the model; requests still running fail."""
        with self._lock:
            host, self._host, self._closed = self._host, None, True
        if host is not None:
            await asyncio.to_thread(host.stop)

    async def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        request, ids, end = await self._asked(request)
        structure, params = self._structure(request, ids, end), self._params(request, end)
        if structure is not None:
            params.structured_outputs = structure.constraint
        flight = WriteFlight(self._started(), ids, params, request.sampling, end, self.vocabulary)
        try:
            while True:
                tokens, finish = await flight.take()
                text = "".join(token.text for token in tokens)
                piece = Piece(text, self.name, meter.purpose, tokens, finish)
                yield piece if structure is None else structure.piece(piece)
                if finish is not None:
                    break
        finally:
            await self._land(flight, meter)

    async def score(self, request: Request, meter: UsageMeter) -> Scored:
        """Read the rendered prompt; vLLM writes one token after it, which is billed as discarded.

        For logprobs of a prompt vLLM computes it all, also what its prefix cache holds; what it computed stays
        there for the answer.
        """
        self._fitting(request, 1)
        rendered = self.render(request)
        await self.load()
        from vllm import SamplingParams

        likeliest = -1 if self.exact else self.settings.entropy_top_k
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=likeliest, flat_logprobs=True, detokenize=False
        )
        flight = Flight(self._started(), rendered.ids, params)
        try:
            await flight.landed()
        finally:
            await self._land(flight, meter)
        return _scored(rendered, _readings(flight.read, self.exact), self.vocabulary)

    def decoder(self, request: Request, meter: UsageMeter) -> NoReturn:
        raise CapabilityError(f"engine {self.name!r} gives no next-token distributions")

    async def _land(self, flight: Flight, meter: UsageMeter) -> None:
        """Stop the request and bill it; a prompt of which vLLM has said nothing yet counts as read: an estimate."""
        try:
            await flight.leave()
        finally:
            if not flight.refused:
                meter.record(
                    self.name,
                    self.info,
                    prompt_tokens=len(flight.ids),
                    cached_tokens=flight.cached,
                    completion_tokens=flight.written,
                    discarded_tokens=flight.written - flight.taken,
                    seconds=flight.seconds,
                    estimated=not flight.written,
                    ids=flight.ids,
                )

    def _params(self, request: Request, end: frozenset[int]) -> Any:
        """vLLM's words for the request.  It ends at our ids only; stop strings are looked for here."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked = request.sampling
        same = ("max_tokens", "min_tokens", "temperature", "top_k", "min_p", "seed")
        penalties = ("presence_penalty", "frequency_penalty", "repetition_penalty")
        try:
            return SamplingParams(
                **{name: getattr(asked, name) for name in (*same, *penalties)},
                top_p=max(asked.top_p, 1e-6),
                logit_bias=dict(asked.logit_bias) or None,
                logprobs=asked.top_logprobs,
                stop_token_ids=sorted(end),
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
        except Exception as error:  # vLLM's own kinds, which change with its versions
            raise RequestError(f"{self.name}: {one_line(error)}") from error

    def _structure(self, request: Request, ids: Sequence[int], end: frozenset[int]) -> Structure | None:
        """What the request's `tools` and `response_format` ask for."""
        if not request.extra:
            return None
        names = {index: name for index, name in self.vocabulary.names.items() if index not in end}
        return Structure(self.name, request, ids, self._parser, self._renderer.tokenizer, names)

    @cached_property
    def _parser(self) -> Any:
        named = self.settings.tool_parser
        return parser_of(self.name, named, self._renderer.tokenizer) if named else None

    @property
    def _place(self) -> hf_loading.HFOptions:
        options = self.settings
        return hf_loading.HFOptions(
            options.path, device="cpu", trust_remote_code=options.trust_remote_code, price=options.price
        )

    def _started(self) -> Host:  # type: ignore[override]
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.name} is closed", self.name)
            if self._host is None:
                self._host = Host(self.name, self.settings.arguments)
            return self._host


def _readings(lines: Any, whole: bool) -> Readings:
    """How well each token of a prompt was predicted, from vLLM's flat logprobs.

    Each line has the token that stands there first, then the likeliest, most likely first.
    """
    readings, ids = Readings(), lines.token_ids
    values = np.asarray(lines.logprobs, np.float64)
    for start, end in list(zip(lines.start_indices, lines.end_indices, strict=True))[1:]:
        best = (int(ids[start + 1]), float(values[start + 1]))
        readings.learn(
            len(readings), [float(values[start])], [entropy_of(values[start + 1 : end], whole)], [best]
        )
    return readings
