"""Tests as a criterion: a draft that is a program is accepted where it passes tests that no answer key holds.

For `accept:` of `cascade` and its relatives and of `best_of`, as
`ensemblehub.lab.tasks.shown_tests:ShownTests` or `...:WrittenTests`. Programs run in the sandbox. Tests
of the draft's own author: "Model Cascading for Code" (arXiv 2405.15842). Ours: the tests that the question
shows, its doctests and assertions, cost no tokens and are nobody's guess.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import doctest
import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from ensemblehub.ensemble_methods.acceptance import Acceptance, Trial
from ensemblehub.ensemble_methods.templates import filled, question_of, with_question
from ensemblehub.lab.tasks.extraction import code_of, program_of
from ensemblehub.lab.tasks.sandbox import run_tests

BUILTINS = frozenset(dir(builtins))
MOST = 8  # tests that are run
SECONDS = 5.0  # for each
LONGEST = 400  # characters of an example
ASK = """{question}

Do not solve this. Write five assert statements that a right solution passes, one a line and nothing else."""
BEGINS = re.compile(r"^(?:from |import |async def |def |class |@)", re.MULTILINE)
QUOTES = re.compile(r"\"{3}|'{3}")  # the end of a docstring is no output
EQUALS = re.compile(r"[\s#]*(?:[-=]{1,2}>|==?|➞|→|⇒|(?:should )?(?:returns?|equals?|be)\b:?)\s*")
DEFINES = re.compile(r"^\s*(?:async\s+)?def\s+(\w+)\s*\(", re.MULTILINE)


@dataclass(frozen=True)
class ShownTests(Acceptance):
    """The share of the tests in the question, assertions and doctests, that the draft passes; 0 without
    any."""

    threshold: float = 1.0

    async def probability(self, trial: Trial) -> float:
        question = question_of(trial.request.prompt, "tests")
        tests = await self.tests(trial, question)
        name = function_of(question, tests)
        if not name:
            return 0.0
        begun = BEGINS.search(question)
        prompt = question[begun.start() :] if begun else ""
        program = program_of(trial.draft.reply, prompt, name)
        return await asyncio.to_thread(share_passed, program, tests[:MOST], name)

    async def tests(self, trial: Trial, question: str) -> list[str]:
        """The tests, a line of Python each."""
        found = assertions(question) + examples(question) + equations(question)
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class WrittenTests(ShownTests):
    """The share of passed tests among those that the draft's author writes itself; they may be wrong."""

    threshold: float = 0.6

    async def tests(self, trial: Trial, question: str) -> list[str]:
        prompt = with_question(trial.request.prompt, filled(ASK, question=question))
        asked = replace(trial.request, prompt=prompt, prefix="", written=()).seeded("tests")
        asked = replace(asked, sampling=replace(asked.sampling, stop=()))
        text = ""
        async with aclosing(trial.draft.engine.stream(asked, trial.ledger.meter("judge"))) as pieces:
            async for piece in pieces:
                text += piece.text
        return assertions(code_of(text))


def assertions(text: str) -> list[str]:
    """The lines that are an assertion by themselves."""
    return [line.strip() for line in text.splitlines() if _is_assertion(line.strip())]


def examples(text: str) -> list[str]:
    """Doctests as assertions; those that print or raise are left out."""
    try:
        found = doctest.DocTestParser().get_examples(QUOTES.sub("\n\n", text))
    except ValueError:  # a prompt `>>>` that is no doctest
        return []
    tests = (
        f"assert ({example.source.strip()}) == ({example.want.strip()})" for example in found if example.want
    )
    return [test for test in tests if _is_assertion(test)]


def equations(text: str) -> list[str]:
    """Examples such as `add(1, 2) == 3`, `add(1, 2) ➞ 3` and `add(1, 2) should return 3`, as assertions.

    Only calls of functions that the text begins, and values that are literals.
    """
    names = "|".join(map(re.escape, DEFINES.findall(text)))
    found = re.finditer(rf"(?<![\w.])(?:{names})(?=\()", text) if names else ()
    tests = []
    for start in (match.start() for match in found):
        line = text[start : start + LONGEST].partition("\n")[0]
        if len(line) == LONGEST:  # a value that is cut off would be another one
            continue
        ends = (place for place, character in enumerate(line, 1) if character == ")")
        call = next((line[:end] for end in ends if _is_call(line[:end])), "")
        if call and (sign := EQUALS.match(line, len(call))):
            value = _literal(line[sign.end() :].partition(" #")[0].rstrip())
            if value:
                tests.append(f"assert ({call}) == ({value})")
    return tests


def _is_call(text: str) -> bool:
    try:
        return isinstance(ast.parse(text, mode="eval").body, ast.Call)
    except (SyntaxError, ValueError):
        return False


def _literal(text: str) -> str:
    """The longest value that a text begins with, unless an expression goes on behind it; else nothing."""
    for end in range(len(text), 0, -1):
        value, after = text[:end], text[end:]
        ended = not after or not (after[0].isalnum() or after.lstrip()[:1] in "+-*/%<>=&|^[")
        if ended and _is_literal(value):
            return value
    return ""


def _is_literal(text: str) -> bool:
    """Whether it is a value by itself; a comma without parentheses ends one."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return False
    return not isinstance(value, tuple) or text.startswith("(")


def function_of(question: str, tests: Sequence[str]) -> str:
    """The function that is asked for: the last one the question begins, else the first one a test calls."""
    if not tests:
        return ""
    calls = [
        node.func.id
        for test in tests[:1]
        for node in ast.walk(ast.parse(test))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in BUILTINS
    ]
    names = [name for name in DEFINES.findall(question) if any(f"{name}(" in test for test in tests)]
    return next(iter([*names[-1:], *calls]), "")


def share_passed(program: str, tests: Sequence[str], name: str) -> float:
    """The share of the tests that a program passes, each run by itself."""
    checks = [f"def check(candidate):\n    {test}\n" for test in tests]
    passed = [run_tests(program, check, name, wall_seconds=SECONDS).passed for check in checks]
    return sum(passed) / len(passed)


def _is_assertion(line: str) -> bool:
    try:
        body = ast.parse(line).body
    except (SyntaxError, ValueError):
        return False
    return len(body) == 1 and isinstance(body[0], ast.Assert)
