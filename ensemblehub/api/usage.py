"""`usage` of a reply: tokens as OpenAI counts them, `cost` in US dollars, every call in `cost_details`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ensemblehub.api.job import AnswerRecord
from ensemblehub.api.replies import UsageLineObject
from ensemblehub.cost import UsageLedger
from ensemblehub.schema import Cost, Piece, Verdict
from ensemblehub.tandem.explanation import explanation

_COST_FIELDS = [name for name in UsageLineObject.model_fields if name not in ("engine", "purpose")]


def usage(answers: Sequence[AnswerRecord], per_prompt: int) -> dict[str, Any]:
    """The usage of a reply.

    Args:
        per_prompt: answers to each prompt; a prompt counts once.
    """
    prompts = [_prompt_tokens(answer) for answer in answers[::per_prompt]]
    insight = sum(answer.insight_tokens for answer in answers)
    ledger = UsageLedger([call for answer in answers for call in answer.ledger.calls])
    has_price = any(engine.info.price for answer in answers for engine in answer.served.ensemble.engines)
    usd = ledger.total.usd
    return {
        **_tokens(sum(read for read, _ in prompts), insight + sum(map(_completion_tokens, answers))),
        "prompt_tokens_details": {"cached_tokens": sum(cached for _, cached in prompts)},
        "completion_tokens_details": {"reasoning_tokens": insight},
        "cost": usd if usd or has_price else None,
        "cost_details": _cost_details(ledger, answers),
    }


def usage_so_far(answers: Sequence[AnswerRecord], per_prompt: int) -> dict[str, int]:
    """Token counts of a stream that is not at its end."""
    read = sum(_prompt_tokens(answer)[0] for answer in answers[::per_prompt])
    return _tokens(read, sum(answer.insight_tokens + answer.answer_tokens for answer in answers))


def _tokens(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _prompt_tokens(answer: AnswerRecord) -> tuple[int, int]:
    """Tokens of the client's prompt for the engine that answers, and how many of them were cached before."""
    engine = answer.engine
    costs = [call.cost for call in answer.ledger.calls if call.engine == engine.name]
    first = costs[0] if costs else Cost()
    known = answer.prompt_tokens_for(engine)
    read = (first.prompt_tokens or answer.prompt_tokens) if known is None else known
    return read, min(read, first.cached_tokens)


def _completion_tokens(answer: AnswerRecord) -> int:
    """Tokens of the answer; those of tool calls are taken from the ledger, since no text shows them."""
    if not any(isinstance(event, Piece) and event.tool_calls for event in answer.events):
        return answer.answer_tokens
    costs = [call.cost for call in answer.ledger.calls if call.purpose == "answer"]
    return max(answer.answer_tokens, sum(cost.completion_tokens - cost.discarded_tokens for cost in costs))


def _cost_details(ledger: UsageLedger, answers: Sequence[AnswerRecord]) -> dict[str, Any]:
    """Every call, and the estimate for the mentor alone; both compared without caches of earlier requests."""
    total, alone = ledger.total, estimated_mentor_alone(answers)
    verdicts = (
        [event for event in answers[0].events if isinstance(event, Verdict)] if len(answers) == 1 else []
    )
    lines = [
        {"engine": line.engine, "purpose": line.purpose}
        | {name: getattr(line.cost, name) for name in _COST_FIELDS}
        for line in ledger.usage.lines
    ]
    return {
        "flops": total.flops,
        "cold_flops": total.cold_flops,
        "usd": total.usd,
        "seconds": total.seconds,
        "estimated": total.estimated,
        "spent": lines,
        "estimated_mentor_alone_flops": alone,
        "estimated_saving": 1 - total.cold_flops / alone[0] if alone and alone[0] else None,
        "explanation": explanation(verdicts, total.cold_flops, alone),
    }


def estimated_mentor_alone(answers: Iterable[AnswerRecord]) -> list[float] | None:
    """Return the estimated FLOPs of the mentor alone for all answers: mean and 95 % interval."""
    estimates = [answer.served.estimated_alone(answer.request) for answer in answers]
    known = [estimate for estimate in estimates if estimate is not None]
    if not known or len(known) < len(estimates):
        return None
    return [sum(values) for values in zip(*known, strict=True)]
