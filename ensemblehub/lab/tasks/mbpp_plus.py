"""MBPP+ (Liu et al. 2023): 378 of MBPP's functions with EvalPlus's many more tests, divided as MBPP is.

Graded are MBPP's own inputs (`base`: what is reported as MBPP, EvalPlus's subset) and all (`plus`: MBPP+) in
one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ensemblehub.lab.tasks.base import Item
from ensemblehub.lab.tasks.code_tests import evalplus_rows
from ensemblehub.lab.tasks.mbpp import MBPP, WRITE, convert
from ensemblehub.lab.tasks.source import Source

# In EvalPlus's version 0.1.0 (399 functions), taken out in 0.2.0 as ill-formed (`tools/mbpp/fix_v011.py`).
ILL_FORMED = frozenset(
    (83, 115, 117, 143, 164, 229, 249, 295, 396, 400, 407, 431, 438, 442, 461, 574, 582, 595, 640, 746, 783)
)


@dataclass(frozen=True)
class MBPPPlus(MBPP):
    """378 functions with EvalPlus's tests; the same ids and ranges as `mbpp`.

    The split `v0.1.0` holds all 399 of EvalPlus's first version, where the file has them.
    """

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
    splits: ClassVar[tuple[str, ...]] = (*MBPP.splits, "v0.1.0")
    parts: ClassVar[dict[str, str]] = {"test": "test"}
    seconds: ClassVar[float] = 120

    def _split(self, split: str) -> list[Item]:
        if split == "v0.1.0":
            return super()._split("all")
        return [item for item in super()._split(split) if item.extra["number"] not in ILL_FORMED]
