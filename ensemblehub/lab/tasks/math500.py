"""MATH-500 (Lightman et al. 2023): the 500 problems of MATH's test split that most reports use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.lab.tasks.hendrycks_math import convert
from ensemblehub.lab.tasks.prompts import TRAINED_MATH_PROFILES, PromptProfile
from ensemblehub.lab.tasks.public import MATHS, Mathematics
from ensemblehub.lab.tasks.source import Fields, Source


@dataclass(frozen=True)
class MATH500(Mathematics):
    """500 questions, divided 400 to 100 by seed (published without a training split); `all` is the 500."""

    name: ClassVar[str] = "math500"
    source: ClassVar[Source] = Source(
        title="MATH-500",
        hub="HuggingFaceH4/MATH-500",
        files="MATH-500/test.json",
        sizes={"test": 500},
        instruction=MATHS,
        convert=convert,
    )
    published: ClassVar[Mapping[str, PromptProfile]] = TRAINED_MATH_PROFILES
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "calibration", "all")
    parts: ClassVar[dict[str, str]] = {"train": "test", "test": "test"}
    share: ClassVar[tuple[int, int] | None] = (400, 100)
    division: ClassVar[str] = (
        "a split of the 500 by seed 42: 400 train, 100 test; calibration is a seeded quarter of train"
    )

    def _named(self, fields: Fields) -> str:
        return str(fields.get("id") or "")
