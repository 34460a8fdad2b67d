"""HumanEval+ (Liu et al. 2023): HumanEval's functions with EvalPlus's many more tests,
divided as HumanEval.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ensemblehub.lab.tasks.code_tests import evalplus_rows
from ensemblehub.lab.tasks.humaneval import HumanEval, convert
from ensemblehub.lab.tasks.public import CODE
from ensemblehub.lab.tasks.source import Source


@dataclass(frozen=True)
class HumanEvalPlus(HumanEval):
    """The 164 functions with EvalPlus's tests; the same ids and splits as `humaneval`."""

    name: ClassVar[str] = "humaneval_plus"
    source: ClassVar[Source] = Source(
        title="HumanEval+",
        hub="evalplus/humanevalplus",
        files="HumanEvalPlus/test.json",
        sizes={"test": 164},
        instruction=CODE,
        convert=convert,
        package=partial(evalplus_rows, "humaneval", "get_human_eval_plus"),
    )
    seconds: ClassVar[float] = 120
