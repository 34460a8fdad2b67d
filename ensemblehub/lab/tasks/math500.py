"""MATH-500 (Lightman et al. 2023): the 500 problems of MATH's test split that most reports use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.lab.data import Fields
from ensemblehub.lab.tasks.public import Mathematics


@dataclass(frozen=True)
class MATH500(Mathematics):
    """500 questions, divided 400 to 100 by seed (the benchmark itself has no training split); `all` is the 500."""

    name: ClassVar[str] = "math500"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "calibration", "all")
    parts: ClassVar[dict[str, str]] = {"train": "test", "test": "test"}
    share: ClassVar[tuple[int, int] | None] = (400, 100)
    division: ClassVar[str] = (
        "a split of the 500 by seed 42: 400 train, 100 test; calibration is a seeded quarter of train"
    )

    def _named(self, fields: Fields) -> str:
        return str(fields.get("id") or "")
