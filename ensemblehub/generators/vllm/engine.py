"""The vLLM engine: a model in vLLM's asynchronous engine, in this process.

vLLM batches and caches prefixes by itself.  It cannot pause a request, so it writes ahead of its reader: a
mentor goes on while the intern reads, and unread tokens count as discarded.  Token ids and text are converted
here, not by vLLM, so that both equal the hf engine's.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from ensemblehub.errors import MissingExtraError, RequestError, one_line
from ensemblehub.generators.base import DevicePlacement, Engine, Footprint
from ensemblehub.generators.entropies import bounded
from ensemblehub.generators.memory import USABLE, plans_of
from ensemblehub.generators.vllm import PASSED
from ensemblehub.schema import Capability, Price, Request

try:
    from ensemblehub.generators.batching.checkpoint import ModelCheckpoint, activations_in, footprint_of
    from ensemblehub.generators.batching.local_engine import UnloadableEngine
    from ensemblehub.generators.vllm.in_flight import InFlightAnswer, InFlightReading, VLLMWorker
    from ensemblehub.generators.vllm.structure import Structure, parser_of
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[vllm]'") from error

__all__ = ["VLLMEngine", "VLLMOptions"]

GPU = "cuda:0"  # the first of those that vLLM takes
log = logging.getLogger(__name__)
SMALL = 4096  # vocabulary size up to which a reading takes the logprobs of all ids
_SAMPLING = ("max_tokens", "min_tokens", "temperature", "top_k", "min_p", "seed")
_PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")


@dataclass(frozen=True)
class VLLMOptions:
    """Options of the vLLM engine; those with vLLM's names are passed through.

    Attributes:
        path: hub id or folder.
        dtype: "auto" is the checkpoint's own, and 16 bits for a float32 one.
        max_model_len: maximum length of prompt and answer together, in tokens; None is the model's own.
        tensor_parallel_size: number of GPUs over which each layer is spread.
        pipeline_parallel_size: number of GPUs over which the layers are spread.
        gpu_memory_utilization: share of a GPU's memory that vLLM takes; None is 0.9, or the share of the
            memory plan where other models of the file are on the GPU.
        block_size: tokens of a block of the KV cache; only whole blocks are reused.  None is vLLM's own.
        enforce_eager: do not compile the model.
        seed: of requests that have none, at vLLM's choice.
        enable_thinking: passed to the chat template, for chats that do not set it themselves.
        trust_remote_code: run Python code that comes with the model.
        tool_parser: vLLM's name for how the model writes tool calls (`hermes` for Qwen, `llama3_json`, ...);
            without one it is offered no tools.
        entropy_top_k: number of top tokens from which a reading takes its entropies where the vocabulary has
            more than 4096 ids; the others count as one token, so that the entropy is a lower bound.
        extra: further arguments of vLLM's `AsyncEngineArgs`.
        price: price of a call; None is free.
    """

    path: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: Annotated[int, Ge(1)] | None = None
    tensor_parallel_size: Annotated[int, Ge(1)] = 1
    pipeline_parallel_size: Annotated[int, Ge(1)] = 1
    gpu_memory_utilization: Annotated[float, Gt(0), Le(1)] | None = None
    block_size: Annotated[int, Ge(1)] | None = None
    enforce_eager: bool = False
    seed: int = 0
    enable_thinking: bool | None = None
    trust_remote_code: bool = False
    tool_parser: str | None = None
    entropy_top_k: Annotated[int, Ge(1)] = 64
    extra: Mapping[str, Any] = field(default_factory=dict)
    price: Price | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.path.expanduser(self.path))

    @property
    def checkpoint(self) -> ModelCheckpoint:
        """Path or hub id of the model."""
        return ModelCheckpoint(self.path, self.trust_remote_code)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of vLLM's engine."""
        given = {name: getattr(self, name) for name in PASSED if getattr(self, name) is not None}
        ours = {"enable_prefix_caching": True, "max_logprobs": -1, "disable_log_stats": True}
        return {"model": self.path, **given, **ours, **self.extra}


