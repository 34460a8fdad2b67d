"""Cost accounting: what a model's forward passes cost, and the usage of one request.

Every engine call receives a `UsageMeter` and records what it computed.  Units: FLOPs (a multiply-add counts
as two), US dollars, seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge

Purpose = Literal["insight", "judge", "answer", "propose", "score", "select"]


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    prompt: Annotated[float, Ge(0)]
    completion: Annotated[float, Ge(0)]
    cached: Annotated[float, Ge(0)] | None = None


@dataclass(frozen=True)
class ModelInfo:
    """Properties of an engine's model, known before it is loaded.

    Attributes:
        parameters: Number of parameters; `active` those used per token (0 where unknown).
        attention_flops: FLOPs per token and attended position.
        context: Maximum length of prompt and answer together, in tokens (0 where unknown).
        vocabulary: Number of token ids (0 where unknown).
    """

    parameters: Annotated[int, Ge(0)] = 0
    active: Annotated[int, Ge(0)] = 0
    attention_flops: Annotated[float, Ge(0)] = 0.0
    context: Annotated[int, Ge(0)] = 0
    vocabulary: Annotated[int, Ge(0)] = 0
    price: Price | None = None

    @property
    def token_flops(self) -> float:
        """FLOPs of one token without attention: two per active parameter."""
        return 2.0 * self.active

    def flops(self, start: int, end: int) -> float:
        """FLOPs of the forward passes at positions `start` to `end - 1`, attention included."""
        count = max(0, end - start)
        attended = count * (start + end + 1) / 2  # the token at position i attends to i + 1 positions
        return count * self.token_flops + attended * self.attention_flops


@dataclass(frozen=True)
class Cost:
    """Tokens, compute, money and time; costs add up.

    Attributes:
        prompt_tokens: Tokens read, of which `cached_tokens` were not computed again.
        completion_tokens: Tokens generated, of which `discarded_tokens` were not used.
        estimated: Whether a provider's final figure was unavailable.
        spared_flops: Prefill FLOPs saved by what earlier requests left in a cache.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    discarded_tokens: int = 0
    prefill_flops: float = 0.0
    decode_flops: float = 0.0
    usd: float = 0.0
    seconds: float = 0.0
    calls: int = 0
    estimated: bool = False
    spared_flops: float = 0.0

    @property
    def flops(self) -> float:
        """FLOPs of prefill and decoding."""
        return self.prefill_flops + self.decode_flops

    @property
    def cold_flops(self) -> float:
        """FLOPs of the same calls with empty caches."""
        return self.flops + self.spared_flops

    def to_dict(self) -> dict[str, Any]:
        """All fields and `flops` as plain values."""
        return {**asdict(self), "flops": self.flops}

    def __add__(self, other: Cost) -> Cost:
        others = vars(other)
        total = {name: value + others[name] for name, value in vars(self).items()}
        return Cost(**{**total, "estimated": self.estimated or other.estimated})


@dataclass(frozen=True)
class UsageLine:
    """Cost of one engine for one purpose."""

    engine: str
    purpose: Purpose
    cost: Cost


@dataclass(frozen=True)
class Usage:
    """Usage of a request by engine and purpose, in order of first use."""

    lines: tuple[UsageLine, ...] = ()

    @property
    def cost(self) -> Cost:
        """The sum of all lines."""
        return sum((line.cost for line in self.lines), Cost())

    def to_dict(self) -> dict[str, Any]:
        """Total cost and lines as plain, JSON-compatible values."""
        return {
            "cost": self.cost.to_dict(),
            "lines": [
                {"engine": line.engine, "purpose": line.purpose, **line.cost.to_dict()} for line in self.lines
            ],
        }


