"""One line on an answer; of a Tandem: where the mentor stopped, what that was worth, what it saved."""

from __future__ import annotations

from collections.abc import Sequence

from ensemblehub.results import authors
from ensemblehub.schema import Result, Verdict
from ensemblehub.tandem.insights import DRAFT, QUESTION
from ensemblehub.tandem.judges import Fixed


def why(result: Result, alone: Sequence[float] | None, selection: str, method: str) -> str:
    """One sentence on an answer: a Tandem's `explanation`, the reason of the last choice, or who wrote it.

    Args:
        alone: estimated FLOPs of the mentor by itself: mean and 95 % interval.
        selection, method: names of the selection and of the aggregation.
    """
    wrote = {purpose: " and ".join(names) for purpose, names in authors(result).items()}
    help_of = f" with an insight of {wrote['insight']}" if wrote["insight"] else ""
    by = f"written by {wrote['answer'] or 'nobody'}{help_of}"
    reasons = [choice.reason for choice in result.choices if choice.reason]
    if result.verdicts or reasons:
        return explanation(result.verdicts, by, result.cost.cold_flops, alone) or reasons[-1]
    chosen = any(choice.about == "models" for choice in result.choices)
    return f"{by}, {f'chosen by {selection}' if chosen else f'by {method}'}"


def explanation(
    verdicts: Sequence[Verdict], by: str, cold_flops: float, alone: Sequence[float] | None
) -> str | None:
    """Explain the verdicts; None if there are none.

    For example: `stopped at 62 mentor tokens, p(sufficient) 0.93; alone the intern would have had 0.41;
    estimated saving 57 % (48 to 63)`.

    Args:
        by: who wrote the answer, told where nothing sufficed.
        alone: estimated FLOPs of the mentor by itself: mean and 95 % interval.
    """
    if not verdicts:
        return None
    first, last = verdicts[0], verdicts[-1]
    if last.mentor_tokens:
        said = ("stopped at {} mentor tokens", "no level sufficed, the last at {} mentor tokens")
    elif last.level == QUESTION:
        said = ("the question was read", "the question is lost, so the draft is given unjudged")
    elif last.level == DRAFT:
        said = ("the draft was accepted", "no draft was accepted")
    else:
        said = ("answered without the mentor", "the intern alone did not suffice")
    parts = [said[not last.sufficient].format(last.mentor_tokens) + _number(last)]
    if not last.sufficient:
        parts.append(by)
    if last.mentor_tokens and not first.mentor_tokens and first.criterion == last.criterion:
        parts.append(f"alone the intern would have had {first.probability:.2f}")
    if alone and min(alone) > 0:
        saving, low, high = (round(100 * (1 - cold_flops / flops)) for flops in alone)
        parts.append(f"estimated saving {saving} % ({low} to {high})")
    return "; ".join(parts)


def _number(verdict: Verdict) -> str:
    """Its probability, or what stands in its place and how much of that suffices; nothing of a fixed level."""
    if verdict.criterion == Fixed.kind:
        return ""
    if verdict.criterion:
        return f", {verdict.criterion} score {verdict.probability:.2f}, {verdict.threshold:.2f} suffices"
    return f", p(sufficient) {verdict.probability:.2f}"
