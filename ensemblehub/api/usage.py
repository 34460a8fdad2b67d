"""What a reply says about itself: `usage`, who wrote what and why in `metadata`, in short in headers.

`usage` has tokens as OpenAI counts them, `cost` in US dollars, every call in `cost_details`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from ensemblehub.api.job import AnswerRecord, GenerationJob
from ensemblehub.api.replies import UsageLineObject
from ensemblehub.cost import UsageLedger
from ensemblehub.results import attribution, authors
from ensemblehub.schema import Cost, Piece, Result
from ensemblehub.tandem.explanation import why

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
    costs = [call.cost for call in answer.ledger.calls if call.purpose in ("answer", "propose")]
    return max(answer.answer_tokens, sum(cost.completion_tokens - cost.discarded_tokens for cost in costs))


def _cost_details(ledger: UsageLedger, answers: Sequence[AnswerRecord]) -> dict[str, Any]:
    """Every call, and the estimate for the mentor alone; both compared without caches of earlier requests."""
    total = ledger.total
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
        "estimated_mentor_alone_flops": estimated_mentor_alone(answers),
        "estimated_saving": _saving(total, answers),
        "explanation": _why(answers[0], answers[0].result) if len(answers) == 1 else None,
    }


def _saving(total: Cost, answers: Sequence[AnswerRecord]) -> float | None:
    """The estimated share of the mentor's FLOPs that was saved; None where unknown, or a budget ended an answer."""
    alone = estimated_mentor_alone(answers)
    if any(answer.out_of_budget for answer in answers):
        return None
    return 1 - total.cold_flops / alone[0] if alone and alone[0] else None


def metadata(answer: AnswerRecord) -> dict[str, Any]:
    """Who took part, who wrote what and why, verdicts, choices and estimated saving of an ended answer."""
    result = answer.result
    finish = "budget" if answer.out_of_budget else result.finish or "length"
    return {
        "finish": finish,
        "request_id": answer.request.id,
        "selected_models": members(answer, result),
        "method": answer.served.aggregation.method,
        "explanation": _why(answer, result),
        "estimated_saving": _saving(answer.ledger.total, [answer]),
        "attribution": attribution(result),
        "verdicts": [asdict(verdict) for verdict in result.verdicts],
        "choices": [asdict(choice) for choice in result.choices],
    }


def members(answer: AnswerRecord, result: Result) -> list[str]:
    """The models that took part."""
    selected = [choice.chosen for choice in result.choices if choice.about == "models"]
    return list(selected[-1]) if selected else [engine.name for engine in answer.served.ensemble.engines]


def _why(answer: AnswerRecord, result: Result) -> str:
    if answer.out_of_budget:
        return f"ended by its budget after {answer.answer_tokens} tokens of the answer"
    served = answer.served
    return why(result, answer.estimated_alone, served.selection, served.aggregation.method)


HEADERS = [
    f"x-ensemble-{name}"
    for name in ("method", "members", "insight", "answer", "explanation", "estimated-saving")
]


def headers(job: GenerationJob) -> dict[str, str]:
    """A reply's headers: of a stream, method and members; of one whole answer, who wrote it and why."""
    answer = job.answers[0]
    engines = answer.served.ensemble.engines
    found: dict[str, Any] = {
        "method": answer.served.aggregation.method,
        "members": [engine.name for engine in engines],
    }
    if len(job.answers) == 1 and answer.ended:
        result, saving = answer.result, _saving(answer.ledger.total, job.answers)
        found |= {"members": members(answer, result), **authors(result), "explanation": _why(answer, result)}
        found |= {"estimated-saving": None if saving is None else f"{saving:.4f}"}
    return {f"x-ensemble-{name}": _header(value) for name, value in found.items() if value}


def _header(value: str | Sequence[str]) -> str:
    """A value as headers may hold it: names joined by commas, percent-encoded where not plain ASCII."""
    text = value if isinstance(value, str) else ", ".join(quote(name, safe=" ()[]:;=+#/@") for name in value)
    return quote(text, safe=" ()[]:;=+#/@,%'\"!?")[:1000]


def estimated_mentor_alone(answers: Iterable[AnswerRecord]) -> list[float] | None:
    """Return the estimated FLOPs of the mentor alone for all answers: mean and 95 % interval."""
    estimates = [answer.estimated_alone for answer in answers]
    known = [estimate for estimate in estimates if estimate is not None]
    if not known or len(known) < len(estimates):
        return None
    return [sum(values) for values in zip(*known, strict=True)]
