"""AIME 2024: the 30 problems of the two papers, with integer answers from 0 to 999; only to test on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.lab.tasks import competition
from ensemblehub.lab.tasks.public import MATHS, Mathematics
from ensemblehub.lab.tasks.source import Fields, Source


@dataclass(frozen=True)
class AIME24(Mathematics):
    """30 questions, all of them test; the answer is an integer from 0 to 999."""

    name: ClassVar[str] = "aime24"
    source: ClassVar[Source] = Source(
        title="AIME 2024",
        hub="HuggingFaceH4/aime_2024",
        files="AIME2024/aime/aime24.json",
        sizes={"train": 30},
        instruction=MATHS,
        convert=competition.convert,
    )
    splits: ClassVar[tuple[str, ...]] = ("test", "all")
    parts: ClassVar[dict[str, str]] = {"test": "train"}  # the hub's name of its only split
    division: ClassVar[str] = "all 30, test only"

    def _answer(self, fields: Fields) -> str | None:
        """Solutions write `\\textbf{(073)}.` for 73."""
        stated = super()._answer(fields)
        digits = re.findall(r"\d+", stated or "")
        if len(digits) != 1 or len(digits[0]) > 3:
            raise ValueError(f"its answer is no integer from 0 to 999: {stated}")
        return str(int(digits[0]))
