"""The word problems say what they mean: an independent reader of the English gets the same answers."""

import importlib.util
import random
import re
from pathlib import Path

import pytest

from ensemblehub.lab.builtin import corpus, word_problems
from ensemblehub.lab.builtin.splits import SPLITS, stream_split
from ensemblehub.lab.builtin.word_problems import PLAIN, SUBJECTS, TRICKY, Quantity, WordProblem

_spec = importlib.util.spec_from_file_location("english", Path(__file__).with_name("english.py"))
english = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(english)


def test_the_reader_reads_by_itself():
    text = (
        "The forks exceed the mugs by 3. Somebody counted a baker's dozen forks. To each of the mugs belong 2 pans. "
        "How many more pans than mugs are there?"
    )
    assert english.solve(text) == 10  # forks 13, mugs 10, pans 20


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_the_sentences_give_the_answer(rate):
    rng = random.Random(f"english/{rate}")
    for number in range(200):
        problem = word_problems.draw(rng, steps=number % 8 + 1, tricky_rate=rate)
        assert english.solve(problem.text) == problem.answer, problem.text


def test_the_problems_of_every_split_can_be_solved():
    for split in SPLITS:
        stream = stream_split(word_problems.draw, split)
        for _ in range(60):
            problem = next(stream)
            assert english.solve(problem.text) == problem.answer, problem.text


def test_every_template_is_told():
    rng, told = random.Random(2), []
    for _ in range(1500):
        told.extend(sentence for sentence, _ in word_problems.draw(rng).sentences)
    for templates in (PLAIN, TRICKY):
        for template in (request for several in templates.values() for request in several):
            pattern = re.sub(r"\\\{\w+\\\}", r"[\\w' ]+", re.escape(template))
            assert any(re.fullmatch(pattern, sentence) for sentence in told), template


def test_subjects_levels_and_steps():
    rng = random.Random(3)
    problems = [word_problems.draw(rng) for _ in range(800)]
    assert {problem.subject for problem in problems} == set(SUBJECTS)
    assert len(SUBJECTS) >= 5
    assert {problem.level for problem in problems} == {1, 2, 3, 4, 5}
    assert {problem.steps for problem in problems} == set(range(1, 9))
    assert {problem.ask for problem in problems} == {"one", "total", "gap"}


def test_numbers_stay_small_and_whole():
    rng = random.Random(4)
    for _ in range(500):
        problem = word_problems.draw(rng)
        assert all(1 <= quantity.value <= 99 for quantity in problem.needed)
        assert 1 <= problem.answer <= 99


def test_every_name_is_defined_once():
    rng = random.Random(5)
    for _ in range(300):
        problem = word_problems.draw(rng)
        names = [quantity.name for _, quantity in problem.sentences]
        assert len(names) == len(set(names))
        assert {quantity.name for quantity in problem.needed} <= set(names)


def given(name, value):
    return Quantity(name, value, "given")


def asked(root, subject="kitchen"):
    return WordProblem(subject, "one", (root,), (), "")


def test_the_written_forms_by_hand():
    bowls = given("bowls", 12)
    mugs = Quantity("mugs", 17, "+", (bowls,), 5)
    problem = asked(mugs)
    assert (mugs.fact, mugs.action) == ("mugs = bowls + 5", "mugs = 12 + 5 = 17")
    assert problem.actions == ["mugs = 12 + 5 = 17"]
    assert [quantity.name for quantity in problem.needed] == ["mugs", "bowls"]
    assert corpus.insight(problem) == (
        "Goal: mugs\nPlanning: trace mugs\nRetrieval: mugs = bowls + 5; bowls = 12\nAction: state it"
    )
    assert corpus.concise(problem).endswith("Answer: \\boxed{17}")
