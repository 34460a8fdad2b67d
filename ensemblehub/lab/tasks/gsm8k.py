"""GSM8K (Cobbe et al. 2021): word problems of primary school, with its own train and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.lab.tasks.public import Mathematics


@dataclass(frozen=True)
class GSM8K(Mathematics):
    """7,473 questions to train on and 1,319 to test on; the answer is the number after `####`."""

    name: ClassVar[str] = "gsm8k"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "calibration", "all")
    parts: ClassVar[dict[str, str]] = {"train": "train", "test": "test"}
    division: ClassVar[str] = "GSM8K's own train and test (main); calibration is a seeded quarter of train"
