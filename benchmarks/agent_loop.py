"""An agent's loop on a real model through the server: `python -m benchmarks.agent_loop FILE.gguf...`.

OpenAI's SDK asks a `llama_cpp` member, at temperature 0, for what only a tool can know: what a file of a temporary
folder says.  While the model calls the tool, the tool runs and its result goes back.  A run counts as passed where the
tool read the file and the answer has what it says.  It allows one call a turn, as the models repeat a call until
`max_tokens` otherwise.  Three kinds of agents:

- output tool: every turn has to call (`required`), and a second tool takes the answer, as pydantic-ai asks for a type;
- output format: the first turn has to call, and the answer keeps to a `response_format`;
- free: `auto` in every turn, and the first text ends it.

Writes `agent_loop.txt`, the transcript.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openai import OpenAI

from benchmarks import server_load as load

FILES = {"fruit.txt": "There are 42 apples in the cellar.", "tools.txt": "The saw hangs behind the door."}
QUESTIONS = {
    "How many apples does the file fruit.txt say are in the cellar?": ("fruit.txt", "42"),
    "According to the file tools.txt, where does the saw hang?": ("tools.txt", "behind the door"),
}
TURNS = 4


def tool(name: str, description: str, argument: str) -> dict[str, Any]:
    """A function with one argument, a string."""
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    about = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": about}


READ = tool("read_file", "Read a file of the working folder and return its text.", "name")
FINAL = tool("final_answer", "Give the answer to the user's question, and end.", "answer")
SCHEMA = FINAL["function"]["parameters"] | {"additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
# What the first turn is asked with, and every other.
WAYS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "output tool": ({"tools": [READ, FINAL], "tool_choice": "required"},) * 2,
    "output format": ({"tools": [READ], "tool_choice": "required"}, {"response_format": FORM}),
    "free": ({"tools": [READ], "tool_choice": "auto"},) * 2,
}


def main() -> None:
    """Run every question on every model and keep the transcript."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="models, whose tokenizers may lie beside them")
    parser.add_argument("--tool-parser", default="hermes", help="how they write calls (default: hermes)")
    given = parser.parse_args()
    where, parts = load.conditions(), []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, text in FILES.items():
            (work / name).write_text(text)
        for file in given.files:
            options = {"path": str(file), "tool_parser": given.tool_parser, "n_ctx": 2048, "threads": 1}
            config = {"model_specs": [{"name": "model", "engine": "llama_cpp", **options}]}
            with (
                load.server(config) as (url, _),
                OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
            ):
                parts += [f"## {file.parent.name}, llama_cpp, 1 thread, temperature 0"]
                parts += [run(client, work, ask, way) for way in WAYS for ask in QUESTIONS]
    text = "\n\n".join([*parts, load.told(where)])
    load.RESULTS.mkdir(parents=True, exist_ok=True)
    (load.RESULTS / "agent_loop.txt").write_text(text + "\n")
    print(text)


def run(client: OpenAI, work: Path, question: str, way: str) -> str:
    """One question from start to end, as text."""
    messages: list[Any] = [{"role": "user", "content": question}]
    lines, was_read, answer = [f"user: {question}"], [], None
    while answer is None and len(was_read) < TURNS:
        asked = {"max_tokens": 128, "temperature": 0, **WAYS[way][min(len(was_read), 1)]}
        if "tools" in asked:
            asked["parallel_tool_calls"] = False
        message = client.chat.completions.create(model="model", messages=messages, **asked).choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            answer = message.content or ""
            lines.append(f"assistant: {answer}")
            continue
        (call,) = message.tool_calls
        lines.append(f"assistant calls {call.function.name}({call.function.arguments})")
        if call.function.name == "final_answer":
            answer = call.function.arguments
            continue
        was_read.append(read(work, call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": was_read[-1]})
        lines.append(f"tool: {was_read[-1]}")
    file, expected = QUESTIONS[question]
    passed = FILES[file] in was_read and expected in (answer or "")
    return "\n".join([f"{way}: {'passed' if passed else 'FAILED'}", *lines])


def read(work: Path, arguments: str) -> str:
    """What the tool says, to arguments that are a model's."""
    try:
        name = str(json.loads(arguments).get("name"))
    except json.JSONDecodeError as error:
        return f"the arguments are no JSON: {error}"
    file = work / Path(name).name
    return file.read_text() if file.is_file() else f"there is no file {file.name}"


if __name__ == "__main__":
    main()
