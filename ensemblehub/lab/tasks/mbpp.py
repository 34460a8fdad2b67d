"""MBPP (Austin et al. 2021): short Python functions to write from a sentence and three assertions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.lab.data import WRITE, Fields
from ensemblehub.lab.tasks.base import Item
from ensemblehub.lab.tasks.public import Programming, in_order

# By task_id, as published; 1 to 10 are for prompts.
RANGES: Mapping[str, range] = {
    "train": range(601, 975),
    "calibration": range(511, 601),
    "test": range(11, 511),
}


@dataclass(frozen=True)
class MBPP(Programming):
    """974 functions: 374 train, 90 calibration (published as validation) and 500 test, by their numbers."""

    name: ClassVar[str] = "mbpp"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "calibration", "all")
    parts: ClassVar[dict[str, str]] = {"test": "train+test+validation+prompt"}
    division: ClassVar[str] = (
        "as published, by number: train 601 to 974, calibration (validation) 511 to 600, test 11 to 510"
    )
    instruction: ClassVar[str] = WRITE

    def _split(self, split: str) -> list[Item]:
        items = in_order(self._part(self.parts["test"]))
        return items if split == "all" else [item for item in items if item.extra["number"] in RANGES[split]]

    def _source(self, split: str) -> str:
        return super()._source("test")

    def _named(self, fields: Fields) -> str:
        return f"Mbpp/{self._number(fields)}"

    def _number(self, fields: Fields) -> int:
        """Its `task_id`: 2, or `Mbpp/2` where it comes from EvalPlus."""
        digits = str(fields["id"]).rpartition("/")[2]
        if not digits.isdecimal():
            raise ValueError(f"its id {fields['id']!r} has no number")
        return int(digits)

    def _item(self, fields: Fields) -> Item:
        item = super()._item(fields)
        item.extra["number"] = self._number(fields)
        return item

    def _prompt(self, fields: Fields) -> str:
        return ""  # what is asked is words, not the start of a program
