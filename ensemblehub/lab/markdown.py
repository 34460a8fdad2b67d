"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Iterable[str]], align: str = "") -> str:
    """A table without a newline at its end; what would end a cell is escaped.

    Args:
        align: `l` or `r` for each column; columns beyond it are aligned to the left.
    """
    rules = ["--:" if side == "r" else "---" for side in align.ljust(len(header), "l")]
    lines = [f"| {' | '.join(map(_cell, cells))} |" for cells in (header, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def _cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", r"\|")
