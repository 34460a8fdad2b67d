"""`for_each`: bounded, in order, lazy, cancelled as a whole."""

import asyncio

import pytest

from ensemblehub.concurrency import for_each


def test_results_come_in_the_order_of_the_items_and_are_kept_in_that_of_completion():
    kept, steps = [], []

    async def work(number):
        await asyncio.sleep(0.01 * (3 - number))
        return number * number

    found = asyncio.run(for_each(range(3), work, limit=3, keep=kept.append, progress=lambda: steps.append(1)))
    assert found == [0, 1, 4]
    assert kept == [4, 1, 0]
    assert len(steps) == 3


def test_at_most_limit_items_are_in_progress_and_no_more_are_drawn():
    running, most, drawn = set(), [], []

    def items():
        for number in range(7):
            drawn.append(number)
            yield number

    async def work(number):
        running.add(number)
        most.append(len(running))
        assert len(drawn) <= number + 2
        await asyncio.sleep(0)
        running.remove(number)

    asyncio.run(for_each(items(), work, limit=2))
    assert max(most) == 2


def test_the_first_exception_cancels_the_others_and_keeps_what_is_done():
    kept, cancelled = [], []

    async def work(number):
        if number == 0:
            return "done"
        if number == 1:
            await asyncio.sleep(0.01)
            raise ValueError("no")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # is awaited
            cancelled.append(number)
            raise

    with pytest.raises(ValueError, match="no"):
        asyncio.run(for_each(range(5), work, limit=3, keep=kept.append))
    assert kept == ["done"]
    assert sorted(cancelled) == [2, 3]


def test_cancelling_the_caller_cancels_and_awaits_the_work():
    cancelled = []

    async def work(number):
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.append(number)

    async def run():
        task = asyncio.create_task(for_each(range(4), work, limit=2))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(cancelled) == [0, 1]

    asyncio.run(run())


def test_results_that_nobody_wants_are_not_collected():
    seen = []

    async def work(number):
        seen.append(number)
        return number

    assert asyncio.run(for_each(range(5), work, limit=2, collect=False)) == []
    assert sorted(seen) == [0, 1, 2, 3, 4]
