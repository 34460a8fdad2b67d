"""MBPP+ (Liu et al. 2023): 378 of MBPP's functions with EvalPlus's many more tests, divided as MBPP is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ensemblehub.lab.tasks.code_tests import evalplus_rows
from ensemblehub.lab.tasks.mbpp import MBPP, WRITE, convert
from ensemblehub.lab.tasks.source import Source


@dataclass(frozen=True)
class MBPPPlus(MBPP):
    """378 functions with EvalPlus's tests; the same ids and ranges as `mbpp`."""

    name: ClassVar[str] = "mbpp_plus"
    source: ClassVar[Source] = Source(
        title="MBPP+",
        hub="evalplus/mbppplus",
        files="MBPPPlus/mbpp.json",
        sizes={"test": 378},
        instruction=WRITE,
        convert=partial(convert, "all"),
        package=partial(evalplus_rows, "mbpp", "get_mbpp_plus"),
    )
    parts: ClassVar[dict[str, str]] = {"test": "test"}
    seconds: ClassVar[float] = 60
