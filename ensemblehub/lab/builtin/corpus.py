"""The texts the built-in models are trained on, and the words they are prompted with.

Knows how a problem becomes messages: an insight (Goal, Planning, Retrieval, Action), a concise answer, a
long answer that restates, derives and checks.  Knows no tokenizer; `Sample.parts` says which parts are
the model's own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from ensemblehub.builtin.prompts import INSIGHT_GUIDE, INSIGHT_HEADER, INSIGHT_REQUEST
from ensemblehub.lab.builtin import programs, word_problems
from ensemblehub.lab.builtin.programs import Program
from ensemblehub.lab.builtin.splits import split_of
from ensemblehub.lab.builtin.word_problems import Quantity, WordProblem

USER = "<|user|>"
ASSISTANT = "<|assistant|>"
SYSTEM = "<|system|>"
END = "<|end|>"
PAD = "<|pad|>"
THINK, END_THINK = "<think>", "</think>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT, THINK, END_THINK)

Problem = WordProblem | Program


@dataclass(frozen=True)
class Sample:
    """One training text: the prompt (read) and the reply (written), `cut` being where an insight is cut."""

    prompt: str
    reply: str
    insight: str = ""
    cut: float = 1.0  # share of the insight's tokens that is kept


def _items(lines: list[str]) -> str:
    return "; ".join(lines)


def insight(problem: Problem, wrong: Quantity | None = None) -> str:
    """The mentor's insight in GPRA form; it never states the asked value.

    Args:
        problem: the problem to give insights on.
        wrong: a needed quantity to state wrongly (builtin_math only), for training on bad insights.
    """
    head = f"Goal: {problem.goal}\nPlanning: {problem.plan}\n"
    if isinstance(problem, Program):
        return head + f"Retrieval: {_items([step.fact for step in problem.chain])}\nAction: return x"
    facts = [_misread(quantity) if quantity is wrong else quantity.fact for quantity in problem.needed]
    actions = problem.actions[:-1] if problem.steps > 1 else []
    return head + f"Retrieval: {_items(facts)}\nAction: {_items(actions) or 'state it'}"


def _misread(quantity: Quantity) -> str:
    name, _, rest = quantity.fact.partition(" = ")
    swapped = {"+": "-", "-": "+", "*": "/", "/": "*"}
    if quantity.operation == "given":
        return f"{name} = {quantity.value + 1}"
    return f"{name} = {''.join(swapped.get(character, character) for character in rest)}"


def concise(problem: Problem) -> str:
    """A short complete answer."""
    if isinstance(problem, Program):
        return f"```python\n{problem.prompt.splitlines()[0]}\n{problem.body}```"
    facts = _items([quantity.fact for quantity in problem.needed])
    return f"Facts: {facts}\nWork: {_items(problem.actions)}\nAnswer: \\boxed{{{problem.answer}}}"


def thinking(problem: Problem) -> str:
    """The long answer of a reasoning model: restate every sentence, derive, check every fact, answer."""
    if isinstance(problem, Program):
        read = "".join(
            f"Read: {step.wording} -> {step.operation.name} -> {step.fact}\n" for step in problem.chain
        )
        check = "".join(f"Check: {step.fact} -> {step.wording}\n" for step in problem.chain)
        draft = _items([step.fact for step in problem.chain])
        return f"{read}Goal: {problem.goal}\nDraft: {draft}\n{check}Good.\n{END_THINK}{concise(problem)}"
    read = "".join(f"Read: {sentence} -> {quantity.fact}\n" for sentence, quantity in problem.sentences)
    sentence_of = {quantity.name: sentence for sentence, quantity in problem.sentences}
    check = "".join(
        f"Check: {quantity.fact} -> {sentence_of[quantity.name]} -> {quantity.action}\n"
        for quantity in problem.needed
    )
    facts, work = _items([quantity.fact for quantity in problem.needed]), _items(problem.actions)
    body = f"{read}Goal: {problem.goal}\nFacts: {facts}\nWork: {work}\n{check}Good."
    return f"{body}\n{END_THINK}Answer: \\boxed{{{problem.answer}}}"


def prompt(text: str, system: str = "", insights: str = "", think: bool = False) -> str:
    """A chat prompt as the built-in models' chat template renders it."""
    head = f"{SYSTEM}{system}{END}" if system else ""
    tail = f"{INSIGHT_HEADER}{insights}" if insights else ""
    return f"{head}{USER}{text}{tail}{END}{ASSISTANT}{THINK if think else ''}"


def any_problem(rng: random.Random, tricky_rate: float | None = None, most_steps: int = 8) -> Problem:
    """A corpus problem of either family."""
    while True:
        problem: Problem
        if rng.random() < 0.15:
            problem = programs.draw(rng, tricky_rate=tricky_rate, steps=rng.randint(1, min(most_steps, 5)))
        else:
            problem = word_problems.draw(rng, tricky_rate=tricky_rate, steps=rng.randint(1, most_steps))
        if split_of(problem.key) == "corpus":
            return problem


def word_problem(rng: random.Random) -> WordProblem:
    """A word problem of the corpus, of any length and wording."""
    while True:
        problem = word_problems.draw(rng)
        if split_of(problem.key) == "corpus":
            return problem


def mentor_sample(rng: random.Random) -> Sample:
    """The mentor learns everything: insights, thinking and concise answers, in any wording."""
    problem, kind = any_problem(rng), rng.random()
    if kind < 0.5:
        return Sample(prompt(problem.text, INSIGHT_REQUEST), insight(problem))
    if kind < 0.7:
        return Sample(prompt(problem.text, think=True), thinking(problem))
    return Sample(prompt(problem.text), concise(problem))


def intern_sample(rng: random.Random) -> Sample:
    """The intern learns to execute: with whole insights in any wording, alone mostly in plain words.

    It answers alone, and from insights cut at a random token, on problems that are plainly worded for the
    most part; tricky wordings it meets with whole insights beside them.  A few insights are wrong.
    """
    kind = rng.random()
    if kind < 0.35:
        problem = any_problem(
            rng, tricky_rate=rng.choice((0.0, 0.0, 0.1, 0.25)), most_steps=rng.randint(1, 8)
        )
        return Sample(prompt(problem.text, INSIGHT_GUIDE if rng.random() < 0.8 else ""), concise(problem))
    if kind < 0.7:
        problem, cut = any_problem(rng, tricky_rate=rng.choice((0.0, 0.0, 0.1, 0.25))), rng.random()
    else:
        problem, cut = any_problem(rng), 1.0
    wrong = rng.choice(problem.needed) if isinstance(problem, WordProblem) and rng.random() < 0.04 else None
    return Sample(prompt(problem.text, INSIGHT_GUIDE), concise(problem), insight(problem, wrong), cut)


def tokenizer_texts(count: int = 4000) -> Iterator[str]:
    """Texts for training the tokenizer."""
    rng = random.Random("tokenizer")
    for _ in range(count):
        problem = any_problem(rng)
        yield "\n".join(
            (problem.text, insight(problem), concise(problem), thinking(problem).replace(END_THINK, "\n"))
        )
        yield f"{INSIGHT_REQUEST} {INSIGHT_GUIDE} {INSIGHT_HEADER}"
