"""Codex CLI and Claude Code against this server: `python -m benchmarks.coding_agents CODEX CLAUDE`.

Both are asked, without a terminal, what a file says: of a model, and of a Tandem whose intern it is.  The model is
scripted: it calls the agent's own shell tool, and
answers once it has read the tool's output.  So a run that ends with the answer shows that the agent's requests are
understood, that it runs the streamed tool call, and that its next request, with the call and its output, is
understood too.  The arguments are the programs of `npm install @openai/codex @anthropic-ai/claude-code`.  Codex
runs without its sandbox, which does not work from a temporary folder.

Writes `coding_agents.txt`, the transcript.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import server_load as load

QUESTION = "What does note.txt say?"
NOTE = "42 apples"
ANSWER = "The file says: 42 apples."
READ = "cat note.txt"
CONFIG = {
    "model_specs": [
        {
            "name": "agent",
            "engine": "caller:CallingEngine",
            "replies": {NOTE: ANSWER, "": "No tool has answered."},
            "calls": {"exec_command": {"cmd": READ}, "Bash": {"command": READ, "description": "Read it"}},
        },
        {"name": "mentor", "engine": "echo", "replies": {"": "Goal: read the note."}, "parameters": 10**9},
    ],
    "ensemble": {
        "output_aggregation_method": "tandem",
        "output_aggregation_params": {
            "mentor": "mentor",
            "intern": "agent",
            "profile": "qwen-coder",
            "levels": {"low": 4},
            "judge": "fixed:low",
        },
    },
}
MODELS = ("agent", "ensemble")
CODEX = """model = "{model}"
model_provider = "ensemblehub"
web_search = "disabled"

[model_providers.ensemblehub]
name = "ensemblehub"
base_url = "{url}/v1"
wire_api = "responses"
"""
_PATHS = os.pathsep.join([str(Path.cwd()), str(Path(__file__).parents[1] / "tests" / "clients")])


def main() -> None:
    """Run both and keep what they print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("codex", type=Path, help="the program `codex`")
    parser.add_argument("claude", type=Path, help="the program `claude`")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, load.server(CONFIG, PYTHONPATH=_PATHS) as (url, _):
        home = Path(folder)
        work = home / "work"
        work.mkdir()
        (work / "note.txt").write_text(NOTE + "\n")
        parts = [
            agent(program.absolute(), url, home, work, model)
            for agent, program in ((codex, given.codex), (claude, given.claude))
            for model in MODELS
        ]
        text = (
            "\n\n".join(parts)
            .replace(str(work), "WORK")
            .replace(str(home), "HOME")
            .replace(url, "http://SERVER")
        )
    load.RESULTS.mkdir(parents=True, exist_ok=True)
    (load.RESULTS / "coding_agents.txt").write_text(text + "\n")
    print(text)


def codex(program: Path, url: str, home: Path, work: Path, model: str) -> str:
    """The transcript of Codex CLI."""
    settings = CODEX.format(url=url, model=model)
    (home / "config.toml").write_text(settings)
    command = ["exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", "--json", QUESTION]
    done = run([str(program), *command], work, {"CODEX_HOME": str(home)})
    events = [json.loads(line) for line in done.splitlines() if line.startswith("{")]
    said = [event["item"] for event in events if event["type"] == "item.completed"]
    kinds = {item["type"]: item for item in said}
    passed = kinds.get("agent_message", {}).get("text") == ANSWER
    passed &= NOTE in kinds.get("command_execution", {}).get("aggregated_output", "")
    title = f"{run([str(program), '--version'], work, {}).strip()}, POST /v1/responses"
    return transcript(title, settings, ["codex", *command], said, passed)


def claude(program: Path, url: str, home: Path, work: Path, model: str) -> str:
    """The transcript of Claude Code."""
    settings = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "none", "ANTHROPIC_MODEL": model}
    settings |= {"ANTHROPIC_SMALL_FAST_MODEL": model, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    command = ["-p", QUESTION, "--allowedTools", "Bash(cat:*)", "--output-format", "stream-json", "--verbose"]
    done = run([str(program), *command], work, {**settings, "CLAUDE_CONFIG_DIR": str(home / "claude")})
    events = [json.loads(line) for line in done.splitlines() if line.startswith("{")]
    said = [event["message"]["content"] for event in events if event["type"] in ("assistant", "user")]
    blocks = [block for content in said for block in content]
    results = [block.get("content") for block in blocks if block["type"] == "tool_result"]
    (last,) = [event for event in events if event["type"] == "result"]
    title = f"{run([str(program), '--version'], work, {}).strip()}, POST /v1/messages"
    passed = NOTE in results and last["result"] == ANSWER
    shown = "\n".join(f"{name}={value}" for name, value in settings.items())
    return transcript(title, shown, ["claude", *command], blocks, passed)


def run(command: Sequence[str], work: Path, env: Mapping[str, str]) -> str:
    """What a program prints; its errors are shown where it fails."""
    surroundings = {**os.environ, **env}
    done = subprocess.run(
        command,
        cwd=work,
        env=surroundings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise SystemExit(
            f"{command[0]} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout


def transcript(title: str, settings: str, command: Sequence[str], said: Sequence[Any], passed: bool) -> str:
    """A run as text."""
    lines = [f"## {title}: {'passed' if passed else 'FAILED'}", "", settings.strip(), ""]
    lines += ["$ " + " ".join(f"'{part}'" if " " in part else part for part in command)]
    return "\n".join(lines + [json.dumps(part, ensure_ascii=False) for part in said])


if __name__ == "__main__":
    main()
