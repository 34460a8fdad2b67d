"""The top-level statements of Python text, also of text that is Python only in part.  Runs nothing.

Time is bounded for every text: a `Parser` reads so many characters and no more.
"""

from __future__ import annotations

import ast
import re
import symtable
import textwrap
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

LONGEST = 60_000  # characters of one piece
_BUDGET = 120_000  # of all pieces of one answer
_LEAST = 100  # what the shortest piece counts
_BRACES = (
    50  # a piece of n braces counts n²/50 more: the parser takes quadratic time for those of an f-string
)
_REACH = 8  # lines without indentation that one statement may go on behind: of a text over several lines, say
CODE = re.compile(
    r"(?:async\s+def|def|class|import|from|if|for|while|with|try)\b|@\w"
    r"|[A-Za-z_][\w.,\[\] ]*?(?::[^=]+|[-+*/%&|^]{1,2})?=[^=]|[A-Za-z_][\w.]*\(.*\)\s*$"
)
_GOES_ON = re.compile(r"[)\]}#]|(?:else|elif|except|finally)\b")
_WARNINGS = threading.Lock()
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
_SCOPES = (*DEFINITIONS, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True, eq=False)
class Statement:
    """One statement of a module: its tree and its text."""

    node: ast.stmt
    text: str

    @cached_property
    def binds(self) -> frozenset[str]:
        """The names that it gives a meaning in the module."""
        return frozenset(name for node in inside(self.node) for name in bound(node))

    @cached_property
    def uses(self) -> frozenset[str]:
        """The module's names that it needs, now or when what it defines is called."""
        return self._names[0] | self._names[1]

    @property
    def needs_first(self) -> frozenset[str]:
        """The module's names that it needs when it runs."""
        return self._names[0]

    @cached_property
    def _names(self) -> tuple[frozenset[str], frozenset[str]]:
        if not any(isinstance(node, _SCOPES) for node in ast.walk(self.node)):
            return frozenset(
                node.id for node in ast.walk(self.node) if isinstance(node, ast.Name)
            ), frozenset()
        try:
            with _WARNINGS, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                table = symtable.symtable(self.text, "<answer>", "exec")
        except _UNREADABLE:
            names = frozenset(node.id for node in ast.walk(self.node) if isinstance(node, ast.Name))
            return names, names
        first = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
        later: set[str] = set()
        waiting = [(child, child.get_type() == "class") for child in table.get_children()]
        while waiting:
            scope, at_once = waiting.pop()
            found = {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
            later |= found
            first |= found if at_once else set()
            waiting += [(child, at_once and child.get_type() == "class") for child in scope.get_children()]
        return frozenset(first), frozenset(later)


class Parser:
    """Reads Python as far as its budget goes."""

    def __init__(self) -> None:
        self.left = _BUDGET

    def whole(self, source: str) -> list[Statement] | None:
        """The statements of a text that is Python from beginning to end; None where it is not,
        or too long.
        """
        if len(source) > LONGEST or self.left < 0:
            return None
        self.left -= max(len(source), _LEAST) + source.count("{") ** 2 // _BRACES
        if self.left < 0:
            return None
        try:
            with _WARNINGS, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except _UNREADABLE:
            return None
        lines = source.encode().split(b"\n")
        return [Statement(node, _text(lines, node)) for node in tree.body]

    def pieces(self, source: str) -> list[Statement]:
        """The statements of whatever in a text is Python, without the prose around it."""
        for reading in _indentations(source) if len(source) <= LONGEST else ():
            if (found := self.whole(reading)) is not None:
                return found
        lines = source.split("\n")
        margin = [
            number for number, line in enumerate(lines) if line[:1].strip() and not _GOES_ON.match(line)
        ]
        out: list[tuple[int, list[Statement]]] = []  # the last piece first
        for at in reversed(range(len(margin))):
            if self.left > 0 and CODE.match(lines[margin[at]]):
                found, end = self._piece(lines, [*margin[at : at + _REACH], len(lines)])
                while found and out and out[-1][0] < end:  # it was a part of this
                    out.pop()
                out.append((margin[at], found))
        return [statement for _, found in reversed(out) for statement in found]

    def _piece(self, lines: list[str], margin: Sequence[int]) -> tuple[list[Statement], int]:
        """What begins at the first of these lines, and where it ends."""
        start = margin[0]
        for end in margin[1:]:
            text = "\n".join(lines[start:end])
            if found := self.whole(text):
                return found, end
            if not _open(text):
                break
        paragraphs = re.split(r"\n(?:[ \t]*\n)+", "\n".join(lines[start : margin[1]]))
        for count in range(min(len(paragraphs) - 1, _REACH), 0, -1):  # indented prose may follow
            if found := self.whole("\n\n".join(paragraphs[:count])):
                return found, margin[1]
        return [], start


def _open(text: str) -> bool:
    """Whether a statement may go on behind the text: a decorator,
    or in brackets or a text over several lines.
    """
    if text[0] == "@" or any(text.count(quotes) % 2 for quotes in ('"""', "'''")):
        return True
    return any(text.count(left) > text.count(right) for left, right in ("()", "[]", "{}"))


def _indentations(source: str) -> Iterator[str]:
    """A text as it stands, without its common indentation, and with that of its first line,
    which may be lost.
    """
    yield source
    if re.match(r"\s*\n?[ \t]", source):
        yield textwrap.dedent(source)
    first, _, rest = source.strip("\n").partition("\n")
    if rest[:1] in (" ", "\t"):
        yield f"{first.strip()}\n{textwrap.dedent(rest)}"


def _text(lines: list[bytes], node: ast.stmt) -> str:
    """The text of a statement, which may share its lines with others."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    part = lines[first - 1 : node.end_lineno]
    part[-1] = part[-1][: node.end_col_offset]
    part[0] = part[0][0 if decorators else node.col_offset :]
    return b"\n".join(part).decode()


def inside(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is below it in the same scope."""
    waiting = [node]
    while waiting:
        child = waiting.pop()
        yield child
        if not isinstance(child, _SCOPES):
            waiting += ast.iter_child_nodes(child)


def bound(node: ast.AST) -> Iterator[str]:
    """The names that one node gives a meaning."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, (*DEFINITIONS, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        yield node.name
