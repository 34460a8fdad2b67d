"""The arguments in EvalPlus's file of MBPP+, with the types that JSON does not have.

JSON has lists for tuples and sets, and texts for complex numbers.  The types are inferred from the literal
arguments in the item's own assertions.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Container = type[list[Any]] | type[tuple[Any, ...]] | type[set[Any]]


class Form:
    """What the examples of one argument, or of the elements of one, have in common.

    Attributes:
        kind: type of the container; a tuple or set where some examples are lists; None where all are scalars.
        mixed: whether some examples are containers and others scalars.
        inner: form of the elements, or of the values of a mapping.
    """

    def __init__(self, examples: Sequence[Any]) -> None:
        kinds: list[Container] = [type(value) for value in examples if isinstance(value, list | tuple | set)]
        self.kind = next((kind for kind in kinds if kind is not list), list) if kinds else None
        self.mixed = 0 < len(kinds) < len(examples)
        inner = [
            element
            for value in examples
            if isinstance(value, list | tuple | set | dict)
            for element in (value.values() if isinstance(value, dict) else value)
        ]
        self.inner = Form(inner) if inner else None

    def restored(self, value: Any, deeper: Container = list) -> Any:
        """A value from JSON in this form.

        Args:
            deeper: type of lists that are nested deeper than in the examples.
        """
        if not isinstance(value, list | dict):
            return value
        kind = self.kind or deeper
        deeper = kind if self.mixed else deeper
        inner = self.inner or _UNKNOWN
        if isinstance(value, dict):
            return {key: inner.restored(element, deeper) for key, element in value.items()}
        if kind is set and not value:
            return {}  # as the items write it
        return kind(inner.restored(element, deeper) for element in value)


_UNKNOWN = Form(())


def restored(item: Mapping[str, Any], inputs: list[list[Any]]) -> list[list[Any]]:
    """The lists of arguments with their types; what no example tells stays as it is."""
    examples = list(_examples(item["assertion"], item["entry_point"]))
    if len({*map(len, examples)}) != 1:
        return inputs
    columns = list(zip(*examples, strict=True))
    forms = [Form(column) for column in columns]
    numbers = [_are_numbers(item, at, column) for at, column in enumerate(columns)]
    return [
        [
            _number(value) if number and isinstance(value, str) else form.restored(value)
            for form, number, value in zip(forms, numbers, given, strict=True)
        ]
        for given in inputs
    ]


def _examples(assertions: str, entry_point: str) -> Iterator[list[Any]]:
    """The arguments of every call of the function that has literal ones."""
    for node in ast.walk(ast.parse(assertions)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == entry_point:
            try:
                yield [ast.literal_eval(argument) for argument in node.args]
            except ValueError:
                continue


def _are_numbers(item: Mapping[str, Any], at: int, examples: Sequence[Any]) -> bool:
    """Whether texts at this place are numbers: the examples are, and a number is written as a text."""
    if not all(isinstance(value, int | float | complex) for value in examples):
        return False
    texts = [given[at] for given in (*item["base_input"], *item["plus_input"]) if isinstance(given[at], str)]
    try:
        numbers = [_number(text) for text in texts]
    except ValueError:
        return False
    return isinstance(item["base_input"][0][at], str) or any(
        isinstance(number, complex) for number in numbers
    )


def _number(text: str) -> complex:
    try:
        return float(text)
    except ValueError:
        return complex(text)
