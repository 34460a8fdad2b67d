"""The table of clients: `python -m benchmarks.client_cells [TESTS]`, in every environment of `make test-clients`.

Runs `tests/clients` (or what is named: `tests/api/test_lm_eval.py` in the environment of the tests) and keeps which
cells (answers, streams, tools, errors, cancels) of which client a test showed, in `results/benchmarks/clients.json`;
clients that are not installed here keep what was found of them before.  The table is written into `docs/clients.md`.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Generator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

RESULT, PAGE = Path("results/benchmarks/clients.json"), Path("docs/clients.md")
BEGIN, END = "<!-- clients: written by `python -m benchmarks.client_cells` -->", "<!-- /clients -->"
AI_SDK = Path("tests/clients/ai_sdk/package.json")
CELLS = ("answers", "streams", "tools", "errors", "cancels")
PACKAGES = {  # whose version is told, where the client's name is not the package's
    "AI SDK": "ai",
    "LiteLLM": "litellm",
    "LiteLLM's proxy": "litellm",
    "LangChain": "langchain-openai",
    "LlamaIndex": "llama-index-llms-openai-like",
    "lm-evaluation-harness": "lm-eval",
    "Open WebUI": "open-webui",
    "pydantic-ai": "pydantic-ai-slim",
}
Found = dict[str, dict[str, Any]]


class Recorder:
    """A pytest plugin: whether every test of a client's cell passed."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, bool]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Take one test's outcome down."""
        report = yield
        mark = item.get_closest_marker("client")
        if report.when == "call" and mark is not None and not report.skipped:
            client, *cells = mark.args
            kept = self.cells.setdefault(client, {})
            kept.update({cell: kept.get(cell, True) and report.passed for cell in cells})
        return report


def table(found: Found) -> str:
    """Clients down, cells across."""
    lines = [
        "| client | version | " + " | ".join(CELLS) + " | run |",
        "|---|---|" + "---|" * (len(CELLS) + 1),
    ]
    marks = {True: "yes", False: "**fails**", None: "–"}
    for client, row in sorted(found.items(), key=lambda item: item[0].lower()):
        cells = [marks[row["cells"].get(cell)] for cell in CELLS]
        version = f"{PACKAGES.get(client, '')} {row['version']}".strip()
        lines.append(f"| {client} | {version} | " + " | ".join(cells) + f" | {row['date']} |")
    return "\n".join(lines)


def written(page: str, found: Found) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(found)}\n{END}{rest.partition(END)[2]}"


def version_of(client: str) -> str:
    """The installed version of a client; empty for a program of the system."""
    if client == "AI SDK":
        return json.loads(AI_SDK.read_text(encoding="utf-8"))["dependencies"]["ai"]
    try:
        return importlib.metadata.version(PACKAGES.get(client, client))
    except importlib.metadata.PackageNotFoundError:
        return ""


def main() -> int:
    """Run the tests, keep what came out and write the table; the exit status is pytest's."""
    recorder = Recorder()
    status = pytest.main(["-p", "no:cacheprovider", *(sys.argv[1:] or ["tests/clients"])], [recorder])
    found: Found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for client, cells in recorder.cells.items():
        kept = found.get(client, {"cells": {}})["cells"]
        about = {"version": version_of(client), "date": date.today().isoformat()}
        found[client] = {**about, "cells": {**kept, **cells}}
    RESULT.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
