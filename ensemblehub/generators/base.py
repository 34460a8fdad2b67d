"""The one narrow seam between strategies and models.

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
    """What a decoder's token ids mean.

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
        """A token for a person: its text, U+FFFD for bytes that are no character alone, or a control token's name."""
        return self.names.get(index) or self.tokens[index].decode(errors="replace")

    def part(self, index: int) -> bytes | None:
        """The bytes of a token that are no text by themselves; None where they are."""
        try:
            self.tokens[index].decode()
        except UnicodeDecodeError:
            return self.tokens[index]
        return None


class Tokenizer(ABC):
    """A model's tokenizer, for those who talk to the model in its own token ids."""

    @abstractmethod
    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a raw prompt; with `special`, those that the model puts around a text are added."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens written out."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for two tokenizers that cut every text alike."""

    @property
    @abstractmethod
    def controls(self) -> frozenset[int]:
        """Ids that are control tokens, not text."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What its `tokenizer_config.json` would say: `eos_token`, `bos_token`, `chat_template`, ..."""


@dataclass(frozen=True)
class Distribution:
    """The next-token distribution: `logprobs`, a float32 vector of shape (vocabulary,), in nats."""

    logprobs: Any


class Decoder(ABC):
    """One row that a token-level method steps by hand.

    Attributes:
        given: how many of the appended ids belong to the prompt; they are billed as read, not as written.
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
            EngineError, RequestError: as `step`; nothing to append is a `RequestError`.
        """

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of `text` in the middle of an answer: no special tokens, none added."""

    @abstractmethod
    def close(self) -> None:
        """Bill the row and free it; closing twice is harmless."""


@dataclass(frozen=True)
class Footprint:
    """Memory that a model takes where it runs, in bytes.

    Attributes:
        weights: of its parameters.
        token: of the keys and values of one token.
    """

    weights: int
    token: int


@dataclass(frozen=True)
class Finding:
    """What was seen of one ability of a model by asking it.

    Attributes:
        ability: what was looked for: a capability, or what every engine relies on.
        seen: whether it is there, as declared.
        declared: whether the options count on it.
        sentence: what was seen, for a person.
        options: YAML options that say so, where they do not yet.
    """

    ability: str
    seen: bool
    declared: bool
    sentence: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Engine(ABC):
    """A language model that can be asked for text."""

    options: ClassVar[type]  # frozen dataclass of the engine's own YAML options
    name: str
    info: ModelInfo
    capabilities: frozenset[Capability] = frozenset()

    @abstractmethod
    def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        """Write the answer piece by piece; the last piece carries `finish`.

        Closing the iterator stops the model and bills what it wrote.  A piece never splits a UTF-8
        character.  Pieces carry the meter's purpose.

        Raises:
            CapabilityError: the request asks for what the engine cannot do; raised before the first piece, as is
            ContextOverflowError: prompt and `max_tokens` do not fit (see `fitted`).
            EngineError: the model failed; what it had computed is billed.
        """

    def offers(self, request: Request) -> None:
        """Check that it can do what the request asks for besides text.

        Raises:
            CapabilityError: it calls no tools, or keeps to no format.
        """
        if request.extra.get("tools") and "tools" not in self.capabilities:
            raise CapabilityError(f"engine {self.name!r} calls no tools")
        if request.extra.get("response_format") and "response_format" not in self.capabilities:
            raise CapabilityError(f"engine {self.name!r} keeps to no response_format")

    def fits(self, read: int | None, written: int) -> None:
        """Check that a prompt of `read` tokens and `written` more fit the context; what is not known fits.

        Raises:
            ContextOverflowError: they do not.
        """
        if read is not None and 0 < self.info.context < read + written:
            raise ContextOverflowError.of(self.name, self.info.context, read, written)

    def fitted(self, request: Request, read: int | None) -> Request:
        """The request with a `max_tokens` for which there is room; a default is cut to the room there is.

        Args:
            read: tokens of the rendered prompt, None where they are not known.

        Raises:
            ContextOverflowError: prompt and answer do not fit the context.
        """
        sampling = request.sampling
        self.fits(read, sampling.required)
        if read is None or not self.info.context:
            return request
        room = min(sampling.max_tokens, self.info.context - read)
        return replace(request, sampling=replace(sampling, max_tokens=room))

    async def score(self, request: Request, meter: UsageMeter) -> Scored:
        """Read the rendered prompt (with `request.prefix`) in one forward pass and return every token's
        logprob and entropy; nothing is written.

        Raises:
            CapabilityError: the engine cannot score.
        """
        raise CapabilityError(f"engine {self.name!r} cannot score a prompt")

    def decoder(self, request: Request, meter: UsageMeter) -> Decoder:
        """A row for token-level methods.

        Raises:
            CapabilityError: the engine gives no next-token distributions.
        """
        raise CapabilityError(f"engine {self.name!r} gives no next-token distributions")

    def count(self, request: Request) -> int | None:
        """Length of the rendered prompt in tokens, None where the tokenizer is not at hand."""
        return None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer; None where none is at hand."""
        return None

    @property
    def model(self) -> str:
        """Which model this is, said the same way on every machine; what is trained for it names it so."""
        return self.name

    @property
    def exact(self) -> bool:
        """Whether the entropies of what it reads are of the full distribution; they are no others than `model` says."""
        return True

    @property
    def footprint(self) -> Footprint | None:
        """What it takes in memory; None where it runs elsewhere or is no model."""
        return None

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know of how it runs, a sentence each."""
        return ()

    async def probe(self, ledger: UsageLedger) -> Sequence[Finding]:
        """Ask the model what it can do, where that is not known from its files; the bill goes to the ledger."""
        return ()

    def describe(self) -> str:
        """One line for a person: which model, where and how it runs."""
        return f"{self.name}: {self.info.parameters:,} parameters"

    async def load(self) -> None:
        """Make ready (load weights); called once before the first request and harmless to repeat."""

    async def close(self) -> None:
        """Free the model."""
