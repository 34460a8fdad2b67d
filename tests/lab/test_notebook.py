"""The notebook of examples/ runs from top to bottom, as a script."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.py"


def test_the_notebook_runs(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(NOTEBOOK.parents[1]), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(NOTEBOOK)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
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
