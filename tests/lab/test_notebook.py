"""The notebook of examples/ runs from top to bottom, as a script, and the `.ipynb` beside it is the same."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "notebook.py"
# Jupyter runs cells inside a running event loop, where asyncio.run is refused.
IN_A_LOOP = """
import asyncio, runpy, sys

async def main():
    runpy.run_path(sys.argv[1], run_name="__main__")

asyncio.run(main())
"""


def test_the_notebook_runs(tmp_path):
    pytest.importorskip("matplotlib")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", IN_A_LOOP, str(NOTEBOOK)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for said in (
        "insight: Goal: mugs",
        "MFLOPs",
        "-> enough]",
        "difference, points",
        "written: longest.yaml",
    ):
        assert said in done.stdout
    assert "FAILED" not in done.stdout
    assert done.stdout.count("ok    ") == 6
    cells = NOTEBOOK.read_text().split("\n# %%")[1:]
    assert [cell.splitlines()[1] for cell in cells if cell.startswith(" [markdown]")][1:] == [
        "# ## Ask",
        "# ## Ride",
        "# ## Bench",
        "# ## Compare",
        "# ## A strategy of your own",
    ]


def test_the_notebook_of_jupyter_has_the_cells_of_the_script():
    jupytext = pytest.importorskip("jupytext")
    script, notebook = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(file).cells]
        for file in (NOTEBOOK, NOTEBOOK.with_suffix(".ipynb"))
    )
    assert script == notebook, "make notebook"
    assert len(script) > 10


@pytest.mark.parametrize(
    ("installed", "source", "expected"),
    [
        (True, None, []),
        (False, None, ["ensemblehub[eval]"]),
        (False, "some.whl[eval]", ["some.whl[eval]"]),
    ],
)
def test_the_first_cell_installs_the_package_where_it_is_missing(monkeypatch, installed, source, expected):
    cells = json.loads(NOTEBOOK.with_suffix(".ipynb").read_text())["cells"]
    first = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if installed else None)
    monkeypatch.delenv("ENSEMBLEHUB_SOURCE", raising=False)
    if source:
        monkeypatch.setenv("ENSEMBLEHUB_SOURCE", source)
    exec(first, {})
    assert commands == [[sys.executable, "-m", "pip", "install", "-q", name] for name in expected]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_link_to_colab_names_the_notebook(page):
    (path,) = re.findall(
        r"https://colab\.research\.google\.com/github/OWNER/REPO/blob/main/([\w/.]+)",
        (ROOT / page).read_text(),
    )
    assert ROOT / path == NOTEBOOK.with_suffix(".ipynb")
