"""Measure how well answers are compared, with plain `math-verify` as the baseline.

`python -m benchmarks.grading [--data DIR]`

*Gold*: the gold answer of every question against the final answer of its published solution, as the task grades a
model's text; against the same answer written otherwise; and against gold answers of other questions, which should
differ.  Needs the public files (`math500.jsonl`, `gsm8k_test.jsonl`, ... or what `ensemblehub data fetch` writes).
*Pairs*: labelled pairs of answers, in both directions.  *Cost*: time of a comparison.

The baseline is the package as its README shows it: `verify(parse("$gold$"), parse(answer))`, default options.

Writes `results/grading/grading.json` and `table.md`.  Without --data the gold part of the last run is kept, with
--keep-cost its cost part.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import math_verify
from tqdm import tqdm

from ensemblehub.answers import algebra
from ensemblehub.answers.equality import equal_answers
from ensemblehub.data_files import located
from ensemblehub.errors import ConfigError
from ensemblehub.lab.tasks import task_named
from ensemblehub.lab.tasks.base import Item
from ensemblehub.lab.tasks.public import Mathematics

TESTS = Path(__file__).parents[1] / "tests" / "answers"
PAIRS = {"pairs": TESTS / "answer_pairs.jsonl", "more_pairs": TESTS / "more_answer_pairs.jsonl"}
TITLES = {"pairs": "of this project", "more_pairs": "labelled by somebody who had not seen the rules"}
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


# -- the baseline ------------------------------------------------------------------------------------------


@cache
def parsed(text: str) -> list[Any]:
    """The values that math-verify finds in a text; none where it raises."""
    try:
        return list(math_verify.parse(text))
    except Exception:
        return []


def baseline(gold: str, text: str) -> bool:
    """Whether math-verify finds the gold answer in a text."""
    try:
        return bool(math_verify.verify(parsed(_formula(gold)), parsed(text)))
    except Exception:
        return False


def baseline_equal(gold: str, answer: str) -> bool:
    """Whether two answers are equal to math-verify."""
    return baseline(gold, _formula(answer))


def _formula(answer: str) -> str:
    return answer if answer.startswith("$") and answer.endswith("$") else f"${answer}$"


# -- gold answers ------------------------------------------------------------------------------------------


def gold(name: str, data: Path) -> Found:
    """Gold answers against solutions, other ways to write them, and other questions' gold answers."""
    task = task_named(name, data)
    assert isinstance(task, Mathematics)
    items = {item.text: item for item in task.items("test" if task.share is None else "all")}
    wrong = list[Found]()
    solutions = list(published(items, task))
    for item, solution in solutions:
        grade = task.grade(item, solution)
        if not grade.correct:
            wrong.append({"id": item.id, "gold": item.answer, "answer": grade.answer, "reason": grade.reason})
    answers = [item.answer for item in items.values()]
    found = [baseline(item.answer, solution) for item, solution in tqdm(solutions, name)]
    return {
        "n": len(solutions),
        "right": len(solutions) - len(wrong),
        "baseline_right": sum(found),
        "wrong": wrong,
        "otherwise": {form: _forms(answers, write) for form, write in tqdm(OTHERWISE.items(), "otherwise")},
        "others": _others(answers),
    }


def published(items: dict[str, Item], task: Mathematics) -> Iterator[tuple[Item, str]]:
    """Every item with its solution as published."""
    for file in task.files(task.parts["test"]):
        for _, value in located(file):
            fields = {key.lower(): inner for key, inner in value.items()}
            question = next(fields[key] for key in QUESTIONS if key in fields)
            yield items[question], next(fields[key] for key in SOLUTIONS if key in fields)


def _forms(answers: list[str], write: Callable[[str], str]) -> Found:
    changed = [(answer, write(answer)) for answer in answers if write(answer) != answer]
    missed = [pair for pair in changed if not equal_answers(*pair)]
    return {
        "n": len(changed),
        "right": len(changed) - len(missed),
        "baseline_right": sum(baseline_equal(*pair) for pair in changed),
        "wrong": missed,
    }


def _others(answers: list[str]) -> Found:
    """Different texts that count as equal: to be looked at, as some of them are."""
    rng = random.Random(0)
    pairs = set[tuple[str, str]]()
    for answer in answers:
        others = rng.sample(answers, min(OTHERS, len(answers)))
        pairs |= {(answer, other) for other in others if other != answer}
    return {
        "n": len(pairs),
        "equal": sorted(pair for pair in pairs if equal_answers(*pair)),
        "baseline_equal": sorted(pair for pair in tqdm(pairs, "others") if baseline_equal(*pair)),
    }


# -- labelled pairs ----------------------------------------------------------------------------------------


def confusion(file: Path) -> Found:
    """The labelled pairs of a file by category, each in both directions."""
    pairs = [json.loads(line) for line in filter(None, file.read_bytes().split(b"\n"))]
    keys = (*FOUND, *(f"baseline_{key}" for key in FOUND))
    table = dict[str, dict[str, int]]()
    confused = []
    for pair in tqdm(pairs, file.stem):
        label = "equal" if pair["equal"] else "unequal"
        category = pair.get("category") or pair["kind"]
        row = table.setdefault(category, dict.fromkeys(keys, 0))
        for left, right in ((pair["gold"], pair["answer"]), (pair["answer"], pair["gold"])):
            found = equal_answers(left, right)
            row[f"{label}_{'yes' if found else 'no'}"] += 1
            row[f"baseline_{label}_{'yes' if baseline_equal(left, right) else 'no'}"] += 1
            if found is not pair["equal"]:
                wrong = {"category": category, "gold": left, "answer": right, "label": pair["equal"]}
                confused.append(wrong)
    return {"pairs": len(pairs), "table": table, "confused": confused}


