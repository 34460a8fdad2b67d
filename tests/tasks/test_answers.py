"""What counts as the answer, and when two answers are the same."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemblehub.errors import MissingExtraError
from ensemblehub.tasks import symbolic
from ensemblehub.tasks.answers import LONGEST_ANSWER, equal_answers, final_answer, last_boxed


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        ("\\boxed{1}", "1"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\fbox{3}", "3"),
        ("\\boxed {4}", "4"),
        ("\\boxed{\\left\\{ 1, 2 \\right\\}}", "\\left\\{ 1, 2 \\right\\}"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{1} and then \\boxed{2", "1"),
        ("\\boxed{}", ""),
        ("boxed 1", None),
        ("", None),
    ],
)
def test_last_boxed(text, boxed):
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 3. No: \\boxed{4}", "4"),
        ("The answer is 3.", "3"),
        ("the answer is: $3.50$", "3.50"),
        ("The answer is 1. Wait.\nThe final answer is 2\nthanks", "2"),
        ("The answer is", None),
        ("3", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


EQUAL = [
    ("12", "12"), ("12", "12.0"), ("1,000", "1000"), ("1{,}000", "1000"), ("$5$", "5"), ("\\$18.90", "18.90"),
    ("\\frac{1}{2}", "0.5"), ("1/2", "\\dfrac{1}{2}"), ("-\\frac{3}{4}", "-0.75"), ("2/4", "1/2"), ("11\\%", "11"),
    ("90^\\circ", "90"), ("\\text{even}", "even"), ("\\text{(A)}", "(A)"), ("(1, 2)", "\\left(1,2\\right)"),
    ("x^2+2x+1", "(x+1)^2"), ("2\\sqrt{2}", "\\sqrt{8}"), ("5", "x=5"), ("p - q", "p-q"), ("3", "3.")
]  # fmt: skip
DIFFERENT = [
    ("12", "13"), ("12", "21"), ("0.5", "0.51"), ("1/2", "1/3"), ("(1,2)", "(2,1)"), ("(1,2]", "[1,2]"),
    ("(1,200)", "(1200)"), ("x+1", "x+2"), ("even", "odd"), ("12", ""), ("", ""), ("1/0", "1"), ("12", "-12"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal(gold, answer):
    assert equal_answers(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different(gold, answer):
    assert not equal_answers(gold, answer)


def test_off_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(equal_answers("x^2+2x+1", "(x+1)^2")))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize(
    "answer",
    ["2^{99999999}", "9^{9^{9^9}}", "9^9^9^9", "999999!", "10**10**10", "x" * (LONGEST_ANSWER + 1), "1" * 100000],
)
def test_huge_expressions_are_not_worked_out(answer):
    started = time.monotonic()
    assert not equal_answers("3", answer)
    assert equal_answers(answer, answer)
    assert time.monotonic() - started < symbolic.SECONDS + 5  # a worker may have to start


@given(st.text(max_size=60))
def test_finding_an_answer_never_fails(text):
    assert last_boxed("\\boxed{" + text) is None or "}" in text
    final_answer(text)


@given(st.integers())
def test_integers_equal_only_themselves(number):
    assert equal_answers(str(number), str(number))
    assert not equal_answers(str(number), str(number + 1))


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(symbolic.importlib.util, "find_spec", lambda name: None)
    assert equal_answers("1/2", "0.5")
    with pytest.raises(MissingExtraError, match=r"ensemblehub\[eval\]"):
        equal_answers("x", "y")


PAIRS = [json.loads(line) for line in Path(__file__).with_name("answer_pairs.jsonl").read_text().splitlines()]
# Right and not seen so: angles are no numbers to math-verify, and it reads -1i and 1/i as products with a symbol.
KNOWN = {("\\frac{\\sqrt{3}}{2}", "\\sin 60^\\circ"), ("-i", "-1i"), ("-i", "\\frac{1}{i}")}


def test_labelled_pairs_are_told_apart():
    assert len(PAIRS) >= 300
    wrong = [pair for pair in PAIRS if equal_answers(pair["gold"], pair["answer"]) != pair["equal"]]
    assert {(pair["gold"], pair["answer"]) for pair in wrong} == KNOWN
    assert all(pair["equal"] for pair in wrong)  # nothing wrong is taken for right


def test_many_threads_compare_at_once_and_a_hostile_one_holds_up_nobody_for_long():
    started = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        hostile = [threads.submit(equal_answers, "2", "9^{9^{9^9}}") for _ in range(2)]
        others = [threads.submit(equal_answers, f"\\sqrt{{{n}}}", f"{n}^{{1/2}}") for n in range(2, 30)]
        assert all(one.result() for one in others)
        assert not any(one.result() for one in hostile)
    assert time.monotonic() - started < 6 * symbolic.SECONDS


def test_a_worker_that_is_killed_is_replaced_and_none_outlives_its_pool():
    pool = symbolic.Pool(1)
    assert pool.equal("\\sqrt{4}", "2")
    (worker,) = pool._all
    worker.process.kill()
    worker.process.wait()
    assert pool.equal("\\sqrt{9}", "3")
    processes = [one.process for one in (worker, *pool._all)]
    pool.close()
    assert all(process.poll() is not None for process in processes)


def test_memory_is_bounded():
    pool = symbolic.Pool(1)
    try:
        assert not pool.equal("2", "7^{7^{9}}", seconds=20)
        assert pool.equal("\\sqrt{4}", "2")
    finally:
        pool.close()
