"""`reward_model`: process and outcome reward models run by transformers, the reference toolkit's `hf_rm`.

Lightman et al., "Let's Verify Step by Step", ICLR 2024 (reduction by product and minimum); Zhang et al., "The
Lessons of Developing Process Reward Models in Mathematical Reasoning", Findings of ACL 2025 (the step token
and how it is read, as on the model card of Qwen2.5-Math-PRM-7B).
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import (
    ConfigError,
    ContextOverflowError,
    EngineError,
    EnsembleHubError,
    MissingExtraError,
    RequestError,
    one_line,
)
from ensemblehub.generators.base import Engine
from ensemblehub.generators.text.rendering import Renderer
from ensemblehub.schema import Chat, Message, Request, TokenIds
from ensemblehub.scorers.base import LoadingOptions, Scorer

try:
    import torch
    import transformers
    from torch.nn.utils.rnn import pad_sequence

    from ensemblehub.generators.hf.loading import load_network
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[hf]'") from error

T = TypeVar("T")
Kind = Literal["process", "outcome"]
MarkedRow = tuple[tuple[int, ...], list[int]]  # token ids, and the positions of step tokens
Reduction = Literal["mean", "min", "product", "last"]
REDUCE: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda steps: sum(steps) / len(steps),
    "min": min,
    "product": math.prod,
    "last": lambda steps: steps[-1],
}


@dataclass(frozen=True)
class RewardModelOptions(LoadingOptions):
    r"""Options of the reward model scorer.

    Attributes:
        path: hub id or folder; `builtin:prm` is the one that ships.
        kind: `process` judges every step, `outcome` the whole reply.  Sequence classification is always an
            outcome model and token classification a process model; custom code is a process model unless this
            says otherwise.
        reduce: how the steps' probabilities become one score.
        step_token: special token of a process model, put after each step.
        step_separator: regular expression that splits the reply into steps, without capturing groups; what it
            matches is left out.  Qwen's models split at blank lines.
        system: system prompt in the place of the request's own; None keeps that.
        sigmoid: apply the sigmoid to an outcome model's single logit.
        batch_size: maximum number of texts in one forward pass.
        max_length: maximum number of tokens of question and reply; the model's own context by default.
        device, dtype, quantization, trust_remote_code, max_memory, attn_implementation, threads, price: those
            of the `hf` engine.
    """

    path: str
    kind: Literal["auto", "process", "outcome"] = "auto"
    reduce: Reduction = "mean"
    step_token: str = "<extra_0>"
    step_separator: str = "\n\n"
    system: str | None = None
    sigmoid: bool = False
    batch_size: Annotated[int, Ge(1)] = 8
    max_length: Annotated[int, Ge(1)] | None = None
    attn_implementation: str = "sdpa"

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.step_separator).groups
        except re.error as error:
            raise ConfigError(f"step_separator {self.step_separator!r}: {error}") from error
        if groups or not self.step_separator:
            raise ConfigError(
                f"step_separator {self.step_separator!r} must match something and capture no group"
            )


class RewardModelScorer(Scorer):
    """A process model's mean probability (0..1) that a step is right, or an outcome model's reward.

    The reference toolkit multiplies a process model's mean by 10.  Models are `...ForTokenClassification`
    with two labels, custom code with logits of shape (texts, length, 2) such as Qwen2.5-Math-PRM, and
    `...ForSequenceClassification` with two labels (the probability of the second) or one (its logit).  Label
    1 is the good one.  Each call reads question and reply from their beginning.

    Batches, sorted by length, run on a thread of the scorer's own.  The engines' row scheduler does not fit:
    it steps rows token by token, while a reward model needs a single forward pass and keeps no cache.

    Raises:
        ConfigError: the model's configuration cannot be read, or is of no kind that this scorer runs.
    """

    options: ClassVar[type] = RewardModelOptions

    def __init__(self, name: str, options: RewardModelOptions, engines: Sequence[Engine] = ()) -> None:
        self.name = name
        self.settings = options
        self._loading = options.hf()
        self._config = self._loading.checkpoint.config()
        self._auto, self.kind = _kind(options, self._config)
        self.info = self._loading.checkpoint.info(self._config, options.price, self._auto)
        self._worker = ThreadPoolExecutor(1, f"scorer {name}")  # the only user of tokenizer and network

    @cached_property
    def model(self) -> str:
        return self._loading.checkpoint.identity()

    async def score(self, request: Request, texts: Sequence[str], meter: UsageMeter) -> list[float]:
        requests = [request.continued(text) for text in texts]
        rows = await self._on_thread(lambda: [self.rendered(each) for each in requests])
        order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
        scores: dict[int, float] = {}
        for start in range(0, len(order), self.settings.batch_size):
            batch = order[start : start + self.settings.batch_size]
            found = await self._batch([rows[index] for index in batch], meter)
            scores.update(zip(batch, found, strict=True))
        return [scores[index] for index in range(len(texts))]

    async def _batch(self, rows: Sequence[MarkedRow], meter: UsageMeter) -> list[float]:
        """The scores of rows, from one forward pass; it is recorded also for a caller who left meanwhile."""
        seconds: list[float] = []

        def compute() -> list[float]:
            started = time.perf_counter()
            logits = self._forward([ids for ids, _ in rows])
            seconds.append(time.perf_counter() - started)
            return [self._reduced(given, marks) for given, (_, marks) in zip(logits, rows, strict=True)]

        try:
            return await self._on_thread(compute)
        finally:
            for ids, _ in rows if seconds else ():
                meter.record(self.name, self.info, prompt_tokens=len(ids), seconds=seconds[0] / len(rows))

    async def _on_thread(self, work: Callable[[], T]) -> T:
        """The result of `work` on the scorer's thread; a caller who is cancelled waits for its end.

        Raises:
            EngineError: the scorer is closed, or the model failed.
        """
        try:
            running = asyncio.get_running_loop().run_in_executor(self._worker, work)
        except RuntimeError as error:
            raise EngineError(f"scorer {self.name!r} is closed") from error
        try:
            return await asyncio.shield(running)
        except EnsembleHubError:
            raise
        except Exception as error:  # whatever a model raises, torch's errors and custom code's
            raise EngineError(f"scorer {self.name!r} failed: {one_line(error)}") from error
        finally:
            await asyncio.wait([running])

    def rendered(self, request: Request) -> MarkedRow:
        """Token ids of question and reply (`request.prefix`), and the positions of the step tokens.

        Raises:
            ContextOverflowError: they exceed `max_length`.
            RequestError: the question consists of another model's token ids, or the template refuses it.
        """
        steps = [request.prefix]
        mark = ""
        if self.kind == "process":
            parts = re.split(self.settings.step_separator, request.prefix)
            steps = [step for step in parts if step.strip()] or [""]
            mark = self.settings.step_token
        rendered = self._renderer.reply(self._chat(request), steps, mark)
        limit = self.settings.max_length or self.info.context
        if 0 < limit < len(rendered.ids):
            told = f"{len(rendered.ids)} tokens exceed the {limit} of scorer {self.name!r}"
            raise ContextOverflowError(f"{ContextOverflowError.WORDS} exceeded: {told}")
        if not mark:
            return rendered.ids, []
        token = self._renderer.tokenizer.convert_tokens_to_ids(mark)
        marks = [
            place
            for place, (index, origin) in enumerate(zip(rendered.ids, rendered.origins, strict=True))
            if index == token and origin.message is None
        ]
        if len(marks) != len(steps):
            raise RequestError(f"scorer {self.name!r}: the chat template rewrites the reply's step tokens")
        return rendered.ids, marks

    def _chat(self, request: Request) -> Chat:
        prompt = request.prompt
        if isinstance(prompt, TokenIds):
            raise RequestError(f"scorer {self.name!r} cannot read the token ids of another model")
        chat = prompt if isinstance(prompt, Chat) else Chat((Message("user", prompt.text),))
        if self.settings.system is None:
            return chat
        asked = tuple(message for message in chat.messages if message.role != "system")
        return Chat((Message("system", self.settings.system), *asked), chat.thinking)

    def _forward(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """float32 logits, (rows, length, 2) or (rows, labels); shorter rows are padded at their end."""
        padding = self._network.config.get_text_config().pad_token_id
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        device = self._network.device
        with torch.inference_mode():
            logits: torch.Tensor = self._network(input_ids=ids.to(device), attention_mask=mask.to(device))[0]
        return logits.float().cpu()

    def _reduced(self, logits: torch.Tensor, marks: Sequence[int]) -> float:
        if self.kind == "process" and logits.ndim == 2 and logits.shape[-1] == 2:
            return float(REDUCE[self.settings.reduce](logits[marks].softmax(-1)[:, 1].tolist()))
        if self.kind == "outcome" and logits.shape == (2,):
            return float(logits.softmax(-1)[1])
        if self.kind == "outcome" and logits.shape == (1,):
            return float(logits.sigmoid() if self.settings.sigmoid else logits)
        raise EngineError(
            f"scorer {self.name!r}: logits of shape {tuple(logits.shape)} are not of a {self.kind} model"
        )

    @cached_property
    def _renderer(self) -> Renderer:
        tokenizer = self._loading.checkpoint.tokenizer()
        if not tokenizer.chat_template:
            raise ConfigError(f"{self.settings.path}: the reward model's tokenizer has no chat template")
        token = self.settings.step_token
        if self.kind == "process" and token not in tokenizer.get_added_vocab():
            raise ConfigError(
                f"{self.settings.path}: step_token {token!r} is no special token of its tokenizer"
            )
        return Renderer(tokenizer)

    @cached_property
    def _network(self) -> Any:
        """The model; loaded on the scorer's thread."""
        network = load_network(self._loading, self._config, self._auto).eval()
        config, tokenizer = network.config.get_text_config(), self._renderer.tokenizer
        config.use_cache = False
        known = [config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, 0]
        config.pad_token_id = next(index for index in known if index is not None)
        return network

    async def load(self) -> None:
        """Load tokenizer and weights.

        Raises:
            ConfigError: they cannot be loaded, or there is no such step token or no chat template.
        """
        await self._on_thread(lambda: (self._renderer, self._network))

    async def close(self) -> None:
        with suppress(RuntimeError):  # the thread has ended: closed before, or the interpreter shuts down
            await asyncio.get_running_loop().run_in_executor(
                self._worker, self.__dict__.pop, "_network", None
            )
        self._worker.shutdown(wait=False)


