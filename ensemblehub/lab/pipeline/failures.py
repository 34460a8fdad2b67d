"""Errors that name the question that was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ensemblehub.errors import EnsembleHubError
from ensemblehub.lab.tasks.base import Item, Task


@contextmanager
def about(task: Task, item: Item) -> Iterator[None]:
    """Errors of this package that are raised inside begin with the question, and keep their class."""
    try:
        yield
    except EnsembleHubError as error:
        kind = type(error)
        named = kind.__new__(
            kind, f"{task.named(item)}: {error}"
        )  # a copy: several questions may share the error
        named.__dict__.update(error.__dict__)
        raise named from error
