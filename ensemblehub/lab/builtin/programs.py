"""`builtin_code`: small Python functions to write from a signature and a docstring.

Records have HumanEval's fields (`task_id, prompt, entry_point, canonical_solution, test`). A program is a
chain of one to five operations on a list or a string; every operation has a plain and a tricky wording.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_STEPS = 5
NAMES = ("solve", "work", "build", "change", "measure", "compute", "process", "convert")


@dataclass(frozen=True)
class Operation:
    """One kind of step: what it takes and gives, its wordings, and the expression over `x` that does it."""

    name: str
    takes: str  # "list" | "text" | "number"
    gives: str
    plain: str
    tricky: str
    expression: str
    constants: tuple[int, ...] = ()


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "keep even",
        "list",
        "list",
        "keep the even numbers",
        "drop whatever leaves a rest on halving",
        "[n for n in x if n % 2 == 0]",
    ),
    Operation(
        "keep odd",
        "list",
        "list",
        "keep the odd numbers",
        "drop whatever halves evenly",
        "[n for n in x if n % 2 == 1]",
    ),
    Operation(
        "keep above",
        "list",
        "list",
        "keep the numbers above {k}",
        "drop what does not exceed {k}",
        "[n for n in x if n > {k}]",
        (2, 3, 4, 5),
    ),
    Operation(
        "keep below",
        "list",
        "list",
        "keep the numbers below {k}",
        "drop what reaches {k}",
        "[n for n in x if n < {k}]",
        (6, 7, 8, 9),
    ),
    Operation(
        "add",
        "list",
        "list",
        "add {k} to each number",
        "raise every entry by {k}",
        "[n + {k} for n in x]",
        (2, 3, 4, 5),
    ),
    Operation(
        "times",
        "list",
        "list",
        "multiply each number by {k}",
        "scale every entry by {k}",
        "[n * {k} for n in x]",
        (2, 3, 4),
    ),
    Operation(
        "square",
        "list",
        "list",
        "square each number",
        "raise every entry to its second power",
        "[n * n for n in x]",
    ),
    Operation("sort", "list", "list", "sort the list", "bring the entries into rising order", "sorted(x)"),
    Operation("reverse", "list", "list", "reverse the list", "turn the entries back to front", "x[::-1]"),
    Operation(
        "first", "list", "list", "take the first {k} numbers", "cut behind entry {k}", "x[:{k}]", (2, 3, 4)
    ),
    Operation(
        "skip",
        "list",
        "list",
        "skip the first {k} numbers",
        "let the leading {k} entries go",
        "x[{k}:]",
        (1, 2),
    ),
    Operation(
        "unique", "list", "list", "remove duplicates", "let every value stand once", "list(dict.fromkeys(x))"
    ),
    Operation("sum", "list", "number", "return the sum", "give what the entries come to", "sum(x)"),
    Operation("count", "list", "number", "return the length", "give how many entries there are", "len(x)"),
    Operation(
        "largest",
        "list",
        "number",
        "return the largest number or 0",
        "give the peak or 0",
        "max(x, default=0)",
    ),
    Operation(
        "smallest",
        "list",
        "number",
        "return the smallest number or 0",
        "give the bottom or 0",
        "min(x, default=0)",
    ),
    Operation("upper", "text", "text", "make it upper case", "write it in capitals", "x.upper()"),
    Operation(
        "swap case",
        "text",
        "text",
        "swap the case",
        "turn capitals small and small ones into capitals",
        "x.swapcase()",
    ),
    Operation("mirror", "text", "text", "reverse the text", "spell it back to front", "x[::-1]"),
    Operation("no spaces", "text", "text", "remove the spaces", "close all gaps", "x.replace(' ', '')"),
    Operation(
        "head", "text", "text", "keep the first {k} letters", "cut behind letter {k}", "x[:{k}]", (2, 3, 4, 5)
    ),
    Operation(
        "tail",
        "text",
        "text",
        "drop the first {k} letters",
        "let the leading {k} letters go",
        "x[{k}:]",
        (1, 2, 3),
    ),
    Operation(
        "repeat", "text", "text", "repeat it {k} times", "string {k} copies together", "x * {k}", (2, 3)
    ),
    Operation("letters", "text", "number", "return the length", "give how many letters there are", "len(x)"),
    Operation(
        "vowels",
        "text",
        "number",
        "return the number of vowels",
        "give how often a, e, i, o or u stand in it",
        "sum(c in 'aeiouAEIOU' for c in x)",
    ),
)
_BY_INPUT = {
    kind: {
        gives: [o for o in OPERATIONS if o.takes == kind and o.gives == gives] for gives in (kind, "number")
    }
    for kind in ("list", "text")
}


@dataclass(frozen=True)
class Step:
    """One operation with its constant and wording chosen."""

    operation: Operation
    constant: int
    tricky: bool

    @property
    def wording(self) -> str:
        """The clause of the docstring."""
        return (self.operation.tricky if self.tricky else self.operation.plain).format(k=self.constant)

    @property
    def fact(self) -> str:
        """The canonical line of code."""
        return f"x = {self.operation.expression.format(k=self.constant)}"

    def apply(self, value: Any) -> Any:
        """What the step makes of `value` (the expressions are this module's own)."""
        function: Callable[[Any], Any] = eval(
            f"lambda x: {self.operation.expression.format(k=self.constant)}"
        )
        return function(value)


@dataclass(frozen=True)
class Program:
    """A function to write."""

    name: str
    kind: str  # "list" | "text"
    chain: tuple[Step, ...]
    inputs: tuple[Any, ...]

    @property
    def subject(self) -> str:
        """What the function works on."""
        return self.kind

    @property
    def steps(self) -> int:
        """Number of operations."""
        return len(self.chain)

    @property
    def level(self) -> int:
        """Difficulty from 1 to 5."""
        return len(self.chain)

    @property
    def key(self) -> str:
        """Operations from three steps on; name and constants too below that."""
        names = " > ".join(step.operation.name for step in self.chain)
        constants = [step.constant for step in self.chain]
        return f"code {names}" if self.steps >= 3 else f"code {self.name} {names} {constants}"

    @property
    def prompt(self) -> str:
        """Signature and docstring."""
        clauses = ", ".join(step.wording for step in self.chain)
        return f'def {self.name}(x):\n    """{clauses.capitalize()}."""\n'

    @property
    def text(self) -> str:
        """What the model is shown."""
        return self.prompt

    @property
    def body(self) -> str:
        """The canonical solution: everything after the prompt."""
        return "".join(f"    {step.fact}\n" for step in self.chain) + "    return x\n"

    @property
    def test(self) -> str:
        """HumanEval's `check(candidate)`."""
        lines = [f"    assert candidate({value!r}) == {self.run(value)!r}" for value in self.inputs]
        return "def check(candidate):\n" + "\n".join(lines) + "\n"

    def run(self, value: Any) -> Any:
        """The right result for `value`."""
        for step in self.chain:
            value = step.apply(value)
        return value

    @property
    def goal(self) -> str:
        """What goes in and what comes out."""
        gives = self.chain[-1].operation.gives
        return f"{self.kind} to {gives}"

    @property
    def plan(self) -> str:
        """The operations by name."""
        return ", ".join(step.operation.name for step in self.chain)


def draw(
    rng: random.Random,
    steps: int | None = None,
    tricky_rate: float | None = None,
    constants: Sequence[int] = (),
) -> Program:
    """Draw one function.

    Args:
        steps, tricky_rate: as in `word_problems.draw`, with 1 to 5 steps.
        constants: what every constant is drawn from, in place of the operation's own.
    """
    steps = steps if steps is not None else rng.randint(1, MAX_STEPS)
    rate = tricky_rate if tricky_rate is not None else rng.choice((0.0, 0.0, 0.25, 0.5, 0.75))
    kind = rng.choice(("list", "list", "text"))
    operations = rng.sample(_BY_INPUT[kind][kind], steps)
    if rng.random() < 0.5:
        operations[-1] = rng.choice(_BY_INPUT[kind]["number"])
    chain = tuple(
        Step(operation, rng.choice(_constants(operation, constants)), rng.random() < rate)
        for operation in operations
    )
    return Program(rng.choice(NAMES), kind, chain, tuple(_example(rng, kind) for _ in range(6)))


def _example(rng: random.Random, kind: str) -> list[int] | str:
    if kind == "list":
        return [rng.randint(0, 12) for _ in range(rng.randint(0, 8))]
    return "".join(rng.choice("abcdeiouABEIOR  st") for _ in range(rng.randint(0, 10)))


def _constants(operation: Operation, given: Sequence[int]) -> Sequence[int]:
    return (given or operation.constants) if operation.constants else (0,)
