"""Finding the program in a model's answer.  Runs nothing."""

from __future__ import annotations

import re
import textwrap

_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def code_of(text: str) -> str:
    """The last Python block of an answer (of any language but Python if none is marked so), else all of it.

    What stands before `</think>` is no answer.  A block that never ends reaches to the end of the text.
    """
    text = text.rpartition("</think>")[2]
    blocks = _BLOCK.findall(text)
    marked = [code for language, code in blocks if language.lower() in ("python", "py", "python3")]
    candidates = marked or [code for _, code in blocks]
    return candidates[-1] if candidates else text.strip("\n")


def program_of(text: str, prompt: str, entry_point: str) -> str:
    """A whole program: the code of the answer, after the prompt if it does not define `entry_point` itself.

    A body that lost its indentation gets it back.
    """
    code = code_of(text)
    if defines(code, entry_point):
        return code
    first = next((line for line in code.splitlines() if line.strip()), "")
    return prompt + (code if first[:1].isspace() else textwrap.indent(code, "    "))


def defines(code: str, entry_point: str) -> bool:
    """Whether the code defines the function itself."""
    return bool(_definition(code, entry_point))


def preamble(prompt: str, entry_point: str) -> str:
    """What stands in the prompt before the asked function: imports and helpers."""
    found = _definition(prompt, entry_point)
    return prompt[: found.start()] if found else ""


def _definition(code: str, name: str) -> re.Match[str] | None:
    return re.search(rf"^(?:async\s+)?def\s+{re.escape(name)}\s*\(", code, re.MULTILINE)
