"""Finding the program in a model's answer.  Runs nothing."""

from __future__ import annotations

import re

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
    """A whole program: the code of the answer, after the prompt if it does not define `entry_point` itself."""
    code = code_of(text)
    defined = re.search(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\s*\(", code, re.MULTILINE)
    return code if defined else prompt + code
