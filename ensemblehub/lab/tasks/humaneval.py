"""HumanEval (Chen et al. 2021): 164 Python functions to complete from signature and docstring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ensemblehub.lab.tasks import code_tests
from ensemblehub.lab.tasks.public import CODE, Programming
from ensemblehub.lab.tasks.source import Fields, Source


def convert(item: Mapping[str, Any]) -> Fields:
    """An item of HumanEval or HumanEval+, with all of its tests."""
    return {
        "input": item["prompt"],
        "output": item["canonical_solution"],
        "entry_point": item["entry_point"],
        "test": code_tests.check(item, "all"),
        **code_tests.separate(item),
    }


@dataclass(frozen=True)
class HumanEval(Programming):
    """164 functions, divided 130 to 34 by seed as the reference toolkit divides them; `all` is the 164."""

    name: ClassVar[str] = "humaneval"
    source: ClassVar[Source] = Source(
        title="HumanEval",
        hub="openai/openai_humaneval",
        files="HumanEval/test.json",
        sizes={"test": 164},
        instruction=CODE,
        convert=convert,
        configs=("openai_humaneval",),
    )
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "calibration", "all")
    parts: ClassVar[dict[str, str]] = {"train": "test", "test": "test"}
    share: ClassVar[tuple[int, int] | None] = (130, 34)
    division: ClassVar[str] = (
        "a split of the 164 by seed 42: 130 train, 34 test; calibration is a seeded quarter of train"
    )

    def _named(self, fields: Fields) -> str:
        return str(fields.get("id") or "")
