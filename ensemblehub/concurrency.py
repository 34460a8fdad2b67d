"""Run coroutines at the same time: one per item and a bounded number at a time, or all together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def for_each(
    items: Iterable[T],
    work: Callable[[T], Awaitable[R]],
    *,
    limit: int,
    keep: Callable[[R], object] | None = None,
    progress: Callable[[], object] | None = None,
    collect: bool = True,
) -> list[R]:
    """Await `work(item)` for every item, at most `limit` at a time; results are in the order of `items`.

    Items are drawn only when a worker is free, so the source may be endless or slow.  The first exception, or
    the cancellation of the caller (Ctrl-C), cancels the work in progress, awaits it and is raised as it is,
    not in an `ExceptionGroup`.  To resume after that, give `journal.missing(items)` and
    `keep=journal.append`: results that were kept are not computed again.

    Args:
        limit: Maximum number of items in progress.
        keep: Called with each result as soon as it is there, in the order of completion.
        progress: Called after each item.
        collect: Whether results are returned; without, the number of items takes no memory.
    """
    results: dict[int, R] = {}
    numbered = enumerate(items)

    async def worker() -> None:
        for number, item in numbered:  # shared: each worker draws the next item
            result = await work(item)
            if collect:
                results[number] = result
            if keep:
                keep(result)
            if progress:
                progress()

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(limit):
                workers.create_task(worker())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return [results[number] for number in sorted(results)]


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run `calls` at the same time and return their results.

    The first failure cancels the others and is raised as it is.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