def _kind(options: RewardModelOptions, config: Any) -> tuple[Any, Kind]:
    """The class that loads the model, and what it judges."""
    auto, kind = _classes(options, config)
    if options.kind != "auto" and auto is transformers.AutoModel:
        kind = options.kind
    if options.kind not in ("auto", kind):
        raise ConfigError(f"{options.path}: {config.architectures[0]} is no {options.kind} model")
    if config.num_labels not in ((2,) if kind == "process" else (1, 2)):
        raise ConfigError(f"{options.path}: a reward model with {config.num_labels} labels cannot be read")
    return auto, kind


def _classes(options: RewardModelOptions, config: Any) -> tuple[Any, Kind]:
    architecture = next(iter(config.architectures or ()), "a model of unknown architecture")
    if architecture.endswith("ForSequenceClassification"):
        return transformers.AutoModelForSequenceClassification, "outcome"
    if architecture.endswith("ForTokenClassification"):
        return transformers.AutoModelForTokenClassification, "process"
    if "AutoModel" not in (getattr(config, "auto_map", None) or {}):
        raise ConfigError(
            f"{options.path}: {architecture} is no reward model: needed is token or sequence classification, "
            "or custom code"
        )
    if not options.trust_remote_code:
        raise ConfigError(
            f"{options.path}: {architecture} is custom code; set trust_remote_code: true to run it"
        )
    return transformers.AutoModel, "process"
