"""AMC 2023: the 40 problems of the AMC 12 papers that have numbers for answers; only to test on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.lab.tasks import competition
from ensemblehub.lab.tasks.public import MATHS, Mathematics
from ensemblehub.lab.tasks.source import Source


@dataclass(frozen=True)
class AMC23(Mathematics):
    """40 questions, all of them test."""

    name: ClassVar[str] = "amc23"
    source: ClassVar[Source] = Source(
        title="AMC 2023",
        hub="math-ai/amc23",
        files="AMC2023/amc/amc23.json",
        sizes={"test": 40},
        instruction=MATHS,
        convert=competition.convert,
    )
    splits: ClassVar[tuple[str, ...]] = ("test", "all")
    parts: ClassVar[dict[str, str]] = {"test": "test"}
    division: ClassVar[str] = "all 40, test only"
