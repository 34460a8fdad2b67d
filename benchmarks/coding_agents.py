"""Codex CLI and Claude Code against this server: `python -m benchmarks.coding_agents CODEX CLAUDE`.

Both are asked, without a terminal, what a file says: of a model, and of a Tandem whose intern it is. The
model is scripted: it calls the agent's own shell tool, and answers once it has read the tool's output. So a
run that ends with the answer shows that the agent's requests are understood, that it runs the streamed tool
call, and that its next request, with the call and its output, is understood too. Then both are asked of a
model that the server does not know, whose error they show, and are interrupted while a slow one writes, which
stops it. The arguments are the programs of `npm install @openai/codex @anthropic-ai/claude-code`. Codex runs
without its sandbox, which does not work from a temporary folder.

Writes `coding_agents.txt`, the transcript.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx

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
        {
            "name": "slow",
            "engine": "caller:CallingEngine",
            "replies": {"": "word " * 600},
            "delay": 0.2,
            "calls": {"no_tool": {}},
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
UNKNOWN, SLOW = "nobody", "slow"
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
        agents = [Codex(given.codex.absolute(), url, home), Claude(given.claude.absolute(), url, home)]
        parts = [
            part for agent in agents for part in (*map(agent.answered, MODELS), agent.told(), agent.left())
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


class Agent(ABC):
    """A coding agent, asked in the folder `work`.

    Attributes:
        route: what it asks.
        refusal: its words for a model that is not there.
    """

    route: str
    refusal: str

    def __init__(self, program: Path, url: str, home: Path) -> None:
        self.program, self.url, self.home, self.work = program, url, home, home / "work"

    @abstractmethod
    def asked(self, model: str) -> tuple[str, list[str], dict[str, str]]:
        """Its settings as a user writes them, its arguments, and what it finds in its environment."""

    @abstractmethod
    def found(self, events: Sequence[Mapping[str, Any]]) -> tuple[list[Any], bool]:
        """What it says that it did, and whether it read the file and gave the answer."""

    def answered(self, model: str) -> str:
        """The transcript of a question that a model answers by the agent's shell."""
        settings, command, env = self.asked(model)
        done = self.run(command, env)
        if done.returncode:
            raise SystemExit(
                f"{self.program} ended with {done.returncode}: {done.stdout}{done.stderr}"[-4000:]
            )
        return self.transcript(settings, command, *self.found(events_of(done.stdout)))

    def told(self) -> str:
        """The transcript of a question to a model that the server does not know."""
        settings, command, env = self.asked(UNKNOWN)
        done = self.run(command, env)
        passed = self.refusal in done.stdout + done.stderr
        return self.transcript(settings, command, [self.refusal] if passed else [], passed)

    def left(self) -> str:
        """The transcript of an interrupt while a model writes: the server has stopped it."""
        settings, command, env = self.asked(SLOW)
        before = self.stopped()
        process = subprocess.Popen(
            [str(self.program), *command],
            cwd=self.work,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        passed = until(lambda: fetched(f"{self.url}/status")["running"] > 0)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        passed &= until(lambda: self.stopped() > before and not fetched(f"{self.url}/status")["running"])
        said = ["interrupted; the server: disconnected"] if passed else []
        return self.transcript(settings, command, said, passed)

    def stopped(self) -> int:
        """How many answers of the slow model were left."""
        text = httpx.get(f"{self.url}/metrics").text
        counts = re.findall(rf'requests_total\{{.*model="{SLOW}",outcome="disconnected"\}} (\S+)', text)
        return int(sum(map(float, counts)))

    def run(self, command: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [str(self.program), *command],
            cwd=self.work,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def transcript(self, settings: str, command: Sequence[str], said: Sequence[Any], passed: bool) -> str:
        """A run as text."""
        version = self.run(["--version"], {}).stdout.strip()
        shown = " ".join(f"'{part}'" if " " in part else part for part in (self.program.name, *command))
        lines = [
            f"## {version}, POST {self.route}: {'passed' if passed else 'FAILED'}",
            "",
            settings.strip(),
            "",
        ]
        return "\n".join([*lines, f"$ {shown}", *(json.dumps(part, ensure_ascii=False) for part in said)])


class Codex(Agent):
    """Codex CLI."""

    route = "/v1/responses"
    refusal = f"unknown model '{UNKNOWN}'; there is: agent, ensemble, mentor, slow"

    def asked(self, model: str) -> tuple[str, list[str], dict[str, str]]:
        settings = CODEX.format(url=self.url, model=model)
        (self.home / "config.toml").write_text(settings)
        command = ["exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", "--json", QUESTION]
        return settings, command, {"CODEX_HOME": str(self.home)}

    def found(self, events: Sequence[Mapping[str, Any]]) -> tuple[list[Any], bool]:
        said = [event["item"] for event in events if event["type"] == "item.completed"]
        kinds = {item["type"]: item for item in said}
        passed = kinds.get("agent_message", {}).get("text") == ANSWER
        return said, passed and NOTE in kinds.get("command_execution", {}).get("aggregated_output", "")


class Claude(Agent):
    """Claude Code."""

    route = "/v1/messages"
    refusal = f"There's an issue with the selected model ({UNKNOWN}). It may not exist"

    def asked(self, model: str) -> tuple[str, list[str], dict[str, str]]:
        env = {"ANTHROPIC_BASE_URL": self.url, "ANTHROPIC_API_KEY": "none", "ANTHROPIC_MODEL": model}
        env |= {"ANTHROPIC_SMALL_FAST_MODEL": model, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
        command = [
            "-p",
            QUESTION,
            "--allowedTools",
            "Bash(cat:*)",
            "--output-format",
            "stream-json",
            "--verbose",
        ]
        settings = "\n".join(f"{name}={value}" for name, value in env.items())
        return settings, command, {**env, "CLAUDE_CONFIG_DIR": str(self.home / "claude")}

    def found(self, events: Sequence[Mapping[str, Any]]) -> tuple[list[Any], bool]:
        said = [event["message"]["content"] for event in events if event["type"] in ("assistant", "user")]
        blocks = [block for content in said for block in content]
        results = [block.get("content") for block in blocks if block["type"] == "tool_result"]
        (last,) = [event for event in events if event["type"] == "result"]
        return blocks, NOTE in results and last["result"] == ANSWER


def events_of(text: str) -> list[dict[str, Any]]:
    """The lines that are JSON objects."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def fetched(url: str) -> Any:
    """What a route says."""
    return httpx.get(url).json()


def until(holds: Callable[[], bool], seconds: float = 60) -> bool:
    """Wait until something holds; whether it does in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


if __name__ == "__main__":
    main()
