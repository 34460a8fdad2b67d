"""HumanEval (Chen et al. 2021): 164 Python functions to complete from signature and docstring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.lab.data import Fields
from ensemblehub.lab.tasks.public import Programming


@dataclass(frozen=True)
class HumanEval(Programming):
    """164 functions, divided 130 to 34 by seed as the reference toolkit divides them; `all` is the 164."""

    name: ClassVar[str] = "humaneval"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "calibration", "all")
    parts: ClassVar[dict[str, str]] = {"train": "test", "test": "test"}
    share: ClassVar[tuple[int, int] | None] = (130, 34)
    division: ClassVar[str] = (
        "a split of the 164 by seed 42: 130 train, 34 test; calibration is a seeded quarter of train"
    )

    def _named(self, fields: Fields) -> str:
        return str(fields.get("id") or "")
