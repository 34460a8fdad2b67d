"""Finding the program in a model's answer: fenced blocks, bare functions, and bodies that continue the
prompt.

Runs nothing.  `statements` reads what is found here, and `definitions` takes from it what the function needs.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ensemblehub.lab.tasks.definitions import assemble, body_column, rank, returns
from ensemblehub.lab.tasks.statements import CODE, LONGEST, Parser, Statement

_PYTHON = ("python", "py", "python3", "ipython", "pycon")
_FENCE = re.compile(r"([ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?)(`{3,}|~{3,})(.*)")
_LANGUAGE = re.compile(r"[ \t{.]*(\w*)")
_PROMPT = re.compile(r"[ \t]*(?:>>>|\.\.\.)(?: |$)")
_MOST = 200  # blocks of an answer that are looked at, the last ones
_TOGETHER = 4  # blocks that are read as one, where a docstring holds a fence


@dataclass(frozen=True)
class _Block:
    """A fenced block: its language in lower case, where its lines begin and end,
    and how far its fence is indented.
    """

    language: str
    start: int
    end: int
    indent: int


@dataclass(frozen=True)
class _Answer:
    """The lines of an answer, and its fenced blocks: the last ones, where there are very many."""

    lines: list[str]
    blocks: list[_Block]

    @classmethod
    def of(cls, text: str) -> _Answer:
        """What stands behind `</think>`, with line feeds alone between its lines."""
        answer = text.rpartition("</think>")[2].lstrip("\ufeff")
        lines = answer.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        blocks = _blocks(lines)[-_MOST:]
        sizes = accumulate(sum(map(len, lines[block.start : block.end])) for block in reversed(blocks))
        count = sum(size <= LONGEST for size in sizes)
        return cls(lines, blocks[-max(count, 1) :])


def code_of(text: str) -> str:
    """The last Python block of an answer (of any language but Python if none is marked so), else all of it.

    What stands before `</think>` is no answer.  A block that never ends reaches to the end of the text.
    """
    return _last_block(_Answer.of(text))


def _last_block(answer: _Answer) -> str:
    found = [block for block in answer.blocks if block.language in _PYTHON] or answer.blocks
    return (
        _content(answer.lines, found[-1].start, found[-1]) if found else "\n".join(answer.lines).strip("\n")
    )


def program_of(text: str, prompt: str, entry_point: str) -> str:
    """A whole program: the last complete definition of `entry_point` in the answer, with what it needs.

    Imports, helpers and constants come from whichever block has them, else from the prompt; examples of use
    and assertions are left out.  An answer that defines no such function is the body of the prompt's; a body
    may have lost its indentation.  What is no Python, or too long to be taken apart, is returned as it is,
    behind the prompt.
    """
    parser, answer = Parser(), _Answer.of(text)
    asked = parser.whole(prompt) or parser.whole(f"{prompt}\n    pass\n") or []
    start = [statement for statement in asked if entry_point not in statement.binds]
    for blocks in _readings(parser, answer):
        if max((rank(block, entry_point) for block in blocks), default=0) > 1:
            return assemble([start, *blocks], entry_point)
    if asked and (
        completed := _completed(parser, answer, prompt, entry_point, body_column(asked, entry_point))
    ):
        return assemble([start, completed], entry_point)
    code = _last_block(answer)
    if re.search(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\s*\(", code, re.MULTILINE):
        return code
    return prompt + (code if code[:1].isspace() else textwrap.indent(code, "    "))


def defines(text: str, entry_point: str) -> bool:
    """Whether an answer holds a complete definition of the function."""
    readings = _readings(Parser(), _Answer.of(text))
    return any(rank(block, entry_point) > 1 for blocks in readings for block in blocks)


# -- blocks ------------------------------------------------------------------------------------------------


def _blocks(lines: Sequence[str]) -> list[_Block]:
    """The fenced blocks, also in lists and quotations.
    A fence with a language ends a block that was left open.
    """
    out: list[_Block] = []
    fence = ""
    language = ""
    start = 0
    indent = 0
    for number, line in enumerate(lines):
        found = _FENCE.fullmatch(line) if "```" in line or "~~~" in line else None
        if fence and _closes(line, fence, found):
            ends_inside = found is None
            out.append(_Block(language, start, number + ends_inside, indent))
            fence = ""
            if found is None or not found[3].strip():
                continue
        if not fence and found and "`" not in found[3]:
            named = _LANGUAGE.match(found[3])
            fence, language = found[2], named[1].lower() if named else ""
            start, indent = number + 1, len(found[1])
    return [*out, _Block(language, start, len(lines), indent)] if fence else out


def _closes(line: str, fence: str, found: re.Match[str] | None) -> bool:
    """Whether a line ends an open block: its own kind of fence, one with a language,
    or three ticks behind code.
    """
    if found is None:
        return fence[0] == "`" and line.rstrip().endswith("```") and line.count("```") == 1
    if found[2][0] != fence[0] or "`" in found[3]:
        return False
    return bool(found[3].strip()) or len(found[2]) >= len(fence)


def _content(lines: Sequence[str], start: int, block: _Block) -> str:
    """The text from a line to the end of a block,
    without the indentation of its fence and without quotation marks.
    """
    margin = re.compile(rf"[ \t>]{{0,{block.indent}}}")
    part = [margin.sub("", line, count=1) if block.indent else line for line in lines[start : block.end]]
    if part and part[-1].rstrip().endswith("```"):
        part[-1] = part[-1].rstrip()[:-3]
    return "\n".join(part)


# -- readings ----------------------------------------------------------------------------------------------


def _readings(parser: Parser, answer: _Answer) -> Iterator[list[list[Statement]]]:
    """The statements of the answer, read in four ways: Python's blocks, all blocks, all text,
    and what is indented.
    """
    lines, blocks = answer.lines, answer.blocks
    python = [block for block in blocks if block.language in ("", *_PYTHON)]
    if python:
        yield list(_statements(parser, lines, python))
    if len(blocks) > len(python):
        yield list(_statements(parser, lines, blocks))
    yield [_session(parser, "\n".join(lines))]
    yield [_session(parser, run) for run in _indented(lines) if parser.left > 0]


def _indented(lines: list[str]) -> Iterator[str]:
    """Markdown's indented code: behind an empty line and below a line of prose."""
    start, prose = None, True
    for number, line in enumerate([*lines, "."]):
        if line[:1].strip():
            if start is not None:
                yield textwrap.dedent("\n".join(lines[start:number]))
            start, prose = None, not CODE.match(line)
        elif start is None and line.strip() and prose and not (number and lines[number - 1].strip()):
            start = number


