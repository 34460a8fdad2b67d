"""One line on an answer; of a Tandem: where the mentor stopped, what that was worth, what it saved."""

from __future__ import annotations

from collections.abc import Sequence

from ensemblehub.results import authors
from ensemblehub.schema import Result, Verdict


def why(result: Result, alone: Sequence[float] | None, selection: str, method: str) -> str:
    """One sentence on an answer: a Tandem's `explanation`, the reason of the last choice, or who wrote it.

    Args:
        alone: estimated FLOPs of the mentor by itself: mean and 95 % interval.
        selection, method: names of the selection and of the aggregation.
    """
    told = explanation(result.verdicts, result.cost.cold_flops, alone)
    reasons = [choice.reason for choice in result.choices if choice.reason]
    if told or reasons:
        return told or reasons[-1]
    chosen = any(choice.about == "models" for choice in result.choices)
    by = f"chosen by {selection}" if chosen else f"by {method}"
    return f"written by {' and '.join(authors(result)['answer']) or 'nobody'}, {by}"


def explanation(verdicts: Sequence[Verdict], cold_flops: float, alone: Sequence[float] | None) -> str | None:
    """Explain the verdicts; None if there are none.

    For example: `stopped at 62 mentor tokens, p(sufficient) 0.93; alone the intern would have had 0.41;
    estimated saving 57 % (48 to 63)`.

    Args:
        alone: estimated FLOPs of the mentor by itself: mean and 95 % interval.
    """
    if not verdicts:
        return None
    first, last = verdicts[0], verdicts[-1]
    probability = f"p(sufficient) {last.probability:.2f}"
    if not last.sufficient:
        parts = [f"no level sufficed, the last at {last.mentor_tokens} mentor tokens, {probability}"]
    elif last.mentor_tokens:
        parts = [f"stopped at {last.mentor_tokens} mentor tokens, {probability}"]
    else:
        parts = [f"answered without the mentor, {probability}"]
    if last.mentor_tokens and not first.mentor_tokens:
        parts.append(f"alone the intern would have had {first.probability:.2f}")
    if alone and min(alone) > 0:
        saving, low, high = (f"{100 * (1 - cold_flops / flops):.0f}" for flops in alone)
        parts.append(f"estimated saving {saving} % ({low} to {high})")
    return "; ".join(parts)
