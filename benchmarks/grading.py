"""How far the mathematical grading can be trusted: `python -m benchmarks.grading --data FOLDER`.

Gold solutions of the public benchmarks against their gold answers, and the project's labelled pairs.  FOLDER has
math500.jsonl, gsm8k_test.jsonl, aime24.json and amc23.json in their public forms; one that is not there is said to be
missing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ensemblehub.data import BENCHMARKS, converted, located
from ensemblehub.errors import EnsembleHubError
from ensemblehub.metrics import wilson_interval
from ensemblehub.tasks.answers import equal_answers
from ensemblehub.tasks.base import task_named

RESULTS = Path("results/grading")
PAIRS = Path("tests/tasks/answer_pairs.jsonl")
TASKS = ("math500", "gsm8k", "aime24", "amc23")
FILES = {"math500": "math500.jsonl", "gsm8k": "gsm8k_test.jsonl", "aime24": "aime24.json", "amc23": "amc23.json"}
AIM = 0.995


def gold(name: str, folder: Path) -> dict[str, Any]:
    """Every gold solution of a benchmark, graded against its gold answer."""
    data = folder / FILES[name]
    task = task_named(name, data)
    split = "all" if name == "math500" else "test"
    items = {item.text: item for item in task.items(split)}
    rows = located(data)
    solutions = [converted(BENCHMARKS[name], where, value) for where, value in rows]
    failed = []
    with ThreadPoolExecutor(4) as threads:
        texts = [value["answer"] if name == "gsm8k" and "answer" in value else None for _, value in rows]
        asked = [(items[one["input"]], text or one["output"]) for one, text in zip(solutions, texts, strict=True)]
        for (item, _), grade in zip(asked, threads.map(lambda pair: task.grade(*pair), asked), strict=True):
            if not grade.correct:
                failed.append({"id": item.id, "gold": item.answer, "understood": grade.answer})
    n = len(asked)
    return {
        "task": name,
        "n": n,
        "right": n - len(failed),
        "interval": wilson_interval(n - len(failed), n),
        "failed": failed,
    }


def pairs() -> dict[str, Any]:
    """The labelled pairs: a confusion table, by kind too, and what was confused."""
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    started = time.perf_counter()
    said = [equal_answers(row["gold"], row["answer"]) for row in rows]
    seconds = time.perf_counter() - started
    table = Counter((row["equal"], one) for row, one in zip(rows, said, strict=True))
    wrong = [{**row, "said": one} for row, one in zip(rows, said, strict=True) if row["equal"] != one]
    kinds = Counter(row["kind"] for row in rows)
    confused = Counter(row["kind"] for row in wrong)
    return {
        "n": len(rows), "equal, said equal": table[True, True], "equal, said different": table[True, False],
        "different, said equal": table[False, True], "different, said different": table[False, False],
        "milliseconds a pair": round(1e3 * seconds / len(rows), 1), "confused": wrong,
        "kinds": {kind: {"n": n, "confused": confused[kind]} for kind, n in kinds.items()},
    }  # fmt: skip


def markdown(found: list[dict[str, Any]], missing: list[str], labelled: dict[str, Any]) -> str:
    """What a person reads."""
    lines = ["# Mathematical grading", "", "Gold solutions, graded against gold answers:", ""]
    lines += ["| benchmark | n | right | share (95 %) | not right |", "|---|---|---|---|---|"]
    for one in found:
        low, high = one["interval"]
        failed = "; ".join(f"`{row['id']}`: {row['gold']} was read as {row['understood']}" for row in one["failed"])
        share = f"{one['right'] / one['n']:.2%} [{low:.2%}, {high:.2%}]"
        lines.append(f"| {one['task']} | {one['n']} | {one['right']} | {share} | {failed or 'none'} |")
    if missing:
        lines += ["", f"Not there, not graded: {', '.join(missing)}."]
    lines += [
        "",
        f"Labelled pairs of the project's own (`{PAIRS}`), {labelled['milliseconds a pair']} ms each:",
        "",
        "| | said equal | said different |",
        "|---|---|---|",
        f"| equal | {labelled['equal, said equal']} | {labelled['equal, said different']} |",
        f"| different | {labelled['different, said equal']} | {labelled['different, said different']} |",
        "",
        "Confused: "
        + ("; ".join(f"{row['gold']} and {row['answer']}" for row in labelled["confused"]) or "none")
        + ".",
        "",
        "| kind | pairs | confused |",
        "|---|---|---|",
        *(f"| {kind} | {one['n']} | {one['confused']} |" for kind, one in labelled["kinds"].items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grading", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the files (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result (default: %(default)s)")
    options = parser.parse_args()
    found, missing = [], []
    for name in TASKS:
        try:
            found.append(gold(name, options.data))
        except EnsembleHubError as error:
            missing.append(f"{name} ({error})")
    labelled = pairs()
    options.out.mkdir(parents=True, exist_ok=True)
    text = markdown(found, missing, labelled)
    (options.out / "mathematics.md").write_text(text, encoding="utf-8")
    record = {"gold": found, "missing": missing, "pairs": labelled}
    (options.out / "mathematics.json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(text, end="")


if __name__ == "__main__":
    main()