def _statements(parser: Parser, lines: list[str], blocks: list[_Block]) -> Iterator[list[Statement]]:
    at = 0
    while at < len(blocks):
        found, passed = parser.whole(_content(lines, blocks[at].start, blocks[at])), 1
        for more in range(at + 1, min(at + _TOGETHER, len(blocks)) if found is None else 0):
            if (found := parser.whole(_content(lines, blocks[at].start, blocks[more]))) is not None:
                passed = more - at + 1
                break
        yield _session(parser, _content(lines, blocks[at].start, blocks[at])) if found is None else found
        at += passed


def _session(parser: Parser, source: str) -> list[Statement]:
    """The statements of a text; of an interactive session what was typed."""
    typed = [line for line in source.split("\n") if _PROMPT.match(line)] if ">>> " in source else []
    if any(re.match(r"[ \t]*>>> (?:async )?(?:def|@|class)", line) for line in typed):
        session = parser.pieces("\n".join(_PROMPT.sub("", line) for line in typed))
        return [*parser.pieces(source), *session]
    return parser.pieces(source)


# -- bodies ------------------------------------------------------------------------------------------------


def _completed(
    parser: Parser, answer: _Answer, prompt: str, name: str, column: int
) -> list[Statement] | None:
    """The prompt's function with the answer as its body: the first body that returns,
    else the first there is.
    """
    first: list[Statement] | None = None
    start = prompt if prompt.endswith("\n") else f"{prompt}\n"
    for body in _bodies(answer):
        found = (
            _with_body(parser, start, name, column, body)
            if len(body) <= LONGEST and parser.left > 0
            else None
        )
        if found is not None and returns(found, name):
            return found
        first = first or found
    return first


def _with_body(parser: Parser, prompt: str, name: str, column: int, body: str) -> list[Statement] | None:
    head, tail = _head(body)
    for part, rest in ((body, ""), (head, tail)) if tail else ((body, ""),):
        for placed in dict.fromkeys(_placed(part, column)):
            found = parser.whole(prompt + placed)
            if found is not None and rank(found, name) == 4:
                return [*found, *parser.pieces(rest)] if rest else found
    return None


def _bodies(answer: _Answer) -> Iterator[str]:
    """What may be a body: the blocks, the last one first, and what stands between them."""
    lines, blocks = answer.lines, answer.blocks
    yield from (_content(lines, block.start, block) for block in reversed(blocks))
    starts = [0, *(block.end for block in blocks)]
    ends = [*(block.start - 1 for block in blocks), len(lines)]
    for start, end in zip(starts, ends, strict=True):
        part = [line for line in lines[start:end] if not _FENCE.fullmatch(line)]
        if any(part):
            yield "\n".join(part)
            indented = next(
                (number for number, line in enumerate(part) if line[:1] in (" ", "\t") and line.strip()), 0
            )
            if indented:
                yield "\n".join(part[indented:])


def _head(body: str) -> tuple[str, str]:
    """A body up to its first line that is not indented, but for the very first; and the rest."""
    lines = body.strip("\n").split("\n")
    end = next((number for number, line in enumerate(lines) if number and line[:1].strip()), len(lines))
    return "\n".join(lines[:end]), "\n".join(lines[end:])


def _placed(body: str, column: int) -> Iterator[str]:
    """A body as it stands, and with the indentation that it should have where some or all of that is lost."""
    body = body.strip("\n")
    first, _, rest = body.partition("\n")
    margin = " " * column
    if first[:1] in (" ", "\t"):
        yield body
    yield textwrap.indent(textwrap.dedent(body), margin)
    yield f"{margin}{first.strip()}\n{rest}"
    for deeper in (margin, 2 * margin):
        yield f"{margin}{first.strip()}\n{textwrap.indent(textwrap.dedent(rest), deeper)}"
