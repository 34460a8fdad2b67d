"""How well answers are compared: `python -m benchmarks.grading [--data DIR]`.

*Gold*: every benchmark's gold answer against the final answer of its own solution, as the task grades a model's text,
and against the same answer written otherwise; and against the gold answers of other questions, which should differ.
Needs the public files (`math500.jsonl`, `gsm8k_test.jsonl`, ... or what `ensemblehub data fetch` writes).
*Pairs*: the labelled pairs of this project, in both directions.  *Cost*: a comparison by the warm process for algebra.

Writes `results/grading/grading.json` and `table.md`; without --data the gold part of the last run is kept.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ensemblehub.answers import algebra
from ensemblehub.answers.equality import equal_answers
from ensemblehub.data_files import located
from ensemblehub.errors import ConfigError
from ensemblehub.lab.tasks.base import Item, task_named
from ensemblehub.lab.tasks.public import Mathematics
from ensemblehub.lab.tasks.source import files_of

PAIRS = Path(__file__).parents[1] / "tests" / "answers" / "answer_pairs.jsonl"
RESULTS = Path(__file__).parents[1] / "results" / "grading"
NAMES = ("math500", "gsm8k", "aime24", "amc23", "math")
AIM = 0.995
OTHERS = 4  # gold answers of other questions that each is compared with
QUESTIONS, SOLUTIONS = ("problem", "question", "input"), ("solution", "output", "answer")
FOUND = ("equal_yes", "equal_no", "unequal_no", "unequal_yes")  # the label, and what was found
Found = dict[str, Any]

OTHERWISE: dict[str, Callable[[str], str]] = {
    "dollars": lambda gold: f"${gold}$",
    "dfrac": lambda gold: gold.replace("\\frac", "\\dfrac"),
    "left and right": lambda gold: re.sub(
        r"(?<!\\)([)\]])", r"\\right\1", re.sub(r"(?<!\\)([(\[])", r"\\left\1", gold)
    ),
    "thin spaces": lambda gold: re.sub(r"(?<=[^\d\s\\,])([,+])(?=[\s\d\\])", r"\1\\,", gold),
    "no spaces": lambda gold: re.sub(r"(?<![a-zA-Z\d])\s+|\s+(?![a-zA-Z\d])", "", gold),
    "thousands": lambda gold: f"{int(gold):,}" if re.fullmatch(r"\d+", gold) else gold,
    "decimal": lambda gold: f"{int(gold)}.00" if re.fullmatch(r"-?\d+", gold) else gold,
    "name": lambda gold: f"k = {gold}" if re.fullmatch(r"[-\d./]+", gold) else gold,
}


def written(items: dict[str, Item], name: str, data: Path) -> Iterator[tuple[Item, str]]:
    """Every item with its solution as published."""
    for file in files_of(name, task_of(name, data).parts["test"], data):
        for _, value in located(file):
            fields = {key.lower(): inner for key, inner in value.items()}
            question = next(fields[key] for key in QUESTIONS if key in fields)
            yield items[question], next(fields[key] for key in SOLUTIONS if key in fields)


def task_of(name: str, data: Path) -> Mathematics:
    """The task on the files of a folder."""
    task = task_named(name, data)
    assert isinstance(task, Mathematics)
    return task


def gold(name: str, data: Path) -> Found:
    """Gold answers against solutions, other ways to write them, and other questions' gold answers."""
    task = task_of(name, data)
    items = {item.text: item for item in task.items("test" if task.share is None else "all")}
    wrong, n = list[Found](), 0
    for item, solution in written(items, name, data):
        grade, n = task.grade(item, solution), n + 1
        if not grade.correct:
            wrong.append({"id": item.id, "gold": item.answer, "answer": grade.answer, "reason": grade.reason})
    answers = [item.answer for item in items.values()]
    forms = {form: _forms(answers, write) for form, write in OTHERWISE.items()}
    return {"n": n, "right": n - len(wrong), "wrong": wrong, "otherwise": forms, "others": _others(answers)}


def _forms(answers: list[str], write: Callable[[str], str]) -> Found:
    changed = [(answer, write(answer)) for answer in answers if write(answer) != answer]
    missed = [pair for pair in changed if not equal_answers(*pair)]
    return {"n": len(changed), "right": len(changed) - len(missed), "wrong": missed}


def _others(answers: list[str]) -> Found:
    """Different texts that count as equal: to be looked at, as some of them are."""
    rng, pairs = random.Random(0), set[tuple[str, str]]()
    for answer in answers:
        pairs |= {
            (answer, other) for other in rng.sample(answers, min(OTHERS, len(answers))) if other != answer
        }
    return {"n": len(pairs), "equal": sorted(pair for pair in pairs if equal_answers(*pair))}


