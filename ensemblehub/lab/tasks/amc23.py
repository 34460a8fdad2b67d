"""AMC 2023: the 40 problems of the AMC 12 papers that have numbers for answers; only to test on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.lab.tasks.public import Mathematics


@dataclass(frozen=True)
class AMC23(Mathematics):
    """40 questions, all of them test."""

    name: ClassVar[str] = "amc23"
    splits: ClassVar[tuple[str, ...]] = ("test", "all")
    parts: ClassVar[dict[str, str]] = {"test": "test"}
    division: ClassVar[str] = "all 40, test only"
