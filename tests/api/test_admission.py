"""The queue's bounds, exact for arrivals one by one and all at once."""

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemblehub.api.admission import Admission
from ensemblehub.api.problems import Problem

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def ask(admission, done, answers=1, tokens=5, reading=None):
    """One request, as the server sees it: admitted, its prompt read, written; returns what became of it."""
    with admission.reservation() as reservation:
        try:
            reservation.admit(answers)
            if reading is not None:
                await reading.wait()
            reservation.queue([tokens] * answers)
        except Problem as problem:
            return problem.status_code
        for _ in range(answers):
            async with reservation.place():
                assert admission.running <= admission.max_running
                await done.wait()
    return 200


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def nothing_is_left(admission):
    return admission.admitted == admission.running == admission.queued == admission.queued_tokens == 0


@pytest.mark.parametrize("max_queued", [0, 1, 2, 10, 256])
@pytest.mark.parametrize("max_running", [1, 3])
@pytest.mark.parametrize("arrive", ["paced", "together", "together, read slowly"])
async def test_exactly_so_many_wait_and_the_next_is_refused(max_queued, max_running, arrive):
    admission, done, reading = Admission(max_running, max_queued, 10**9), asyncio.Event(), asyncio.Event()
    room = max_running + max_queued
    asked = []
    for _ in range(room + 9):
        asked.append(asyncio.create_task(ask(admission, done, reading=reading if "read" in arrive else None)))
        if arrive == "paced":
            await settle()
    await settle()
    assert [task.result() for task in asked[room:]] == [429] * 9
    assert not any(task.done() for task in asked[:room])
    assert admission.admitted == room
    reading.set()
    await settle()
    assert (admission.running, admission.queued) == (max_running, max_queued)
    with pytest.raises(Problem, match=f"{max_queued} answers wait") as full:
        admission.check()
    assert int(full.value.headers["Retry-After"]) >= 1
    done.set()
    assert await asyncio.gather(*asked[:room]) == [200] * room
    assert nothing_is_left(admission)
    assert await ask(admission, done) == 200


async def test_tokens_that_wait_are_bounded_and_those_that_need_not_wait_are_not():
    admission, done = Admission(1, 10, 40), asyncio.Event()
    first = asyncio.create_task(ask(admission, done, tokens=1000))  # does not wait
    second = asyncio.create_task(ask(admission, done, tokens=30))
    await settle()
    assert admission.queued_tokens == 30
    assert await ask(admission, done, tokens=11) == 429
    third = asyncio.create_task(ask(admission, done, tokens=10))
    await settle()
    assert admission.queued_tokens == 40
    done.set()
    assert await asyncio.gather(first, second, third) == [200] * 3
    assert nothing_is_left(admission)


async def test_several_answers_of_a_request_count_each():
    admission, done = Admission(2, 3, 10**6), asyncio.Event()
    asked = [asyncio.create_task(ask(admission, done, answers=3)) for _ in range(2)]
    await settle()
    assert [task.done() and task.result() for task in asked] == [False, 429]
    assert await ask(admission, done, answers=6) == 429
    done.set()
    assert await asked[0] == 200
    assert nothing_is_left(admission)


async def test_places_are_given_in_the_order_of_arrival():
    admission, order = Admission(1, 20, 10**6), []

    async def answer(number):
        with admission.reservation() as reservation:
            reservation.admit(1)
            reservation.queue([1])
            async with reservation.place():
                order.append(number)
                await asyncio.sleep(0)

    await asyncio.gather(*(answer(number) for number in range(20)))
    assert order == list(range(20))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(0, 9)), max_size=40),
    st.integers(0, 6),
)
def test_whoever_leaves_when_nothing_is_lost_and_no_bound_is_passed(steps, max_queued):
    async def play():
        admission, done = Admission(2, max_queued, 60), asyncio.Event()
        asked = []
        for leaves, answers, tokens in steps:
            asked.append(asyncio.create_task(ask(admission, done, answers, tokens)))
            if leaves > 2 and len(asked) >= leaves:
                asked[-leaves].cancel()
            await settle()
            assert 0 <= admission.running <= 2
            assert 0 <= admission.queued <= max_queued + 2 - admission.running
            assert 0 <= admission.queued_tokens <= 60
        done.set()
        await asyncio.gather(*asked, return_exceptions=True)
        assert nothing_is_left(admission)

    asyncio.run(play())


def test_a_reservation_that_is_given_up_before_its_answers_begin_gives_all_back():
    admission = Admission(1, 5, 100)
    with ExitStack() as stack:
        first, second = (stack.enter_context(admission.reservation()) for _ in range(2))
        first.admit(2)
        first.queue([3, 4])
        second.admit(3)
        assert (admission.admitted, admission.running, admission.queued_tokens) == (5, 1, 4)
    assert nothing_is_left(admission)
