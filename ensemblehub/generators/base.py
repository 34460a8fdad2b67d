"""The interface between strategies and models.

An engine knows its model, its tokenizer and its caches.  It knows no strategy, and strategies know no
KV cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ensemblehub.cost import UsageLedger, UsageMeter
from ensemblehub.errors import CapabilityError, ContextOverflowError
from ensemblehub.schema import Capability, ModelInfo, Piece, Request, Scored


@dataclass(frozen=True)
class Vocabulary:
    """The texts of a decoder's token ids.

    Attributes:
        tokens: the bytes of each id (empty for ids that stand for no text).
        special: ids that are control tokens, not text; `end` those that end an answer.
        fingerprint: equal for two engines exactly when their ids mean the same.
        names: how control tokens are written out.
    """

    tokens: tuple[bytes, ...]
    special: frozenset[int]
    end: frozenset[int]
    fingerprint: str
    names: Mapping[int, str] = field(default_factory=dict, repr=False, compare=False)

    def shown(self, index: int) -> str:
        """A token for display: its text, with U+FFFD for incomplete characters, or a control token's name."""
        return self.names.get(index) or self.tokens[index].decode(errors="replace")

    def part(self, index: int) -> bytes | None:
        """The bytes of a token that is not valid UTF-8 by itself; None otherwise."""
        try:
            self.tokens[index].decode()
        except UnicodeDecodeError:
            return self.tokens[index]
        return None


class Tokenizer(ABC):
    """A model's tokenizer, for callers that send token ids."""

    @abstractmethod
    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a raw prompt; `special` adds the tokenizer's special tokens around it."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, including special tokens."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for two tokenizers that give the same ids for every text."""

    @property
    @abstractmethod
    def controls(self) -> frozenset[int]:
        """Ids that are control tokens, not text."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The contents of its `tokenizer_config.json`: `eos_token`, `bos_token`, `chat_template`, ..."""


@dataclass(frozen=True)
class Distribution:
    """The next-token distribution: `logprobs`, a float32 vector of shape (vocabulary,), in nats."""

    logprobs: Any


