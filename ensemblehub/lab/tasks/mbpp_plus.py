"""MBPP+ (Liu et al. 2023): 378 of MBPP's functions with EvalPlus's many more tests, divided as MBPP is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.lab.tasks.mbpp import MBPP


@dataclass(frozen=True)
class MBPPPlus(MBPP):
    """378 functions with EvalPlus's tests; the same ids and ranges as `mbpp`."""

    name: ClassVar[str] = "mbpp_plus"
    parts: ClassVar[dict[str, str]] = {"test": "test"}
    seconds: ClassVar[float] = 60