# -- cost --------------------------------------------------------------------------------------------------


def cost() -> Found:
    """Seconds to start a process for algebra, of comparisons by it once warm, and of exact comparisons."""
    algebra.close()
    start = _timed("x + x + 7", "2x + 7")
    asked = [(f"x^2+{n}x+{n}", f"{n}+{n}x+x^2") for n in range(60)]
    asked += [(f"{n}\\sqrt{{2}}", f"\\sqrt{{{2 * n * n + 1}}}") for n in range(2, 62)]
    warm = [_timed(*pair) for pair in asked]
    exact = [_timed(f"\\frac{{{n}}}{{7}}", f"{n}/8") for n in range(500)]
    return {
        "start": round(start, 2),
        "algebra_median": round(statistics.median(warm), 4),
        "algebra_p95": round(statistics.quantiles(warm, n=20)[-1], 4),
        "exact_median": round(statistics.median(exact), 6),
    }


def _timed(left: str, right: str) -> float:
    started = time.perf_counter()
    equal_answers(left, right)
    return time.perf_counter() - started


def conditions() -> Found:
    """What the run was made with."""
    packages = ("math-verify", "latex2sympy2-extended", "sympy")
    return {"python": platform.python_version()} | {
        package: importlib.metadata.version(package) for package in packages
    }


# -- the table ---------------------------------------------------------------------------------------------


def table(found: Found) -> str:
    """The results as Markdown."""
    made = ", ".join(f"{name} {version}" for name, version in found["conditions"].items())
    lines = [
        "# Comparing answers",
        "",
        "`python -m benchmarks.grading --data DIR` writes this file. *Baseline*: `math-verify` alone, as its",
        f'README shows it, `verify(parse("$gold$"), parse(answer))`. Made with {made}.',
        "",
    ]
    if found.get("gold"):
        lines += [
            "## Gold answers",
            "",
            "| benchmark | solutions | right | baseline | written otherwise | right | baseline "
            "| other questions' answers | equal | baseline |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
            *(_gold_row(name, row) for name, row in found["gold"].items()),
            "",
            "Not right, and answers of other questions that count as equal:",
            "",
            *([line for name, row in found["gold"].items() for line in _exceptions(name, row)] or ["- none"]),
            "",
        ]
    for name, title in TITLES.items():
        lines += _pairs(title, found[name])
    seconds = found["cost"]
    lines += [
        "## Cost",
        "",
        f"By algebra, the process warm: median {1000 * seconds['algebra_median']:.1f} ms, 95 % within "
        f"{1000 * seconds['algebra_p95']:.1f} ms; its start {seconds['start']:.1f} s. Exact comparisons: median "
        f"{1e6 * seconds['exact_median']:.0f} µs.",
    ]
    return "\n".join(lines) + "\n"


def _gold_row(name: str, row: Found) -> str:
    forms = Counter[str]()
    for counts in row["otherwise"].values():
        forms.update({key: counts[key] for key in ("n", "right", "baseline_right")})
    others = row["others"]
    cells = (
        *(row["n"], _share(row["right"], row["n"]), _share(row["baseline_right"], row["n"])),
        *(forms["n"], _share(forms["right"], forms["n"]), _share(forms["baseline_right"], forms["n"])),
        *(others["n"], len(others["equal"]), len(others["baseline_equal"])),
    )
    return f"| {name} | {' | '.join(map(str, cells))} |"


def _share(right: int, n: int) -> str:
    return f"{right} ({right / max(1, n):.2%})"


def _pairs(title: str, found: Found) -> list[str]:
    keys = (*FOUND, "baseline_equal_no", "baseline_unequal_yes")
    totals = Counter[str]()
    for row in found["table"].values():
        totals.update(row)
    right = totals["equal_yes"] + totals["unequal_no"]
    baseline_right = totals["baseline_equal_yes"] + totals["baseline_unequal_no"]
    n = 2 * found["pairs"]
    return [
        f"## Pairs {title} ({found['pairs']}, each in both directions)",
        "",
        f"Told rightly: {_share(right, n)}; baseline {_share(baseline_right, n)}.",
        "",
        "| category | equal, found equal | found different | different, found different | found equal "
        "| baseline: equal, found different | different, found equal |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(f"| {name} | {_cells(row, keys)} |" for name, row in found["table"].items()),
        f"| **all** | {_cells(totals, keys)} |",
        "",
        *(
            f"- confused ({pair['category']}): `{pair['gold']}` and `{pair['answer']}`"
            for pair in found["confused"]
        ),
        *([""] if found["confused"] else []),
    ]


def _cells(row: dict[str, int], keys: Iterable[str]) -> str:
    return " | ".join(str(row[key]) for key in keys)


def _exceptions(name: str, row: Found) -> Iterator[str]:
    for miss in row["wrong"]:
        yield f"- {name}, {miss['id']}: gold `{miss['gold']}`, solution `{miss['answer']}` ({miss['reason']})"
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
    parser.add_argument("--to", type=Path, default=RESULTS, help="output folder (default: %(default)s)")
    parser.add_argument("--keep-cost", action="store_true", help="keep the cost part of the last run")
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
    found |= {
        **{name: confusion(file) for name, file in PAIRS.items()},
        "cost": found["cost"] if given.keep_cost else cost(),
        "conditions": conditions(),
    }
    given.to.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (given.to / "table.md").write_text(table(found))
    print(table(found))
    met = all(row["right"] >= AIM * row["n"] for row in found.get("gold", {}).values())
    return 0 if met and not any(found[name]["confused"] for name in PAIRS) else 1


if __name__ == "__main__":
    raise SystemExit(main())