def confusion() -> Found:
    """The labelled pairs by category: right and wrong ones, each in both directions."""
    table: dict[str, dict[str, int]] = {}
    confused = []
    for line in filter(None, PAIRS.read_bytes().split(b"\n")):
        pair = json.loads(line)
        row = table.setdefault(
            pair["category"], dict.fromkeys(("equal_yes", "equal_no", "unequal_yes", "unequal_no"), 0)
        )
        for left, right in ((pair["gold"], pair["answer"]), (pair["answer"], pair["gold"])):
            said = equal_answers(left, right)
            row[f"{'equal' if pair['equal'] else 'unequal'}_{'yes' if said else 'no'}"] += 1
            if said is not pair["equal"]:
                confused.append(
                    {"category": pair["category"], "gold": left, "answer": right, "label": pair["equal"]}
                )
    return {
        "pairs": sum(sum(row.values()) for row in table.values()) // 2,
        "table": table,
        "confused": confused,
    }


def cost() -> Found:
    """Seconds: to start the process, and of comparisons with it warm; exact ones do without it."""
    algebra.close()
    started = time.perf_counter()
    equal_answers("x + x + 7", "2x + 7")
    start = time.perf_counter() - started
    asked = [(f"x^2+{n}x+{n}", f"{n}+{n}x+x^2") for n in range(60)]
    asked += [(f"{n}\\sqrt{{2}}", f"\\sqrt{{{2 * n * n + 1}}}") for n in range(2, 62)]
    warm, exact = (
        [_timed(*pair) for pair in asked],
        [_timed(f"\\frac{{{n}}}{{7}}", f"{n}/8") for n in range(500)],
    )
    quantiles = statistics.quantiles(warm, n=20)
    return {
        "start": round(start, 2),
        "algebra_median": round(statistics.median(warm), 4),
        "algebra_p95": round(quantiles[-1], 4),
        "exact_median": round(statistics.median(exact), 6),
    }


def _timed(left: str, right: str) -> float:
    started = time.perf_counter()
    equal_answers(left, right)
    return time.perf_counter() - started


def table(found: Found) -> str:
    """The results as Markdown."""
    lines = ["# Comparing answers", "", "`python -m benchmarks.grading --data DIR` writes this file.", ""]
    if found.get("gold"):
        lines += [
            "## Gold answers",
            "",
            "| benchmark | solutions | right | written otherwise | right | other questions' answers | equal |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        lines += [_gold_row(name, row) for name, row in found["gold"].items()]
        lines += ["", "Not right, and answers of other questions that count as equal:", ""]
        lines += [line for name, row in found["gold"].items() for line in _exceptions(name, row)] or [
            "- none"
        ]
    lines += [
        "",
        f"## Labelled pairs ({found['pairs']['pairs']}, each in both directions)",
        "",
        "| category | equal, found equal | found different | different, found different | found equal |",
        "|---|--:|--:|--:|--:|",
    ]
    rows = found["pairs"]["table"]
    lines += [
        f"| {name} | " + " | ".join(str(row[key]) for key in FOUND) + " |" for name, row in rows.items()
    ]
    lines += [
        "| **all** | " + " | ".join(f"**{sum(row[key] for row in rows.values())}**" for key in FOUND) + " |",
        "",
    ]
    lines += [
        f"- confused ({one['category']}): `{one['gold']}` and `{one['answer']}`"
        for one in found["pairs"]["confused"]
    ]
    seconds = found["cost"]
    lines += [
        "",
        "## Cost",
        "",
        f"By algebra, the process warm: median {1000 * seconds['algebra_median']:.1f} ms, 95 % within "
        f"{1000 * seconds['algebra_p95']:.1f} ms; its start {seconds['start']:.1f} s. Exact comparisons: median "
        f"{1e6 * seconds['exact_median']:.0f} µs.",
    ]
    return "\n".join(lines) + "\n"


def _gold_row(name: str, row: Found) -> str:
    forms = row["otherwise"].values()
    n, right = sum(form["n"] for form in forms), sum(form["right"] for form in forms)
    shares = f"{row['right']} ({row['right'] / row['n']:.2%})", f"{right} ({right / max(1, n):.2%})"
    others = row["others"]
    return (
        f"| {name} | {row['n']} | {shares[0]} | {n} | {shares[1]} | {others['n']} | {len(others['equal'])} |"
    )


def _exceptions(name: str, row: Found) -> Iterator[str]:
    for one in row["wrong"]:
        yield f"- {name}, {one['id']}: gold `{one['gold']}`, solution `{one['answer']}` ({one['reason']})"
    for form, counts in row["otherwise"].items():
        for left, right in counts["wrong"]:
            yield f"- {name}, {form}: `{left}` and `{right}`"
    for left, right in row["others"]["equal"]:
        yield f"- {name}: `{left}` and `{right}` count as equal"


def main() -> int:
    """Measure, write, print; status 1 where the aim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the public files")
    parser.add_argument(
        "--to", type=Path, default=RESULTS, help="where the results go (default: %(default)s)"
    )
    given = parser.parse_args()
    kept = given.to / "grading.json"
    found: Found = json.loads(kept.read_text()) if kept.exists() else {}
    if given.data:
        found["gold"] = {}
        for name in NAMES:
            try:
                found["gold"][name] = gold(name, given.data)
            except ConfigError as error:
                print(f"{name}: left out: {error}")
    found |= {"pairs": confusion(), "cost": cost()}
    given.to.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (given.to / "table.md").write_text(table(found))
    print(table(found))
    met = all(row["right"] >= AIM * row["n"] for row in found.get("gold", {}).values())
    return 0 if met and not found["pairs"]["confused"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
