"""HumanEval+ (Liu et al. 2023): HumanEval's functions with EvalPlus's many more tests, divided as HumanEval is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.lab.tasks.humaneval import HumanEval


@dataclass(frozen=True)
class HumanEvalPlus(HumanEval):
    """The 164 functions with EvalPlus's tests; the same ids and splits as `humaneval`."""

    name: ClassVar[str] = "humaneval_plus"
    seconds: ClassVar[float] = 60