@dataclass
class UsageLedger:
    """The engine calls of one request, with the cost of each."""

    calls: list[UsageLine] = field(default_factory=list)
    _computed: dict[str, list[Sequence[int]]] = field(default_factory=dict, repr=False)
    _before: dict[str, list[Sequence[int]]] = field(default_factory=dict, repr=False)

    def reused(
        self, engine: str, ids: Sequence[int], cached: int, prompt: int = 0, reading: bool = False
    ) -> int:
        """Number of the `cached` leading tokens that an earlier call of this request computed on the engine.

        Args:
            ids: Tokens that this call computed, read and generated but the last; remembered for later calls.
            prompt: Number of tokens read.
            reading: Whether the predictions of all tokens were returned. An earlier reading has them, and so has
                what was written behind tokens that were read so.
        """
        reused = min(cached, self.computed(engine, ids, reading))
        predicted = reading or 0 < prompt == self.computed(engine, ids[:prompt], reading=True)
        for kind in (engine, _reading(engine)) if predicted else (engine,):
            self._computed.setdefault(kind, []).append(ids)
        return reused

    def computed(self, engine: str, ids: Sequence[int], reading: bool = False) -> int:
        """Number of leading tokens that an earlier call computed on the engine.

        For a `reading` with their predictions; where these end before `ids` do, the last is computed again.
        """
        kind = _reading(engine) if reading else engine
        earlier = [*self._before.get(kind, ()), *self._computed.get(kind, ())]
        common = max((_common(ids, other) for other in earlier), default=0)
        return common if not reading or common == len(ids) else max(0, common - 1)

    def add(self, engine: str, purpose: Purpose, cost: Cost) -> None:
        """Record one call."""
        self.calls.append(UsageLine(engine, purpose, cost))

    @property
    def usage(self) -> Usage:
        """Usage by engine and purpose, in order of first use."""
        lines: dict[tuple[str, Purpose], Cost] = {}
        for call in self.calls:
            lines[call.engine, call.purpose] = lines.get((call.engine, call.purpose), Cost()) + call.cost
        return Usage(tuple(UsageLine(engine, purpose, cost) for (engine, purpose), cost in lines.items()))

    @property
    def total(self) -> Cost:
        """The sum of all calls."""
        return sum((call.cost for call in self.calls), Cost())

    def branch(self) -> UsageLedger:
        """Return a ledger for calls that run beside others; it knows what was computed before now.

        `join` records its calls here.
        """
        known = {kind: [*ids] for kind, ids in self._before.items()}
        for kind, ids in self._computed.items():
            known.setdefault(kind, []).extend(ids)
        return UsageLedger(_before=known)

    def join(self, branch: UsageLedger) -> None:
        """Record the calls of a branch that has ended."""
        self.calls.extend(branch.calls)
        for kind, ids in branch._computed.items():
            self._computed.setdefault(kind, []).extend(ids)

    def meter(self, purpose: Purpose) -> UsageMeter:
        """Return a meter for engine calls made for `purpose`."""
        return UsageMeter(self, purpose)


@dataclass(frozen=True)
class UsageMeter:
    """Records engine calls made for one purpose."""

    ledger: UsageLedger
    purpose: Purpose

    def record(
        self,
        engine: str,
        info: ModelInfo,
        *,
        prompt_tokens: int,
        cached_tokens: int = 0,
        completion_tokens: int = 0,
        discarded_tokens: int = 0,
        seconds: float = 0.0,
        usd: float | None = None,
        flops: tuple[float, float] | None = None,
        estimated: bool = False,
        ids: Sequence[int] | None = None,
        reading: bool = False,
    ) -> Cost:
        """Record one engine call; engines call it once per call, in `finally`.

        FLOPs are those of the computed positions: `cached_tokens` to `prompt_tokens - 1` for the prefill, and
        one per generated token but the last for decoding (the prefill yields the first token).

        Args:
            usd: Price that the provider states; by default computed from `info.price`.
            flops: FLOPs that the provider states, as they were and as they would be with empty caches; by
                default computed from `info`.
            ids: Tokens read and generated, to tell which cached tokens an earlier request computed; without
                them, the lengths of the calls bound their number.
            reading: Whether the predictions of all tokens were returned.
        """
        last = prompt_tokens + max(0, completion_tokens - 1)
        computed = range(last) if ids is None else ids[:last]
        reused = self.ledger.reused(engine, computed, cached_tokens, prompt_tokens, reading)
        cost = Cost(
            prompt_tokens,
            cached_tokens,
            completion_tokens,
            discarded_tokens,
            prefill_flops=info.flops(cached_tokens, prompt_tokens) if flops is None else 0.0,
            decode_flops=info.flops(prompt_tokens, last) if flops is None else flops[0],
            usd=dollars(info, prompt_tokens, cached_tokens, completion_tokens) if usd is None else usd,
            seconds=seconds,
            calls=1,
            estimated=estimated,
            spared_flops=info.flops(reused, cached_tokens) if flops is None else flops[1] - flops[0],
        )
        self.ledger.add(engine, self.purpose, cost)
        return cost


def _reading(engine: str) -> str:
    """What the readings on an engine are known by."""
    return f"{engine}: read"


def _common(tokens: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    most = min(len(tokens), len(other))
    if tokens[:most] == other[:most]:
        return most
    return bisect_left(range(1, most + 1), True, key=lambda length: tokens[:length] != other[:length])


def dollars(info: ModelInfo, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
    """Price of a call in US dollars; 0 if the model has no price."""
    if info.price is None:
        return 0.0
    cached_price = info.price.prompt if info.price.cached is None else info.price.cached
    fresh = prompt_tokens - cached_tokens
    return (
        fresh * info.price.prompt + cached_tokens * cached_price + completion_tokens * info.price.completion
    ) / 1e6
