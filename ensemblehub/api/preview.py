"""`POST /v1/ensemble/preview`: who would answer, in which role and at what cost; nothing is generated.

The cost is estimated from earlier answers of the same ensemble: each is replayed with the new prompt in the
place of its own, written as long and cached as well as it was.  The interval lies between order statistics of
these, which holds the next answer with the confidence that is told where questions come in no particular order.
Without enough of them only lengths are known: what the cheapest member reads, and what all write at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from pydantic import Field

from ensemblehub.api.catalog import Served
from ensemblehub.api.job import AnswerRecord
from ensemblehub.api.replies import ReplyObject
from ensemblehub.config.sections import Budget, Generation
from ensemblehub.cost import Cost, UsageLine, dollars
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Request

_KEPT = 200  # answers of an ensemble
_ENOUGH = 5  # answers for an estimate
_CONFIDENCE = 0.95


class Range(ReplyObject):
    """An estimate and its interval; `expected` is null where no answer was seen."""

    expected: float | None
    low: float
    high: float


class CostEstimate(ReplyObject):
    """Tokens computed (read without a cache, or written), FLOPs, and dollars where a price is known."""

    tokens: Range
    flops: Range
    usd: Range | None


class PreviewMember(ReplyObject):
    """A model, and what it would do."""

    model: str
    role: str | None = Field(description="Its part in the method; null where it plays none.")
    always: bool = Field(description="Whether no selection may leave it out.")
    share: float | None = Field(description="Share of the earlier answers for which it was called.")
    prompt_tokens: int = Field(description="The prompts in its tokens; 0 where it cannot count.")
    cost: CostEstimate


class Preview(ReplyObject):
    """Who would answer, and the estimated cost."""

    object: Literal["ensemble.preview"]
    model: str
    method: str
    selection: str
    answers: int
    members: list[PreviewMember]
    cost: CostEstimate
    basis: Literal["replies", "lengths"]
    replies: int = Field(description="Earlier answers that the estimate is from.")
    confidence: float | None = Field(description="That an answer's cost lies in the interval.")
    estimated_mentor_alone_flops: list[float] | None
    estimated_saving: float | None


class PreviewedRequest(NamedTuple):
    """A request that was checked.

    Attributes:
        requests: one for each prompt.
        per_prompt: answers to each prompt.
        budget: what all may spend.
    """

    served: Served
    requests: list[Request]
    per_prompt: int
    generation: Generation
    budget: Budget = Budget()


class Seen(NamedTuple):
    """What an earlier answer cost, and the length of its prompt."""

    prompt_tokens: int
    lines: tuple[UsageLine, ...]


class Previews:
    """Estimates from the latest answers of each ensemble."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[AsyncEnsemble, deque[Seen]] = WeakKeyDictionary()

    def add(self, answer: AnswerRecord) -> None:
        """Remember what an answer cost."""
        seen = self._seen.setdefault(answer.served.ensemble, deque(maxlen=_KEPT))
        seen.append(Seen(answer.prompt_tokens, answer.ledger.usage.lines))

    def preview(self, asked: PreviewedRequest, lengths: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Describe a request.

        Args:
            lengths: lengths of its prompts by engine, in the engine's tokens.
        """
        served, requests = asked.served, asked.requests
        ensemble, aggregation = served.ensemble, served.ensemble.aggregation
        engines = _taking_part(ensemble)
        seen = self._seen.get(ensemble, ())
        known = list(seen) if len(seen) >= _ENOUGH else []
        replayed = [
            [_replayed(answer, request, read, engines) for answer in known]
            for request, read in zip(requests, lengths[served.reader.name], strict=True)
        ]
        bounds = _bounds(asked, lengths)
        role_of = {engine.name: role for role, engine in aggregation.parts(ensemble.engines).items()}
        always = ensemble.selection.min_engines(ensemble.engines) == len(ensemble.engines)
        members = [
            {
                "model": engine.name,
                "role": role_of.get(engine.name, None if role_of else "model" if served.alone else "member"),
                "always": always,
                "share": _share(engine.name, known),
                "prompt_tokens": sum(lengths[engine.name]),
                "cost": _estimate(asked, replayed, [engine], bounds),
            }
            for engine in engines
        ]
        cost = _estimate(asked, replayed, engines, bounds)
        alone = [served.estimated_alone(request) for request in requests]
        expected = [sum(values) * asked.per_prompt for values in zip(*filter(None, alone), strict=True)]
        cold = [sum(cost.cold_flops for cost in answer.values()) for each in replayed for answer in each]
        mean = asked.per_prompt * sum(cold) / len(known) if known else None
        return {
            "object": "ensemble.preview",
            "model": served.name,
            "method": served.aggregation.method,
            "selection": served.selection,
            "answers": len(requests) * asked.per_prompt,
            "members": members,
            "cost": cost,
            "basis": "replies" if known else "lengths",
            "replies": len(known),
            "confidence": 1 - 2 * _rank(len(known)) / (len(known) + 1) if known else None,
            "estimated_mentor_alone_flops": expected or None,
            "estimated_saving": 1 - mean / expected[0] if mean is not None and expected else None,
        }


def _taking_part(ensemble: AsyncEnsemble) -> list[Engine]:
    """The engines without a mentor whose highest level is no insight."""
    aggregation = ensemble.aggregation
    read = bool(aggregation.checkpoints) and aggregation.checkpoints[-1].mentor_tokens
    idle = aggregation.parts(ensemble.engines).get("mentor") if aggregation.efforts and not read else None
    return [engine for engine in ensemble.engines if engine is not idle]


def _replayed(answer: Seen, request: Request, read: int, engines: Sequence[Engine]) -> dict[str, Cost]:
    """What an earlier answer would have cost each engine and scorer with a prompt of `read` tokens."""
    infos = {engine.name: engine.info for engine in engines}
    found: dict[str, Cost] = {}
    for name, purpose, cost in ((line.engine, line.purpose, line.cost) for line in answer.lines):
        most = request.sampling.max_tokens * cost.calls
        bounded = purpose in ("answer", "propose") and cost.completion_tokens > most
        written = most if bounded else cost.completion_tokens
        longer = cost.calls * (read - answer.prompt_tokens)
        scale = max(0.0, 1 + longer / cost.prompt_tokens) if cost.prompt_tokens else 1.0
        prompt, cached = round(cost.prompt_tokens * scale), round(cost.cached_tokens * scale)
        info = infos.get(name)
        replayed = replace(
            cost,
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=written,
            prefill_flops=cost.prefill_flops * scale,
            decode_flops=cost.decode_flops * (written / cost.completion_tokens if written else 1.0),
            spared_flops=cost.spared_flops * scale,
            usd=dollars(info, prompt, cached, written) if info and info.price else cost.usd,
        )
        found[name] = found.get(name, Cost()) + replayed
    return found


def _bounds(asked: PreviewedRequest, lengths: Mapping[str, Sequence[int]]) -> dict[str, tuple[Cost, Cost]]:
    """By engine, the cost of reading the prompts and one token of each answer, and of the longest answers."""
    ensemble = asked.served.ensemble
    mentor = ensemble.aggregation.parts(ensemble.engines).get("mentor")
    levels = ensemble.aggregation.checkpoints
    found = {}
    for engine in _taking_part(ensemble):
        costs = []
        for read, request in zip(lengths[engine.name], asked.requests, strict=True):
            most = levels[-1].mentor_tokens if engine is mentor and levels else request.sampling.max_tokens
            costs.append([_once(engine, read, written) for written in (min(1, most), most)])
        low, high = (sum((pair[end] for pair in costs), Cost()) for end in (0, 1))
        found[engine.name] = (low, high)
    return found


def _once(engine: Engine, read: int, written: int) -> Cost:
    """The cost of one call without a cache."""
    info = engine.info
    decode = info.flops(read, read + max(0, written - 1))
    usd = dollars(info, read, 0, written)
    return Cost(read, 0, written, prefill_flops=info.flops(0, read), decode_flops=decode, usd=usd)


def _estimate(
    asked: PreviewedRequest,
    replayed: Sequence[Sequence[Mapping[str, Cost]]],
    engines: Sequence[Engine],
    bounds: Mapping[str, tuple[Cost, Cost]],
) -> dict[str, Any]:
    """The estimated cost of some engines; that of all includes scorers. Intervals of several answers add up."""
    names, whole = {engine.name for engine in engines}, len(engines) == len(bounds)
    low, high = ([bounds[name][end] for name in names] for end in (0, 1))
    spent = asked.budget
    most = {"usd": spent.usd, "tokens": spent.tokens, "flops": spent.tflops and spent.tflops * 1e12}

    def within(kind: Literal["tokens", "flops", "usd"]) -> dict[str, float | None]:
        limit = most[kind]
        return {
            name: value if value is None or limit is None else min(value, limit)
            for name, value in estimate(kind).items()
        }

    def estimate(kind: Literal["tokens", "flops", "usd"]) -> dict[str, float | None]:
        if not all(replayed):
            ends = min(_amount(cost, kind) for cost in low), sum(_amount(cost, kind) for cost in high)
            return {"expected": None, "low": ends[0] * asked.per_prompt, "high": ends[1] * asked.per_prompt}
        sums = [0.0, 0.0, 0.0]
        for answers in replayed:
            costs = [
                sum(_amount(cost, kind) for name, cost in answer.items() if whole or name in names)
                for answer in answers
            ]
            ordered, rank = sorted(costs), _rank(len(costs))
            values = (sum(costs) / len(costs), ordered[rank - 1], ordered[-rank])
            sums = [before + asked.per_prompt * value for before, value in zip(sums, values, strict=True)]
        return dict(zip(("expected", "low", "high"), sums, strict=True))

    usd = within("usd")
    priced = any(engine.info.price for engine in engines) or usd["high"]
    return {"tokens": within("tokens"), "flops": within("flops"), "usd": usd if priced else None}


def _amount(cost: Cost, kind: Literal["tokens", "flops", "usd"]) -> float:
    if kind == "tokens":
        return cost.prompt_tokens - cost.cached_tokens + cost.completion_tokens
    return cost.flops if kind == "flops" else cost.usd


def _rank(count: int) -> int:
    """Place, from both ends, of the order statistics between which the next value is expected."""
    return max(1, int((count + 1) * (1 - _CONFIDENCE) / 2))


def _share(name: str, known: Sequence[Seen]) -> float | None:
    """The share of the answers for which an engine was called."""
    if not known:
        return None
    return sum(any(line.engine == name for line in answer.lines) for answer in known) / len(known)
