"""What a check is, and what running it gives."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ensemblehub.errors import EnsembleHubError, one_line


@dataclass(frozen=True)
class Check:
    """One promise of a contract; `run` raises an AssertionError where it is not kept.

    Attributes:
        name: name of the function.
        title: the promise in one line.
        ability: what it is about: a capability, or a part of the contract.
    """

    name: str
    title: str
    ability: str
    run: Callable[[Any], Awaitable[None]]


@dataclass(frozen=True)
class CheckResult:
    """How a check ended: `passed`, or `failed` with the line that was not true."""

    check: Check
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the promise is kept."""
        return not self.problem


def collector(*lists: list[Check]) -> Callable[[str], Callable[[Any], Check]]:
    """Return a decorator that adds a function, whose docstring is the title, to `lists`."""

    def about(ability: str) -> Callable[[Any], Check]:
        def add(function: Any) -> Check:
            check = Check(function.__name__, function.__doc__, ability, function)
            for checks in lists:
                checks.append(check)
            return check

        return add

    return about


async def run_all(checks: Sequence[Check], subject: Any) -> list[CheckResult]:
    """Run the checks in order; one that fails does not stop the others."""
    outcomes = []
    for check in checks:
        try:
            await check.run(subject)
            outcomes.append(CheckResult(check))
        except Exception as error:  # whatever the code under test raises
            outcomes.append(CheckResult(check, _problem(error)))
    return outcomes


def _problem(error: Exception) -> str:
    """The assertion that was not true, or the error and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
    if isinstance(error, AssertionError):
        said = one_line(error) if str(error) else (last.line or "").removeprefix("assert ")
        return f"not true: {said} ({place})"
    return f"{type(error).__name__}: {one_line(error)} ({place})"


@contextmanager
def refusing(name: str, kind: type[Exception] = EnsembleHubError) -> Iterator[None]:
    """Check that what happens in here is refused, in one line that names `name`.

    Raises:
        AssertionError: it is not, or otherwise.
    """
    told: str | None = None
    try:
        yield
    except kind as error:
        told = str(error)
    assert told is not None, f"no {kind.__name__} was raised"
    assert name in told, f"the error does not name {name!r}: {told}"
    assert "\n" not in told, f"the error has several lines: {told}"
