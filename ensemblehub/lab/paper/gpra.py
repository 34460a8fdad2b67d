"""The GPRA sections of an insight (Goal, Planning, Retrieval, Action), and insights without some of them."""

from __future__ import annotations

import re

SECTIONS = ("Goal", "Planning", "Retrieval", "Action")
_HEADING = re.compile(
    rf"^[\s>#*\-\d.)]*({'|'.join(SECTIONS)})\b[*\s]*[:：]?[*]*", re.MULTILINE | re.IGNORECASE
)


def sections(insight: str) -> dict[str, str]:
    """The insight by GPRA heading, which may be bold, numbered or bulleted; a cut insight lacks some."""
    return {heading[1].capitalize(): insight[heading.end() : end].strip() for heading, end in _spans(insight)}


def without(insight: str, section: str) -> str:
    """The insight without one of its `SECTIONS`; unchanged where it has no such section."""
    kept = insight
    for heading, end in reversed(_spans(insight)):
        if heading[1].capitalize() == section:
            kept = kept[: heading.start()] + kept[end:]
    return kept.strip("\n")


def unstructured(insight: str) -> str:
    """The insight without its headings."""
    kept = insight
    for heading, _ in reversed(_spans(insight)):
        kept = kept[: heading.start()] + kept[heading.end() :].lstrip(" ")
    return kept


def _spans(insight: str) -> list[tuple[re.Match[str], int]]:
    """Every GPRA heading, and where its section ends."""
    found = list(_HEADING.finditer(insight))
    return list(
        zip(found, [*(match.start() for match in found[1:]), len(insight)][: len(found)], strict=True)
    )
