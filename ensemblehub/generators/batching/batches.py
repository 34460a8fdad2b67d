"""Which rows share a forward pass, and how many tokens of each."""

from __future__ import annotations

from collections.abc import Sequence

from ensemblehub.generators.batching.rows import ModelRow

CHUNK = 2048  # tokens read in one forward pass
_FEW, _SMALL = 4, 64  # tokens of a row, and of a pass, that may be read while others write
_LOGITS = 2**27  # logits held at once when every token's prediction is returned


def short_rows(rows: Sequence[ModelRow]) -> list[ModelRow]:
    """Rows that go on by one token, and those that do by a few where a pass of all of them stays small."""
    few = [row for row in rows if not row.whole and row.pending <= _FEW]
    small = len(few) * max((row.pending for row in few), default=0) <= _SMALL
    return [row for row in few if small or row.pending == 1]


def rows_to_read(rows: Sequence[ModelRow], most: int, vocabulary: int) -> list[ModelRow]:
    """The longest waiting row and others of its kind and similar length, at most `most` that fit a pass."""
    if not rows:
        return []
    first = rows[0]
    limit = max(64, 2 * chunk(first, vocabulary))
    alike = [row for row in rows if row.whole is first.whole and chunk(row, vocabulary) <= limit]
    width = max(chunk(row, vocabulary) for row in alike)
    near = [row for row in alike if row is first or 2 * chunk(row, vocabulary) >= width or width <= 64]
    return near[: min(most, max(1, _most(first, vocabulary) // width))]


def chunk(row: ModelRow, vocabulary: int) -> int:
    """Number of tokens that one pass computes of a row."""
    return min(row.pending, _most(row, vocabulary))


def most_predicted(vocabulary: int) -> int:
    """Tokens of a pass whose predictions are all returned."""
    return max(64, min(CHUNK, _LOGITS // vocabulary))


def _most(row: ModelRow, vocabulary: int) -> int:
    return most_predicted(vocabulary) if row.whole else CHUNK
