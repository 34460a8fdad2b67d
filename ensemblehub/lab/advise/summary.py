"""What an advice says: the recommendation in a line, what is still open, and the table of all strategies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ensemblehub.lab import metrics
from ensemblehub.lab.advise import choice
from ensemblehub.lab.advise.choice import Criterion, Evaluated
from ensemblehub.lab.advise.costs import CostUnit, amount
from ensemblehub.lab.advise.record import Recorded
from ensemblehub.lab.advise.strategy import Floats
from ensemblehub.lab.pipeline import report

SAVED_ON = 10_000  # questions that the saving is told for
DOLLARS = f"usd per {SAVED_ON:,}"
COLUMNS = ("method", "n", "accuracy", "difference", "cost_vs_mentor", DOLLARS, "setting")


def headline(mentor: Evaluated, chosen: Evaluated, unit: CostUnit = "flops") -> str:
    """The recommendation in one line, its difference to the mentor, and what it would save."""
    use = f"No strategy pays here: use the {chosen.name}" if chosen.single else f"Use {chosen.name}"
    if chosen is mentor:
        return f"**{use}.**"
    setting = f" ({chosen.setting})" if chosen.setting else ""
    verb, more, less = "saves", mentor.cost, chosen.cost
    if less.mean() > more.mean():
        verb, more, less = "costs more by", less, more
    difference, low, high = (more - less).mean(), *metrics.paired_bootstrap(more, less)
    ends = " to ".join(amount(SAVED_ON * value, unit).removesuffix(" TFLOPs") for value in (low, high))
    return (
        f"**{use}{setting}**: {_points(chosen, mentor)} against the mentor, and on {SAVED_ON:,} such questions "
        f"it {verb} {amount(SAVED_ON * difference, unit)} [{ends}], "
        f"{difference / mentor.cost.mean():.0%} of the mentor's."
    )


def over_budget(
    found: Sequence[Evaluated], chosen: Evaluated, criterion: Criterion, unit: CostUnit
) -> list[str]:
    """A line where no strategy keeps the budget."""
    if criterion.aim == "cost" or any(criterion.allows(other, found[0]) for other in found):
        return []
    cost = amount(chosen.cost.mean(), unit)
    return [f"Nothing keeps this budget; the {chosen.name} is the cheapest, at {cost} a question."]


def open_questions(
    found: Sequence[Evaluated], chosen: Evaluated, clear: bool, criterion: Criterion
) -> list[str]:
    """Whether the answer is clear, else what is open, and how many questions more would tell."""
    n = len(chosen.correct)
    if clear:
        return [f"The answer is clear after {n} questions (anytime-valid test, error at most 5 %)."]
    open_ones = _open_in_cost if criterion.aim == "cost" else _open_in_accuracy
    title, lines = open_ones(found, chosen, criterion)
    if any(lines):
        return [f"{title}:\n\n" + "\n".join(line for line in lines if line)]
    if not choice.rivals(found, chosen, criterion):
        return ["Nothing is open: no other strategy is cheaper, or keeps the budget."]
    return [
        f"The answer is not clear yet after {n} questions (anytime-valid test, error at most 5 %, from "
        f"{choice.FEWEST} questions on), although no interval leaves anything open."
    ]


def _open_in_accuracy(
    found: Sequence[Evaluated], chosen: Evaluated, criterion: Criterion
) -> tuple[str, list[str]]:
    """What may be as accurate as the choice, within the budget."""
    near = [other for other in found if criterion.allows(other, found[0]) or other is found[0]]
    lines = [_open_question(chosen, other) for other in near if other is not chosen]
    return f"Not told apart from {chosen.name} in accuracy yet, and the difference to it", lines


def _open_question(chosen: Evaluated, other: Evaluated) -> str:
    """A line on a strategy whose accuracy may be that of the chosen one; else empty."""
    low, high = metrics.paired_bootstrap(other.correct, chosen.correct)
    if low > 0 or high < 0:
        return ""
    told = _more(other.correct - chosen.correct, "they are equal so far")
    return f"- {other.name}: {_points(other, chosen)}; {told}"


def _open_in_cost(
    found: Sequence[Evaluated], chosen: Evaluated, criterion: Criterion
) -> tuple[str, list[str]]:
    """What is cheaper than the choice and may keep the margin, and the choice where it may not."""
    mentor, limit = found[0], -criterion.margin
    lines = list[str]()
    for other in found:
        low, high = metrics.paired_bootstrap(other.correct, mentor.correct)
        told = _more(other.correct - mentor.correct - limit, "it is at the margin so far")
        if other is chosen and other is not mentor and low < limit:
            lines.append(f"- {other.name} itself: {_points(other, mentor)}; {told}")
        elif other.cost.mean() < chosen.cost.mean() and high > limit:
            if low >= limit:
                told = f"it keeps the margin; {_more(chosen.cost - other.cost, 'it costs the same so far')}"
            lines.append(f"- {other.name}: {_points(other, mentor)}; {told}")
    title = (
        f"Not told yet which of these lose at most {100 * criterion.margin:g} points and cost the least, and their "
        "difference to the mentor"
    )
    return title, lines


def _more(differences: Floats, none: str) -> str:
    """How many questions more would tell the mean from 0."""
    needed = choice.questions_needed(differences)
    return f"about {max(0, needed - len(differences)):,} more questions would tell" if needed else none


def _points(outcome: Evaluated, other: Evaluated) -> str:
    """The difference in accuracy with its 95 % interval."""
    ends = (
        (outcome.correct - other.correct).mean(),
        *metrics.paired_bootstrap(outcome.correct, other.correct),
    )
    return "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*(100 * float(end) for end in ends))


def as_markdown(
    found: Sequence[Evaluated],
    wanted: str,
    said: Sequence[str],
    agreement: bool,
    asked: str,
    recorded: Recorded,
) -> str:
    """The report, with what is `said` of the recommendation."""
    if agreement:
        wanted += "; the questions have no answers, so right means: equal to the mentor's own answer"
        if recorded.cut_off:
            wanted += (
                f", and nothing where that was cut off at max_tokens ({recorded.cut_off} of {recorded.n})"
            )
    notes = [
        f"Wanted: {wanted}. n = {recorded.n} questions of {asked}. Every "
        "strategy here is replayed on the same recorded texts, its setting chosen on other questions (cross-validated, "
        f"{choice.FOLDS} folds). Accuracy with Wilson 95 % interval, difference to the mentor alone in points "
        "with paired-bootstrap 95 % "
        f"interval, {recorded.measure} as a share of the mentor's with a 95 % interval by the delta method.",
        *said,
    ]
    columns = [column for column in COLUMNS if column != DOLLARS or recorded.unit == "usd"]
    return f"# Which strategy pays\n\n{report.markdown(_rows(found, recorded.unit), notes, columns)}"


def _rows(found: Sequence[Evaluated], unit: CostUnit) -> list[dict[str, Any]]:
    mentor, rows = found[0], []
    for outcome in found:
        low, high = metrics.wilson_interval(float(outcome.correct.sum()), len(outcome.correct))
        worse, better = metrics.paired_bootstrap(outcome.correct, mentor.correct)
        least, most = metrics.ratio_interval(outcome.cost, mentor.cost)
        rows.append(
            {
                "method": outcome.name,
                "n": len(outcome.correct),
                "accuracy": float(outcome.correct.mean()),
                "accuracy_low": low,
                "accuracy_high": high,
                "difference": float((outcome.correct - mentor.correct).mean()),
                "difference_low": worse,
                "difference_high": better,
                "cost_vs_mentor": float(outcome.cost.sum() / mentor.cost.sum()),
                "cost_vs_mentor_low": least,
                "cost_vs_mentor_high": most,
                DOLLARS: amount(SAVED_ON * outcome.cost.mean(), unit),
                "setting": outcome.setting or "–",
            }
        )
    return rows
