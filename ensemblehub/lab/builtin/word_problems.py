"""`builtin_math`: word problems about quantities that depend on other quantities.

A problem is a tree of quantities.  Every quantity is defined by exactly one English sentence; the
sentences are shuffled and mixed with distractors.  Some phrasings are *plain* (the defined quantity is
the subject: "There are 5 more mugs than bowls."), others are *tricky*: they define the quantity that is
not the subject ("The bowls fall 5 short of the mugs.") or need a fact recalled ("a baker's dozen").

The written forms:

* a *fact* is one canonical equation, ``mugs = bowls + 5``; facts are listed target first, breadth first;
* an *action* is that equation with numbers, ``mugs = 12 + 5 = 17``; actions run from the leaves up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

SUBJECTS: dict[str, tuple[str, ...]] = {
    "kitchen": ("mugs", "bowls", "plates", "forks", "spoons", "knives", "pans", "pots", "trays", "jars"),
    "harbour": ("boats", "sails", "nets", "ropes", "anchors", "oars", "buoys", "crabs", "gulls", "docks"),
    "garden": ("roses", "tulips", "ferns", "trees", "bees", "snails", "seeds", "rakes", "hoses", "ponds"),
    "library": ("novels", "maps", "desks", "lamps", "chairs", "shelves", "pens", "cards", "stamps", "clerks"),
    "workshop": ("saws", "drills", "bolts", "nails", "screws", "planks", "tools", "clamps", "wires", "gears"),
}
MAX_STEPS = 8
MAX_VALUE = 99
IDIOMS = {
    2: "a pair of",
    3: "a trio of",
    4: "a quartet of",
    6: "half a dozen",
    12: "a dozen",
    13: "a baker's dozen",
    20: "a score of",
}
MULTIPLES = {2: "twice", 3: "three times", 4: "four times"}
TUPLES = {2: "double", 3: "triple", 4: "quadruple"}

# {a} is the quantity being defined, {b} and {c} the ones it is defined from.
PLAIN: dict[str, tuple[str, ...]] = {
    "given": ("There are {k} {a}.", "The {place} has {k} {a}."),
    "+": ("There are {k} more {a} than {b}.", "The {a} are {k} more than the {b}."),
    "-": ("There are {k} fewer {a} than {b}.", "The {a} are {k} fewer than the {b}."),
    "*": ("There are {times} as many {a} as {b}.", "The {a} are {times} the {b}."),
    "/": ("There are half as many {a} as {b}.", "The {a} are half of the {b}."),
    "sum": ("The {a} are as many as the {b} and the {c} together.", "There are as many {a} as {b} and {c}."),
    "difference": ("The {a} are what is left of the {b} without the {c}.",),
}
TRICKY: dict[str, tuple[str, ...]] = {
    "given": ("Somebody counted {idiom} {a}.", "In the {place} stand {idiom} {a}."),
    "+": ("The {b} fall {k} short of the {a}.", "Take {k} from the {a} and the {b} match them."),
    "-": ("The {b} exceed the {a} by {k}.", "Add {k} to the {a} and the {b} match them."),
    "*": ("To each of the {b} belong {k} {a}.", "{Tuple} the {b} and the {a} match them."),
    "/": ("Double the {a} to reach the {b}.", "Every two of the {b} share one of the {a}."),
    "sum": ("Put the {b} with the {c} and the {a} match them.",),
    "difference": ("Only with the {c} do the {a} match the {b}.",),
}
ASK: dict[str, tuple[str, ...]] = {
    "one": ("How many {a} are there?", "Find the number of {a}."),
    "total": ("How many {a} and {b} are there in all?", "Count the {a} and the {b} together."),
    "gap": ("How many more {a} than {b} are there?", "By how many do the {a} outnumber the {b}?"),
}
_BINARY = {"sum": "+", "difference": "-"}


@dataclass(frozen=True)
class Quantity:
    """One quantity: its name, value, and the operation and operands that define it."""

    name: str
    value: int
    operation: str  # "given" | "+" | "-" | "*" | "/" | "sum" | "difference"
    operands: tuple[Quantity, ...] = ()
    constant: int = 0
    tricky: bool = False

    @property
    def fact(self) -> str:
        """The defining equation in names, ``mugs = bowls + 5``."""
        if self.operation == "given":
            return f"{self.name} = {self.value}"
        if self.operation in _BINARY:
            return f"{self.name} = {self.operands[0].name} {_BINARY[self.operation]} {self.operands[1].name}"
        return f"{self.name} = {self.operands[0].name} {self.operation} {self.constant}"

    @property
    def action(self) -> str:
        """The defining equation in numbers with its result, ``mugs = 12 + 5 = 17``."""
        if self.operation == "given":
            return f"{self.name} = {self.value}"
        if self.operation in _BINARY:
            left, right = (operand.value for operand in self.operands)
            return f"{self.name} = {left} {_BINARY[self.operation]} {right} = {self.value}"
        return f"{self.name} = {self.operands[0].value} {self.operation} {self.constant} = {self.value}"

    @property
    def shape(self) -> str:
        """The canonical dependency graph below this quantity,
        with operations and without names or numbers.
        """
        shapes = [operand.shape for operand in self.operands]
        return f"{self.operation}({','.join(sorted(shapes) if self.operation == 'sum' else shapes)})"


@dataclass(frozen=True)
class WordProblem:
    """A word problem with everything a solution, an insight or a grader needs."""

    subject: str
    ask: str  # "one" | "total" | "gap"
    roots: tuple[Quantity, ...]
    sentences: tuple[tuple[str, Quantity], ...]  # in the order they are told
    question: str = field(compare=False)

    @property
    def text(self) -> str:
        """The problem as the reader sees it."""
        return " ".join([*(sentence for sentence, _ in self.sentences), self.question])

    @cached_property
    def needed(self) -> tuple[Quantity, ...]:
        """The quantities the answer depends on, target first, breadth first."""
        order = list(self.roots)
        for quantity in order:
            order.extend(quantity.operands)
        return tuple(order)

    @property
    def steps(self) -> int:
        """How many facts must be used: one per needed quantity, and one for a total or a gap."""
        return len(self.needed) + (self.ask != "one")

    @property
    def level(self) -> int:
        """Difficulty from 1 to 5."""
        return (0, 1, 1, 2, 2, 3, 4, 5, 5)[self.steps]

    @property
    def answer(self) -> int:
        """The asked number."""
        values = [root.value for root in self.roots]
        return (
            values[0] if self.ask == "one" else sum(values) if self.ask == "total" else values[0] - values[1]
        )

    @property
    def key(self) -> str:
        """What makes it the same problem: the graph from three steps on; names and numbers too below that."""
        shapes = [root.shape for root in self.roots]
        shape = f"{self.ask}[{','.join(sorted(shapes) if self.ask == 'total' else shapes)}]"
        return shape if self.steps >= 3 else f"{shape} {'; '.join(quantity.fact for quantity in self.needed)}"

    @property
    def goal(self) -> str:
        """What is asked, as an expression in names."""
        return {"one": "{0}", "total": "{0} + {1}", "gap": "{0} - {1}"}[self.ask].format(
            *(r.name for r in self.roots)
        )

    @property
    def plan(self) -> str:
        """Which quantities to trace back, and what to do with them."""
        names = ", ".join(root.name for root in self.roots)
        return f"trace {names}" + {"one": "", "total": ", then add", "gap": ", then subtract"}[self.ask]

    @property
    def actions(self) -> list[str]:
        """Every calculation from the leaves up; the last one states the asked value."""
        lines = [quantity.action for quantity in reversed(self.needed) if quantity.operation != "given"]
        if self.ask != "one":
            left, right = (root.value for root in self.roots)
            lines.append(f"answer = {left} {'+' if self.ask == 'total' else '-'} {right} = {self.answer}")
        return lines or [self.needed[0].action]


def draw(rng: random.Random, steps: int | None = None, tricky_rate: float | None = None) -> WordProblem:
    """Draw one problem.

    Args:
        rng: the only source of randomness.
        steps: number of needed facts, 1 to 8; drawn evenly when omitted.
        tricky_rate: share of sentences phrased the tricky way; drawn from 0 to 0.75 when omitted.
    """
    steps = steps if steps is not None else rng.randint(1, MAX_STEPS)
    rate = tricky_rate if tricky_rate is not None else rng.choice((0.0, 0.0, 0.25, 0.5, 0.75))
    while True:
        subject = rng.choice(list(SUBJECTS))
        names = iter(rng.sample(SUBJECTS[subject], len(SUBJECTS[subject])))
        ask = rng.choice(("one", "one", "total", "gap")) if steps >= 3 else "one"
        if ask == "one":
            roots: tuple[Quantity, ...] = (_grow(rng, steps, names, rate),)
        else:
            left = rng.randint(1, steps - 2)
            roots = (_grow(rng, left, names, rate), _grow(rng, steps - 1 - left, names, rate))
            if ask == "gap" and roots[0].value < roots[1].value:
                roots = (roots[1], roots[0])
        if ask == "total" and sum(root.value for root in roots) > MAX_VALUE:
            continue
        if ask == "gap" and roots[0].value == roots[1].value:
            continue
        if sum(1 for root in roots for _ in _walk(root)) + (ask != "one") == steps:
            break
    told = [quantity for root in roots for quantity in _walk(root)]
    for _ in range(rng.randint(0, 2)):
        told.append(_define(rng, next(names), [rng.choice(told)] if rng.random() < 0.75 else [], rate))
    rng.shuffle(told)
    sentences = tuple((_say(rng, quantity, subject), quantity) for quantity in told)
    named = dict(zip("ab", (root.name for root in roots), strict=False))
    return WordProblem(subject, ask, roots, sentences, rng.choice(ASK[ask]).format(**named))


def _walk(quantity: Quantity) -> Iterator[Quantity]:
    yield quantity
    for operand in quantity.operands:
        yield from _walk(operand)


def _grow(rng: random.Random, size: int, names: Iterator[str], rate: float) -> Quantity:
    """A tree of `size` quantities; the root takes the first name."""
    name = next(names)
    if size == 1:
        return _define(rng, name, [], rate)
    if size >= 3 and rng.random() < 0.3:
        left = rng.randint(1, size - 2)
        parts = [_grow(rng, left, names, rate), _grow(rng, size - 1 - left, names, rate)]
    else:
        parts = [_grow(rng, size - 1, names, rate)]
    return _define(rng, name, parts, rate)


def _define(rng: random.Random, name: str, operands: list[Quantity], rate: float) -> Quantity:
    """Define `name` from `operands` with an operation whose value stays between 1 and `MAX_VALUE`."""
    tricky = rng.random() < rate
    if not operands:
        value = rng.choice(list(IDIOMS)) if tricky else rng.randint(2, 20)
        return Quantity(name, value, "given", (), 0, tricky)
    if len(operands) == 2:
        high, low = sorted(operands, key=lambda quantity: -quantity.value)
        if high.value + low.value <= MAX_VALUE and (high.value == low.value or rng.random() < 0.5):
            return Quantity(name, operands[0].value + operands[1].value, "sum", tuple(operands), 0, tricky)
        if high.value > low.value:
            return Quantity(name, high.value - low.value, "difference", (high, low), 0, tricky)
        operands = operands[:1]
    base = operands[0].value
    constants = {
        "+": [k for k in range(2, 10) if base + k <= MAX_VALUE],
        "-": [k for k in range(2, 10) if base - k >= 1],
        "*": [k for k in MULTIPLES if base * k <= MAX_VALUE],
        "/": [2] if base % 2 == 0 else [],
    }
    operation = rng.choice([operation for operation, possible in constants.items() if possible])
    constant = rng.choice(constants[operation])
    value = {"+": base + constant, "-": base - constant, "*": base * constant, "/": base // constant}[
        operation
    ]
    return Quantity(name, value, operation, tuple(operands), constant, tricky)


def _say(rng: random.Random, quantity: Quantity, place: str) -> str:
    """One English sentence that defines `quantity`."""
    template = rng.choice((TRICKY if quantity.tricky else PLAIN)[quantity.operation])
    operands = dict(zip("bc", (operand.name for operand in quantity.operands), strict=False))
    return template.format(
        a=quantity.name,
        place=place,
        k=quantity.constant or quantity.value,
        idiom=IDIOMS.get(quantity.value, ""),
        times=MULTIPLES.get(quantity.constant, ""),
        Tuple=TUPLES.get(quantity.constant, "").capitalize(),
        **operands,
    )
