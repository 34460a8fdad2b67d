"""`ensemblehub compare`: two cells on the same questions, question by question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ensemblehub.errors import ArtifactError
from ensemblehub.lab import markdown, metrics
from ensemblehub.lab.bench import mixes
from ensemblehub.lab.bench.mixes import Mix
from ensemblehub.lab.bench.report import CellAnswers, cells_in
from ensemblehub.lab.bench.rows import AnswerRow
from ensemblehub.lab.bench.summary import by_question
from ensemblehub.lab.journal import differences, told

SHOWN = 12  # questions that a text names
COSTS = {  # what is compared besides, by field of a row
    "cold_flops": "FLOPs",
    "usd": "dollars",
    "written": "tokens generated",
    "seconds": "engine seconds",
    "wall": "wall seconds",
}
MIXES = (
    "A mix sends each question to one of two cells by chance, in the shares at which it costs what the "
    "line's cell costs; of all such mixes it is the most accurate. A dash: all of its cells cost more, or all "
    "less. Its cells were chosen on the same questions. The oracle is the cheapest of the models and fixed "
    "levels that is right, else the cheapest of all: a bound."
)
Pair = tuple[list[AnswerRow], list[AnswerRow]]  # the samples of a question from both cells


@dataclass(frozen=True)
class Difference:
    """A paired difference over questions, `other` against `base`; accuracies are fractions.

    Attributes:
        low, high: 95 % interval of `difference`, by a paired bootstrap over questions.
        gains, losses: Questions that only `other`, or only `base`, answers better.
        p: Two-sided p-value of the exact McNemar test; None where questions have several samples.
    """

    n: int
    base: float
    other: float
    difference: float
    low: float
    high: float
    gains: list[str]
    losses: list[str]
    p: float | None

    @classmethod
    def of(cls, pairs: dict[str, Pair]) -> Difference:
        """The difference over some questions."""
        base, other = ([_share(pair[side]) for pair in pairs.values()] for side in (0, 1))
        low, high = metrics.paired_bootstrap(other, base)
        changes = list(zip(pairs, base, other, strict=True))
        gains = [name for name, before, after in changes if after > before]
        losses = [name for name, before, after in changes if after < before]
        single = all(len(samples) == 1 for pair in pairs.values() for samples in pair)
        n = len(pairs)
        return cls(
            n,
            sum(base) / n,
            sum(other) / n,
            sum(other) / n - sum(base) / n,
            low,
            high,
            gains,
            losses,
            metrics.mcnemar(len(gains), len(losses)) if single else None,
        )


def _share(samples: Sequence[AnswerRow]) -> float:
    return sum(row.correct for row in samples) / len(samples)


@dataclass(frozen=True)
class PairedComparison:
    """Two cells over the same questions: all of them, and by subject and level.

    Attributes:
        costs: Mean per answer of both, where it is known of every call.
        mixes: The best random mix of trivial cells at the cost of `other`, by what is mixed (see
            `against_mixes`).
    """

    base: str
    other: str
    costs: dict[str, tuple[float, float]]
    whole: Difference
    groups: dict[str, dict[str, Difference]] = field(default_factory=dict)
    mixes: dict[str, Mix | None] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return asdict(self)


def compare(base: CellAnswers, other: CellAnswers, common: bool = False) -> PairedComparison:
    """Compare two cells.

    Args:
        common: Compare over the questions that both have answered, where one of them has more.

    Raises:
        ArtifactError: They answer different questions, or were asked with different prompts; says which.
    """
    pairs = paired(base, other, common)
    groups = {
        "subject": _grouped(pairs, lambda row: row.subject),
        "level": _grouped(pairs, lambda row: str(row.level or "")),
    }
    both = (base, other)
    unknown = {"wall"} if any(cell.reused for cell in both) else set[str]()
    unknown |= {key for key, unit in mixes.UNITS.items() if not all(cell.knows(unit) for cell in both)}
    told_apart = [key for key in COSTS if key not in unknown]
    costs = {key: (_mean(pairs, 0, key), _mean(pairs, 1, key)) for key in told_apart}
    return PairedComparison(base.name, other.name, costs, Difference.of(pairs), groups)


def paired(base: CellAnswers, other: CellAnswers, common: bool = False) -> dict[str, Pair]:
    """The samples of every question from both cells, in the order of `base`; see `compare`."""
    where = f"{base.path} and {other.path}"
    if differing := list(differences(base.about, other.about)):
        raise ArtifactError(f"{where} were not asked the same: {told(differing)}")
    mine, theirs = by_question(base.rows), by_question(other.rows)
    names = [name for name in mine if name in theirs]
    only = len(mine) - len(names), len(theirs) - len(names)
    if any(only) and not common:
        counts = f"{only[0]} of the first only, {only[1]} of the second only"
        raise ArtifactError(
            f"{where} have not answered the same questions ({counts}): `bench` asks the missing ones, "
            "and `compare --common` leaves them out"
        )
    if not names:
        raise ArtifactError(f"{where} have no question in common")
    pairs = {name: (mine[name], theirs[name]) for name in names}
    for name, (rows, others) in pairs.items():
        for what, key in (("question", "asked"), ("prompt", "prompted")):
            if getattr(rows[0], key) != getattr(others[0], key):
                raise ArtifactError(f"{where} were asked {name} with another {what}: ask them again")
    return pairs


def _grouped(pairs: dict[str, Pair], key: Callable[[AnswerRow], str]) -> dict[str, Difference]:
    """The difference by group, in the order of their names; questions without one are left out."""
    groups: dict[str, dict[str, Pair]] = {}
    for name, pair in pairs.items():
        if group := key(pair[0][0]):
            groups.setdefault(group, {})[name] = pair
    return {group: Difference.of(groups[group]) for group in sorted(groups)} if len(groups) > 1 else {}


def _mean(pairs: dict[str, Pair], side: int, key: str) -> float:
    """Mean cost of an answer."""
    rows = [row for pair in pairs.values() for row in pair[side]]
    return float(sum(getattr(row, key) for row in rows) / len(rows))


def _cells_of(paths: Sequence[Path]) -> list[CellAnswers]:
    return [
        cell for path in paths for cell in ([CellAnswers.read(path)] if path.is_file() else cells_in(path))
    ]


def comparisons(paths: Sequence[Path], common: bool = False) -> list[PairedComparison]:
    """Compare the cells of result folders and of journals.

    Two folders with several cells of the same names are compared cell by cell; otherwise every cell is
    compared to the first.

    Raises:
        ArtifactError: See `compare`; or there are fewer than two cells.
    """
    groups = [_cells_of([path]) for path in paths]
    found = [cell for group in groups for cell in group]
    if len(found) < 2:
        raise ArtifactError(
            f"{paths[0]} holds one cell, {found[0].name}: name another folder to compare it with"
        )
    if len(groups) == 2 and min(map(len, groups)) > 1:
        by_name = {cell.name: cell for cell in groups[1]}
        if pairs := [(cell, by_name[cell.name]) for cell in groups[0] if cell.name in by_name]:
            return [compare(*pair, common) for pair in pairs]
    others = [cell for cell in found if cell.path != found[0].path] or found[1:]
    return [compare(found[0], cell, common) for cell in others]


def against_mixes(paths: Sequence[Path], common: bool = False) -> list[PairedComparison]:
    """Compare the cells of result folders and of journals to the first one, and to trivial ones.

    Those are the best random mix, at the cell's own cost, of the cells in which one model answers alone, and
    of these and Tandem's fixed levels; the last comparison is of an oracle over the latter.

    Args:
        common: Compare over the questions that all of them have answered.

    Raises:
        ArtifactError: See `compare`; or fewer than two cells are of one model alone.
    """
    cells = list({cell.path: cell for cell in _cells_of(paths)}.values())
    if common:
        answered = set.intersection(*({row.question for row in cell.rows} for cell in cells))
        cells = [replace(cell, rows=[row for row in cell.rows if row.question in answered]) for cell in cells]
    singles = mixes.single_models(cells)
    if len(singles) < 2:
        raise ArtifactError(f"{paths[-1]} holds fewer than two cells in which one model answers alone")
    parts = {"models": singles}
    if levels := mixes.fixed_levels(cells):
        parts["models and fixed levels"] = [*singles, *levels]
    return [
        replace(
            compare(cells[0], cell),
            mixes={name: mixes.best_mix(cell, of) for name, of in parts.items()},
        )
        for cell in (*cells[1:], mixes.oracle(list(parts.values())[-1]))
    ]


def text(comparison: PairedComparison) -> str:
    """A comparison as Markdown."""
    whole, header = (
        comparison.whole,
        ["", "n", comparison.base, comparison.other, "difference, points [95 %]"],
    )
    rows = [("all", whole)]
    rows += [
        (f"{kind} {name}", found) for kind, of in comparison.groups.items() for name, found in of.items()
    ]
    body = markdown.table(
        [*header, "gains", "losses", "McNemar p"],
        [[name, *_cells(found)] for name, found in rows],
        "lrrrrrrr",
    )
    costs = [
        f"{label} {before:.4g} -> {after:.4g}" + (f" ({after / before:.3g} times)" if before else "")
        for label, (before, after) in ((COSTS[key], pair) for key, pair in comparison.costs.items())
        if before or after
    ]
    named = [
        f"{what}: {', '.join(names[:SHOWN])}"
        + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        for what, names in (("Gains", whole.gains), ("Losses", whole.losses))
        if names
    ]
    title = f"# {comparison.other} against {comparison.base}"
    return "\n\n".join([title, body, f"Per answer: {'; '.join(costs)}.", *named]) + "\n"


def brief(found: Sequence[PairedComparison]) -> str:
    """Comparisons as one Markdown table with a line each; costs as multiples of those of the base."""
    costs = [key for key in COSTS if any(comparison.costs.get(key, (0,))[0] for comparison in found)]
    rows = [
        [f"{comparison.other} against {comparison.base}", *_cells(comparison.whole)]
        + [_times(*comparison.costs.get(key, (0, 0))) for key in costs]
        + [str(mix or "–") for mix in comparison.mixes.values()]
        for comparison in found
    ]
    header = ["", "n", "base", "accuracy", "difference, points [95 %]", "gains", "losses", "McNemar p"]
    header += [f"{COSTS[key]}, times" for key in costs]
    mixed = list(found[0].mixes)
    header += [f"mix of {name} at equal cost; points to it [95 %]" for name in mixed]
    lines = markdown.table(header, rows, "l" + "r" * (len(header) - 1))
    return f"{lines}\n" + (f"\n{MIXES}\n" if mixed else "")


def _times(before: float, after: float) -> str:
    return f"{after / before:.3f}" if before else "–"


def _cells(found: Difference) -> list[str]:
    points = [100 * value for value in (found.difference, found.low, found.high)]
    return [
        str(found.n),
        f"{found.base:.1%}",
        f"{found.other:.1%}",
        "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points),
        str(len(found.gains)),
        str(len(found.losses)),
        "–" if found.p is None else f"{found.p:.3g}",
    ]
