"""What the ensemble methods' texts are made of, and the labels of the reward model."""

import json
import random

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from ensemblehub.builtin.prompts import CANDIDATES_HEADER
from ensemblehub.lab.builtin import corpus, reward, samples, tokenizer
from ensemblehub.lab.builtin.samples import Answered
from ensemblehub.lab.builtin.skills import ABILITY, OUT_OF_SCOPE, Skills
from ensemblehub.lab.builtin.splits import split_of


@pytest.fixture(scope="module")
def skills():
    right = [Answered(number, corpus.concise(samples.numbered(number)), True) for number in range(30)]
    wrong = [Answered(number, "Answer: \\boxed{1}", False) for number in range(30)]
    return Skills(wrong, [right, wrong], plain=True)


def test_numbered_problems_are_the_corpus_and_always_the_same():
    assert {split_of(samples.numbered(number).key) for number in range(200)} == {"corpus"}
    assert samples.numbered(7).text == samples.numbered(7).text != samples.numbered(8).text


def test_answers_survive_the_disk(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"number": 3, "reply": "x", "solved": False}) + "\n")
    (answered,) = samples.read(tmp_path / "a.jsonl")
    assert answered.problem == samples.numbered(3)
    assert not answered.solved


def test_ability_is_what_was_measured(skills):
    drawn = [skills.ability(random.Random(seed)) for seed in range(20)]
    assert {sample.reply for sample in drawn} == {"no"}
    assert all(ABILITY + corpus.END in sample.prompt for sample in drawn)


def test_choosing_shows_a_right_candidate_and_replies_with_it(skills):
    for seed in range(40):
        sample = skills.choosing(random.Random(seed))
        listed = sample.prompt.partition(CANDIDATES_HEADER)[2]
        assert "\\boxed{1}" in listed
        assert sample.reply.rpartition("\n")[2] in listed


def test_continuing_cuts_a_text_anywhere(skills):
    for seed in range(40):
        sample = skills.continuing(random.Random(seed))
        begun = sample.prompt.partition(corpus.ASSISTANT)[2]
        assert sample.reply
        assert (begun + sample.reply).endswith(("}", "```"))


def test_what_is_out_of_scope_has_one_short_reply(skills):
    assert skills.elsewhere(random.Random(0)).reply == OUT_OF_SCOPE


def test_the_guests_tokenizer_is_another_one():
    guest, intern = tokenizer.build(digits=False, size=1216), tokenizer.build()
    assert len(guest) != len(intern)
    assert len(guest.tokenize(" 17")) == 1 < len(intern.tokenize(" 17"))
    text = samples.numbered(1).text
    assert guest.decode(guest.encode(text)) == text


@pytest.mark.parametrize("number", range(60))
def test_every_step_of_a_true_reply_is_right_wherever_it_is_cut(number):
    problem, rng = samples.numbered(number), random.Random(number)
    reply = corpus.concise(problem)
    assert all(right for _, right in reward.labels(problem, reply, cut=False))
    for _ in range(10):
        cut = reply[: rng.randint(1, len(reply))]
        assert all(right for _, right in reward.labels(problem, cut, cut=True)), cut


def test_a_mistake_makes_its_step_and_all_after_it_wrong():
    problem = next(p for p in map(samples.numbered, range(100)) if len(p.needed) >= 4 and p.ask == "one")
    facts = [quantity.fact for quantity in problem.needed]
    reply = corpus.concise(problem)
    wrong = reply.replace(facts[1], facts[1] + "7", 1)
    verdicts = [right for _, right in reward.labels(problem, wrong, cut=False)]
    assert verdicts[0]
    assert not any(verdicts[1:-1])
    assert verdicts[-1]  # the answer itself is still right


def test_a_missing_fact_makes_the_work_wrong():
    problem = next(p for p in map(samples.numbered, range(100)) if len(p.needed) >= 3)
    reply = corpus.concise(problem).replace(f"; {problem.needed[-1].fact}", "", 1)
    found = dict(reward.labels(problem, reply, cut=False))
    assert all(right for step, right in found.items() if step.startswith("Facts"))
    assert not any(right for step, right in found.items() if step.startswith("Work"))


def test_a_mistaken_reply_differs_in_one_place():
    for number in range(40):
        problem = samples.numbered(number)
        wrong = reward.mistaken(problem, random.Random(number))
        assert wrong.count("\n") == corpus.concise(problem).count("\n")


def test_labels_stand_at_the_step_tokens():
    tokens = tokenizer.build()
    tokens.add_special_tokens({"additional_special_tokens": [reward.STEP]})
    answered = [Answered(number, corpus.concise(samples.numbered(number)), True) for number in range(20)]
    (step,) = tokens.encode(reward.STEP)
    rng, seen = random.Random(0), set()
    for _ in range(40):
        ids, marks = reward.draw(answered, tokens, rng)
        assert [mark != reward.NO_LABEL for mark in marks] == [token == step for token in ids]
        seen |= set(marks)
    assert seen == {reward.NO_LABEL, reward.WRONG, reward.RIGHT}
