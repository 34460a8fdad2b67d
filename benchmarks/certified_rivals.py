"""Which families of strategies are certified on the built-in pair: `python -m benchmarks.certified_rivals`.

Each family of cells of `results/rivals/builtin.yaml` is certified by itself, as `ensemblehub certify --only` does, so
that each entry is a promise of its own; none holds for the best of them.  Prints Markdown, which
`results/rivals/certified.md` keeps, and asks no model.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ensemblehub.errors import ConfigError
from ensemblehub.lab import markdown
from ensemblehub.lab.advise.measured import Measured, certified_cell, chosen, measured
from ensemblehub.lab.bench.cells import cells_of
from ensemblehub.lab.pipeline.certificate import Promise

RIVALS = Path(__file__).parents[1] / "results/rivals"
HEADER = (
    "task, loss",
    "certified, at this share of the mentor's cost",
    "questions that would do, half of them tested",
    "lose or cost too much",
)


def family(name: str) -> str:
    """A cell's name without what tells it from the other settings of its strategy."""
    fixed = re.sub("^tandem (low|medium|high)$", "tandem, fixed level", name)
    return re.sub(r" (from |of )?[\d.]+", "", fixed)


def line(
    mentor: Measured, families: Mapping[str, Sequence[Measured]], promise: Promise
) -> tuple[str, str, str]:
    """The certified settings, the cheapest first; what more questions would certify; and the number of the others."""
    certified, refused, others = list[tuple[float, str]](), list[tuple[int, str]](), 0
    for name, cells in families.items():
        try:
            best, cell = certified_cell(mentor, cells, promise)
            certified.append((best.seen.cost, f"{cell.cell.name}: {best.seen.cost:.3f}"))
        except ConfigError as error:
            would_do = re.search(r"about ([\d,]+) would do", str(error))
            if would_do:
                size = 2 * int(would_do[1].replace(",", ""))
                refused.append((size, f"{name}: {size:,}"))
            others += not would_do
    told = ("; ".join(text for _, text in sorted(found)) or "–" for found in (certified, refused))
    return (*told, str(others))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-loss", type=float, default=0.03)
    parser.add_argument("--confidence", type=float, default=0.95)
    options = parser.parse_args()
    cells, rows = cells_of([str(RIVALS / "builtin.yaml")]), []
    for task in ("builtin_math", "builtin_code"):
        mentor, *others = measured(RIVALS / task, chosen(cells, "mentor", []))
        families = dict[str, list[Measured]]()
        for each in others:
            families.setdefault(family(each.cell.name), []).append(each)
        for loss in ("lost-correct", "net"):
            promise = Promise(options.max_loss, options.confidence, loss)
            rows.append((f"{task}, `{loss}`", *line(mentor, families, promise)))
    print(markdown.table(HEADER, rows, "lllr"))


if __name__ == "__main__":
    main()