class Decoder(ABC):
    """A sequence that a token-level method advances token by token.

    Attributes:
        given: number of appended ids that belong to the prompt; they are recorded as prompt tokens.
    """

    vocabulary: Vocabulary
    given: int = 0

    @abstractmethod
    async def step(self, append: Sequence[int] = (), drop: int = 0) -> Distribution:
        """Drop the last `drop` ids, append `append`, and return the distribution of the next token.

        Raises:
            EngineError: the model failed.
            RequestError: `drop` reaches into the prompt, or the context is full.
        """

    @abstractmethod
    async def read(self, append: Sequence[int], drop: int = 0) -> list[Distribution]:
        """Like `step`, but return the distribution after each appended id, from one forward pass.

        Raises:
            EngineError, RequestError: as `step`; also if `append` is empty.
        """

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of `text` in the middle of an answer, without special tokens."""

    @abstractmethod
    def close(self) -> None:
        """Record the usage and free the sequence; closing twice is harmless."""


@dataclass(frozen=True)
class Footprint:
    """Memory of a model, in bytes: of its `weights`, and of the keys and values of one `token`."""

    weights: int
    token: int


@dataclass(frozen=True)
class DevicePlacement:
    """Where a model lies, and what it takes there beside its footprint.

    Attributes:
        device: "cpu", or a GPU as "cuda:0"; of several, the first.
        devices: number of devices over which weights, keys and values are spread.
        rows: maximum number of rows with keys and values; None takes as many as fit.
        kept: tokens whose keys and values are kept beside those of the rows.
        activations: temporaries of the largest forward pass, in bytes.
        share: share of the device's memory that the options fix; None if they do not.
    """

    device: str
    activations: int
    rows: int | None = None
    devices: int = 1
    kept: int = 0
    share: float | None = None


def activations_of(hidden: int, inner: int, vocabulary: int, size: int, tokens: int, predicted: int) -> int:
    """Memory of the largest temporaries of a forward pass, in bytes (an estimate).

    A layer at a time is computed, and of its parts the gated MLP (Shazeer, arXiv:2002.05202) is the largest:
    input and residual of width `hidden`; gate, up and their product of width `inner`.  Attention kernels that
    keep no score matrix (Dao et al., arXiv:2205.14135) take less.  Logits and their log-softmax are float32.

    Args:
        size: bytes of a number in the model's precision.
        tokens: of one pass.
        predicted: positions of a pass whose logits are computed.
    """
    return tokens * (2 * hidden + 3 * inner) * size + 8 * predicted * vocabulary


@dataclass(frozen=True)
class Finding:
    """The result of probing one ability of a model.

    Attributes:
        ability: a capability, or what every engine relies on.
        seen: whether the model has it, as declared.
        declared: whether the options count on it.
        sentence: the result, for display.
        options: YAML options to add for it.
    """

    ability: str
    seen: bool
    declared: bool
    sentence: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Engine(ABC):
    """A language model that generates text."""

    options: ClassVar[type]  # frozen dataclass of the engine's YAML options
    name: str
    info: ModelInfo
    capabilities: frozenset[Capability] = frozenset()

    @abstractmethod
    def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        """Generate the answer piece by piece; the last piece carries `finish`.

        Closing the iterator stops the model and records what it wrote.  A piece never splits a UTF-8
        character.  Pieces carry the meter's purpose.

        Raises:
            CapabilityError: the request needs a missing capability; raised before the first piece.
            ContextOverflowError: prompt and `max_tokens` do not fit (see `fitted`); as early.
            EngineError: the model failed; what it had computed is recorded.
        """

    def offers(self, request: Request) -> None:
        """Check that the engine supports the request's tools and response format.

        Raises:
            CapabilityError: it does not.
        """
        if request.extra.get("tools") and "tools" not in self.capabilities:
            raise CapabilityError(f"engine {self.name!r} calls no tools")
        if request.extra.get("response_format") and "response_format" not in self.capabilities:
            raise CapabilityError(f"engine {self.name!r} keeps to no response_format")

    def fits(self, read: int | None, written: int) -> None:
        """Check that a prompt of `read` tokens and `written` more fit the context, as far as it is known.

        Raises:
            ContextOverflowError: they do not.
        """
        if read is not None and 0 < self.info.context < read + written:
            raise ContextOverflowError.of(self.name, self.info.context, read, written)

    def fitted(self, request: Request, read: int | None) -> Request:
        """The request with `max_tokens` cut to the free context, where `max_tokens` is a default.

        Args:
            read: tokens of the rendered prompt, None where unknown.

        Raises:
            ContextOverflowError: prompt and answer do not fit the context.
        """
        sampling = request.sampling
        self.fits(read, sampling.required)
        if read is None or not self.info.context:
            return request
        max_tokens = min(sampling.max_tokens, self.info.context - read)
        return replace(request, sampling=replace(sampling, max_tokens=max_tokens))

    async def score(self, request: Request, meter: UsageMeter) -> Scored:
        """Score the rendered prompt, with `request.prefix`, in one forward pass.

        Returns:
            every token with its logprob and entropy.

        Raises:
            CapabilityError: the engine cannot score.
        """
        raise CapabilityError(f"engine {self.name!r} cannot score a prompt")

    def decoder(self, request: Request, meter: UsageMeter) -> Decoder:
        """A sequence for token-level methods.

        Raises:
            CapabilityError: the engine gives no next-token distributions.
        """
        reason = self.why_not("decode")
        raise CapabilityError(
            f"engine {self.name!r} gives no next-token distributions" + (f": {reason}" if reason else "")
        )

    def why_not(self, capability: Capability) -> str:
        """Why the engine lacks a capability that its model has; empty where there is no such reason."""
        return ""

    def count(self, request: Request) -> int | None:
        """Length of the rendered prompt in tokens, None without a tokenizer."""
        return None

    def same_prompt(self, first: Request, second: Request) -> bool:
        """Whether two requests are known to be the same prompt to the model."""
        return False

    @property
    def thinking(self) -> bool | None:
        """`enable_thinking` for chats that do not set it; None leaves the chat template's own default."""
        return None

    def shared_prompt(self, first: Request, second: Request) -> int:
        """Number of leading tokens that the prompts of two requests are known to share."""
        return 0

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer, if there is one."""
        return None

    @property
    def model(self) -> str:
        """A name of the model that is the same on every machine; trained judges store it."""
        return self.name

    @property
    def exact(self) -> bool:
        """Whether entropies are of the full distribution; otherwise `model` states how many tokens."""
        return True

    @property
    def footprint(self) -> Footprint | None:
        """Memory of the model; None if it runs elsewhere."""
        return None

    @property
    def placement(self) -> DevicePlacement | None:
        """Where the model lies; None if it runs elsewhere, or that is not known."""
        return None

    def share_memory(self, engines: Sequence[Engine]) -> None:
        """Note the engines that share this machine's memory, itself among them; more may join the list."""

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on how the model runs, one sentence each."""
        return ()

    async def probe(self, ledger: UsageLedger) -> Sequence[Finding]:
        """Probe the model's abilities, if its files do not tell them; the ledger records the usage."""
        return ()

    def describe(self) -> str:
        """Return a one-line description: model, device and settings."""
        return f"{self.name}: {self.info.parameters:,} parameters"

    async def load(self) -> None:
        """Load the weights; called before the first request, harmless to repeat."""

    def prepare_swap(self) -> None:
        """Prepare to be unloaded and loaded again by turns (`swap: true`); called before the first load.

        Raises:
            CapabilityError: the engine cannot be unloaded.
        """
        raise CapabilityError(f"engine {self.name!r} has no model that could be unloaded: leave out `swap`")

    async def unload(self) -> None:
        """Free the memory of the model until the next `load`; open streams go on after it.

        Raises:
            CapabilityError: the engine cannot be unloaded.
        """
        raise CapabilityError(f"engine {self.name!r} has no model that could be unloaded")

    async def close(self) -> None:
        """Free the model."""
