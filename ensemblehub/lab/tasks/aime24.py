"""AIME 2024: the 30 problems of the two papers, with integer answers from 0 to 999; only to test on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.lab.data import Fields
from ensemblehub.lab.tasks.public import Mathematics


@dataclass(frozen=True)
class AIME24(Mathematics):
    """30 questions, all of them test; the answer is an integer from 0 to 999."""

    name: ClassVar[str] = "aime24"
    splits: ClassVar[tuple[str, ...]] = ("test", "all")
    parts: ClassVar[dict[str, str]] = {"test": "train"}  # the hub calls its only part so
    division: ClassVar[str] = "all 30, test only"

    def _answer(self, fields: Fields) -> str | None:
        """Solutions write `\\textbf{(073)}.` for 73."""
        stated = super()._answer(fields)
        digits = re.findall(r"\d+", stated or "")
        if len(digits) != 1 or len(digits[0]) > 3:
            raise ValueError(f"its answer is no integer from 0 to 999: {stated}")
        return str(int(digits[0]))
