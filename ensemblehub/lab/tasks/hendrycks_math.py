"""MATH (Hendrycks et al. 2021): competition problems of seven subjects and five levels,
with train and test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ensemblehub.errors import did_you_mean
from ensemblehub.lab.tasks.prompts import TRAINED_MATH_PROFILES, PromptProfile
from ensemblehub.lab.tasks.public import MATHS, Mathematics
from ensemblehub.lab.tasks.source import Fields, Rows, Source, boxed

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_LAYOUTS = (  # of the reference toolkit's repository, and without its folders
    "math/hendrycks_math/{subject}/{split}.json",
    "hendrycks_math/{subject}/{split}.json",
    "{subject}/{split}.json",
    "{split}/{subject}.json",
)


def convert(item: Mapping[str, Any]) -> Fields:
    """An item of MATH or MATH-500: problem, solution, level, and type or subject."""
    answer = {"answer": item["answer"]} if item.get("answer") else {}
    return {
        "input": item["problem"],
        "output": boxed(item["solution"], answer.get("answer", "")),
        **answer,
        "subject": item.get("subject") or item.get("type") or "",
        "level": str(item.get("level", "")).removeprefix("Level "),
    }


@dataclass(frozen=True)
class SubjectSource(Source):
    """A source with a file per subject; an item may leave its subject to the folder of its file."""

    def path_of(self, config: str, split: str, item: Mapping[str, Any]) -> str:
        """Path of the fetched file for the item's subject; ValueError if the subject is unknown."""
        if not item.get("subject"):
            raise ValueError("has no `type` or `subject`, and no folder that names it")
        subject = _normalized(item["subject"])
        if subject not in SUBJECTS:
            raise ValueError(did_you_mean(subject, SUBJECTS, "subject"))
        return self.files.format(split=split, subject=subject)

    def rows_of(self, file: Path) -> Rows:
        """The items of a file, with the subject of its folder (`algebra/test.json`, `algebra/7.json`)."""
        names = map(_normalized, (file.name.partition(".")[0], file.parent.name, file.parent.parent.name))
        subject = next((name for name in names if name in SUBJECTS), "")
        for where, fields in super().rows_of(file):
            yield where, fields | ({"subject": subject} if subject and not fields.get("subject") else {})

    def layouts(self, folder: Path, split: str) -> Iterator[list[Path]]:
        """The fetched files, those of the reference toolkit, and the authors' own: `test/algebra/17.json`."""
        for layout in (self.files, *_LAYOUTS):
            yield [folder / layout.format(split=split, subject=subject) for subject in SUBJECTS]
        yield [file for subject in SUBJECTS for file in sorted((folder / split / subject).glob("*.json"))]


def _normalized(name: str) -> str:
    """`Counting & Probability` as `counting_and_probability`."""
    return re.sub(r"\W+", "_", name.lower().replace("&", "and")).strip("_")


@dataclass(frozen=True)
class MATH(Mathematics):
    """7,500 questions to train on and 5,000 to test on, of seven subjects and five levels."""

    name: ClassVar[str] = "math"
    source: ClassVar[Source] = SubjectSource(
        title="MATH",
        hub="EleutherAI/hendrycks_math",
        files="hendrycks_math/{split}/{subject}.json",
        sizes={"train": 7500, "test": 5000},
        instruction=MATHS,
        convert=convert,
        configs=SUBJECTS,
    )
    published: ClassVar[Mapping[str, PromptProfile]] = TRAINED_MATH_PROFILES
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "calibration", "all")
    parts: ClassVar[dict[str, str]] = {"train": "train", "test": "test"}
    division: ClassVar[str] = "MATH's own train and test; calibration is a seeded quarter of train"