class VLLMEngine(UnloadableEngine[VLLMWorker, InFlightAnswer, Structure]):
    """A model in vLLM: continuous batching, automatic prefix caching, tensor and pipeline parallelism.

    Its info is there at once, from the model's configuration; vLLM is imported and started when first needed.
    For logprobs of a prompt vLLM computes all of it, even what its cache holds; the answer reuses that.

    Raises:
        ConfigError: the model's configuration cannot be read.
        MissingExtraError: vLLM is not installed.
    """

    options: ClassVar[type] = VLLMOptions
    capabilities: frozenset[Capability] = frozenset({"prefix", "logprobs", "score", "response_format"})
    scored_tokens = 1  # counted as discarded

    def __init__(self, name: str, options: VLLMOptions) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise MissingExtraError("vllm is not installed: pip install 'ensemblehub[vllm]'")
        self.settings = options
        self.capabilities = VLLMEngine.capabilities | ({"tools"} if options.tool_parser else set())
        self._config = options.checkpoint.config()
        self._neighbours: Sequence[Engine] = ()
        info = options.checkpoint.info(self._config, options.price)
        context = min(filter(None, (info.context, options.max_model_len)), default=0)
        super().__init__(name, replace(info, context=context), options.enable_thinking)

    @property
    def exact(self) -> bool:
        return self.info.vocabulary <= SMALL

    @cached_property
    def model(self) -> str:
        """The name as of the `hf` engine, with the number of top tokens if entropies are not exact."""
        name = self.settings.checkpoint.identity()
        return name if self.exact else bounded(name, self.settings.entropy_top_k)

    @property
    def footprint(self) -> Footprint:
        return footprint_of(self._config, self.info, 4 if self.settings.dtype == "float32" else 2)

    @property
    def placement(self) -> DevicePlacement:
        options, extra = self.settings, self.settings.extra
        size = 4 if options.dtype == "float32" else 2
        tokens, rows = int(extra.get("max_num_batched_tokens", 8192)), int(extra.get("max_num_seqs", 256))
        return DevicePlacement(
            GPU,
            activations_in(self._config, self.info, size, tokens, rows),
            devices=options.tensor_parallel_size * options.pipeline_parallel_size,
            share=options.gpu_memory_utilization,
        )

    def share_memory(self, engines: Sequence[Engine]) -> None:
        self._neighbours = engines

    def describe(self) -> str:
        """Return a one-line description: device and settings."""
        gpus = self.settings.tensor_parallel_size * self.settings.pipeline_parallel_size
        spread = f" on {gpus} GPUs" if gpus > 1 else ""
        return f"{self.name}: {self.settings.path} in vLLM{spread}, {self.info.parameters:,} parameters"

    def prepare_swap(self) -> None:
        """Have vLLM allocate memory so that it can be freed (its sleep mode)."""
        extra = {"enable_sleep_mode": True, **self.settings.extra}
        self.settings = replace(self.settings, extra=extra)

    async def load(self) -> None:
        self._started()
        await asyncio.to_thread(getattr, self, "_parser")
        await asyncio.to_thread(getattr, self, "vocabulary")  # computed once and kept
        await super().load()

    def _tokenizer(self) -> Any:
        return self.settings.checkpoint.tokenizer()

    def _end_ids(self) -> frozenset[int]:
        return self.settings.checkpoint.end_ids(self._config, self._config.get_text_config())

    def _start(self) -> VLLMWorker:
        share = {"gpu_memory_utilization": self._planned_share()}
        return VLLMWorker(self.name, share | self.settings.arguments)

    def _planned_share(self) -> float:
        """Share of the GPU by the memory plan, 0.9 where the plan gives none."""
        if self.settings.gpu_memory_utilization is not None or len(self._neighbours) < 2:
            return USABLE
        plans = [plan for plan in plans_of(self._neighbours) if plan.device == GPU and plan.capacity]
        if not plans or len(plans[0].needs) < 2:
            return USABLE
        log.info("%s: %s of %s: %s", self.name, plans[0].shares.get(self.name), GPU, plans[0].verdict)
        return plans[0].shares.get(self.name, USABLE)

    def _write(
        self, request: Request, ids: tuple[int, ...], end: frozenset[int], structure: Structure | None
    ) -> InFlightAnswer:
        params = self._params(request, end)
        if structure is not None:
            params.structured_outputs = structure.constraint
        return InFlightAnswer(self._started(), ids, params, request.sampling, end, self.vocabulary)

    def _read(self, ids: tuple[int, ...]) -> InFlightReading:
        return InFlightReading(self._started(), ids, None if self.exact else self.settings.entropy_top_k)

    def _params(self, request: Request, end: frozenset[int]) -> Any:
        """The request's sampling for vLLM.  It ends at our ids only; stop strings are looked for here."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked = request.sampling
        try:
            return SamplingParams(
                **{name: getattr(asked, name) for name in (*_SAMPLING, *_PENALTIES)},
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

    def _structure(self, request: Request, ids: tuple[int, ...], end: frozenset[int]) -> Structure | None:
        names = {index: name for index, name in self.vocabulary.names.items() if index not in end}
        return Structure(self.name, request, ids, self._parser, self._renderer.tokenizer, names)

    @cached_property
    def _parser(self) -> Any:
        named = self.settings.tool_parser
        return parser_of(self.name, named, self._renderer.tokenizer) if named else None
