"""MBPP (Austin et al. 2021): short Python functions to write from a sentence and three assertions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from ensemblehub.lab.tasks import code_tests
from ensemblehub.lab.tasks.base import Item
from ensemblehub.lab.tasks.public import Programming, in_order
from ensemblehub.lab.tasks.source import Fields, Source

WRITE = "Write this Python function. Reply with the whole function in one code block."
_WHOLE = "train+test+validation+prompt"  # the four published parts, told apart by task_id

# By task_id, as published; 1 to 10 are for prompts.
RANGES: Mapping[str, range] = {
    "train": range(601, 975),
    "calibration": range(511, 601),
    "test": range(11, 511),
}


def convert(suite: code_tests.Suite, item: Mapping[str, Any]) -> Fields:
    """An item of MBPP as first published, of its sanitized form, or of EvalPlus's: a text or prompt,
    and tests.
    """
    entry_point = item.get("entry_point") or code_tests.entry_point(item)
    return {
        "input": code_tests.question(item),
        "output": item.get("code") or item["canonical_solution"],
        "entry_point": entry_point,
        "test": code_tests.check(item, suite),
        **(code_tests.separate(item) if suite == "all" else {}),
    }


@dataclass(frozen=True)
class MBPP(Programming):
    """974 functions: 374 train, 90 calibration (published as validation) and 500 test, by their numbers."""

    name: ClassVar[str] = "mbpp"
    source: ClassVar[Source] = Source(
        title="MBPP",
        hub="google-research-datasets/mbpp",
        files="MBPP/mbpp.json",
        sizes={_WHOLE: 974},
        instruction=WRITE,
        convert=partial(convert, "base"),
        configs=("full",),
    )
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "calibration", "all")
    parts: ClassVar[dict[str, str]] = {"test": _WHOLE}
    division: ClassVar[str] = (
        "as published, by number: train 601 to 974, calibration (validation) 511 to 600, test 11 to 510"
    )

    def _split(self, split: str) -> list[Item]:
        items = in_order(self._part(self.parts["test"]))
        return items if split == "all" else [item for item in items if item.extra["number"] in RANGES[split]]

    def _origin(self, split: str) -> str:
        return super()._origin("test")

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

    def _code(self, item: Item) -> str:
        """EvalPlus's form: a docstring of the sentence and the first test."""
        sentence, _, tests = item.text.partition(code_tests.TESTS)
        return "\n".join(filter(None, ('"""', sentence.strip(), tests.partition("\n")[0], '"""')))

    def _prompt(self, fields: Fields) -> str:
        return ""  # what is asked is words, not the start of a program
