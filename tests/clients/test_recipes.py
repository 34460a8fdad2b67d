"""The recipes of docs/recipes.md run as they are written, with the server's address put in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llm", reason="the clients have environments of their own: make test-clients")

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
RECIPES = dict(re.findall(r"^## (.+)\n((?:.*\n)+?)(?=^## |\Z)", PAGE, re.MULTILINE))
PYTHON = [name for name, text in RECIPES.items() if "```python" in text]


def block(name, language, url):
    found = re.search(rf"```{language}\n(.*?)```", RECIPES[name], re.DOTALL)[1]
    return found.replace("http://127.0.0.1:8000", url.removesuffix("/v1"))


def run(command, folder, **settings):
    env = {**os.environ, **settings, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_these_are_the_recipes():
    assert {"openai", "anthropic", "LiteLLM", "LangChain", "LlamaIndex", "pydantic-ai"} == set(PYTHON)
    assert {"llm", "lm-evaluation-harness", "inspect_ai", "Open WebUI", "Codex", "Claude Code"} <= set(
        RECIPES
    )
    for agent in ("Codex", "Claude Code"):  # no package of Python runs these
        assert "`python -m benchmarks.coding_agents CODEX CLAUDE`" in RECIPES[agent]


@pytest.mark.parametrize("name", PYTHON)
def test_a_recipe_in_python_answers(name, url):
    code = block(name, "python", url)
    for package in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
        pytest.importorskip(package)  # LlamaIndex and LiteLLM cannot be installed together
    names = {}
    exec(compile(code, name, "exec"), names)
    assert names["answer"].strip() == "It is 4."


@pytest.mark.client("curl", "answers")
def test_curl_answers(url, tmp_path):
    assert "It is 4." in run(block("curl", "bash", url), tmp_path)


@pytest.mark.client("llm", "answers")
def test_llm_answers(url, tmp_path):
    (tmp_path / "extra-openai-models.yaml").write_text(block("llm", "yaml", url))
    assert run(block("llm", "bash", url), tmp_path, LLM_USER_PATH=str(tmp_path)).strip() == "It is 4."


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes


@task
def sums():
    return Task(dataset=[Sample(input="2 + 2?", target="4")], scorer=includes())
"""


def test_inspect_ai_answers(url, tmp_path):
    inspect_log = pytest.importorskip("inspect_ai.log")
    (tmp_path / "TASK.py").write_text(TASK)
    run(block("inspect_ai", "bash", url), tmp_path, INSPECT_DISPLAY="none")
    (log,) = map(inspect_log.read_eval_log, (tmp_path / "logs").iterdir())
    (sample,) = log.samples
    assert sample.output.completion == "It is 4."
    assert [score.metrics["accuracy"].value for score in log.results.scores] == [1.0]
