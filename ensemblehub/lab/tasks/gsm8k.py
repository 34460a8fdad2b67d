"""GSM8K (Cobbe et al. 2021): word problems of primary school, with its own train and test."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ensemblehub.lab.tasks.prompts import TRAINED_MATH_PROFILES, PromptProfile
from ensemblehub.lab.tasks.public import MATHS, Mathematics
from ensemblehub.lab.tasks.source import Fields, Source, boxed


def _convert(item: Mapping[str, Any]) -> Fields:
    """The solution ends in `#### 18`, and has calculator notes (`<<2+2=4>>`), which are removed."""
    solution, mark, answer = item["answer"].rpartition("####")
    if not mark:
        raise ValueError("the answer has no ####")
    answer = answer.strip()
    solution = re.sub(r"<<.*?>>", "", solution).strip()
    return {
        "input": item["question"],
        "output": boxed(solution, answer.replace(",", "")),
        "answer": answer,
    }


@dataclass(frozen=True)
class GSM8K(Mathematics):
    """7,473 questions to train on and 1,319 to test on; the answer is the number after `####`."""

    name: ClassVar[str] = "gsm8k"
    source: ClassVar[Source] = Source(
        title="GSM8K",
        hub="openai/gsm8k",
        files="gsm8k/{config}/{split}.json",
        sizes={"train": 7473, "test": 1319},
        instruction=MATHS,
        convert=_convert,
        configs=("main",),
        more_configs=("socratic",),
    )
    published: ClassVar[Mapping[str, PromptProfile]] = TRAINED_MATH_PROFILES
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "calibration", "all")
    parts: ClassVar[dict[str, str]] = {"train": "train", "test": "test"}
    division: ClassVar[str] = "GSM8K's own train and test (main); calibration is a seeded quarter of train"
