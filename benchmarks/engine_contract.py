"""The engines' contract as a table: `python -m benchmarks.engine_contract`, in an environment that has the engines.

Runs `tests/generators/test_contract.py` and keeps, for every engine that ran, which tests passed and which found the
engine refusing what it cannot do, in `results/engines/contract.json`; engines that are not installed here keep what was
found of them before.  The table is written into `docs/engines.md`.  `make engines` runs it in every environment.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from benchmarks import engines

RESULT = Path("results/engines/contract.json")
PAGE = Path("docs/engines.md")
BEGIN, END = "<!-- contract: written by `python -m benchmarks.engine_contract` -->", "<!-- /contract -->"
TITLES = {
    "echo": "`echo`",
    "hf": "`hf`",
    "numpy": "`numpy`",
    "llama_cpp": "`llama_cpp`",
    "vllm": "`vllm`",
    "openai": "`openai`, this project's server",
    "openai_vllm": "`openai`, vLLM's server",
    "openai_bare": "`openai`, nothing declared",
}
MARKS = {"passed": "yes", "refused": "refused", "failed": "**fails**"}
Found = dict[str, dict[str, Any]]


class Recorder:
    """A pytest plugin: what came out of the contract's tests, by engine and test."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, str]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take one test's outcome down."""
        told = dict(report.user_properties).get("contract")
        if report.when != "call" or told is None:
            return
        engine, ability, title, does = told
        test = report.nodeid.rpartition("::")[2].partition("[")[0]
        outcome = "failed" if report.failed else "passed" if does else "refused"
        self.rows.setdefault(engine, []).append(
            {"test": test, "ability": ability, "title": title, "outcome": outcome}
        )


def table(found: Found) -> str:
    """Abilities and tests down, engines across."""
    names = [name for name in TITLES if name in found]
    tests = {row["test"]: row for name in names for row in found[name]["tests"]}
    lines = [
        "| | test | " + " | ".join(TITLES[name] for name in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    ability = ""
    for test, row in tests.items():
        outcomes = {
            name: {entry["test"]: entry["outcome"] for entry in found[name]["tests"]}.get(test)
            for name in names
        }
        cells = [MARKS.get(outcomes[name] or "", "not run") for name in names]
        shown = "" if row["ability"] == ability else f"*{row['ability']}*"
        lines.append(f"| {shown} | {row['title']} (`{test}`) | " + " | ".join(cells) + " |")
        ability = row["ability"]
    run = [
        f"{TITLES[name]} {found[name]['date']} ({', '.join(map(' '.join, found[name]['versions'].items()))})"
        for name in names
        if found[name]["versions"]
    ]
    return "\n".join(
        [*lines, "", f"Last run: {'; '.join(run)}. Each on a CPU, in float32, with the built-in mentor."]
    )


def written(page: str, found: Found) -> str:
    """The page with the table between its marks, which it has."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(found)}\n{END}{after}"


def main() -> int:
    """Run the tests and keep what came out; the exit status is pytest's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "engine", nargs="*", default=list(engines.NAMES), help=f"of {', '.join(engines.NAMES)} (all)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(), help="the folder that holds results/ and docs/ (here)"
    )
    options = parser.parse_args()
    if unknown := set(options.engine) - set(engines.NAMES):
        parser.error(f"no such engine: {', '.join(sorted(unknown))}")
    recorder = Recorder()
    wanted = " or ".join(f"[{name}]" for name in options.engine)
    status = pytest.main(
        ["-p", "no:cacheprovider", "tests/generators/test_contract.py", "-k", wanted], [recorder]
    )
    for name in options.engine:
        if lacking := engines.missing(name):
            print(f"{name}: not run, {lacking}")
    result, page = options.out / RESULT, options.out / PAGE
    found: Found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    for name, tests in recorder.rows.items():
        versions = {"python": platform.python_version(), **engines.versions(name)}
        found[name] = {"date": date.today().isoformat(), "versions": versions, "tests": tests}
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({name: found[name] for name in TITLES if name in found}, indent=1) + "\n")
    page.write_text(written(page.read_text(encoding="utf-8"), found), encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
