"""MATH (Hendrycks et al. 2021): competition problems of seven subjects and five levels, with its own train and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.lab.tasks.public import Mathematics


@dataclass(frozen=True)
class MATH(Mathematics):
    """7,500 questions to train on and 5,000 to test on, of seven subjects and five levels."""

    name: ClassVar[str] = "math"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "calibration", "all")
    parts: ClassVar[dict[str, str]] = {"train": "train", "test": "test"}
    division: ClassVar[str] = "MATH's own train and test; calibration is a seeded quarter of train"
