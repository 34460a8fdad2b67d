"""The contract of `lab/tasks/base.py`: what every benchmark promises."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from ensemblehub.errors import ConfigError
from ensemblehub.lab.contracts.checks import Check, collector, refusing
from ensemblehub.lab.tasks.base import Grade, Task

CHECKS: list[Check] = []
about = collector(CHECKS)
FEW = 8  # questions looked at per split
WRONG = ("", "I do not know.", "\x00 \\boxed{", "{" * 2000)


@dataclass
class TaskSubject:
    """A benchmark, and an answer to its first question that is right, where one is known.

    Attributes:
        right: makes an answer from an item's `answer`; the default puts it into the form `\\boxed{...}`.
    """

    task: Task
    right: str = "\\boxed{{{}}}"


@about("items")
async def items(subject: TaskSubject) -> None:
    """every split has questions, the same in the same order every time, with ids of their own"""
    assert subject.task.splits, "there is no split"
    for split in subject.task.splits:
        first = list(subject.task.items(split, FEW))
        assert first, f"the split {split!r} is empty"
        assert first == list(subject.task.items(split, FEW))
        assert len({item.id for item in first}) == len(first)
        assert all(item.text.strip() for item in first)
        json.dumps([asdict(item) for item in first])


@about("items")
async def unknown_split(subject: TaskSubject) -> None:
    """a split that does not exist is refused by name"""
    with refusing("no_such_split", ConfigError):
        list(subject.task.items("no_such_split", 1))


@about("request")
async def request(subject: TaskSubject) -> None:
    """a question is put as a chat that ends with a user's message with the question's text"""
    for item in subject.task.items(subject.task.splits[0], FEW):
        chat = subject.task.request(item)
        assert chat.messages[-1].role == "user"
        assert item.text.strip() in "".join(message.content for message in chat.messages)


@about("grade")
async def grades(subject: TaskSubject) -> None:
    """the right answer is right, and no other text is right or an error"""
    for item in subject.task.items(subject.task.splits[0], FEW):
        grade = subject.task.grade(item, subject.right.format(item.answer))
        assert isinstance(grade, Grade)
        assert grade.correct, (
            f"{item.id}: the right answer {item.answer!r} is graded as wrong: {grade.reason}"
        )
        for text in WRONG:
            assert not subject.task.grade(item, text).correct, f"{item.id}: {text[:20]!r} is graded as right"


@about("grade")
async def threads(subject: TaskSubject) -> None:
    """grading in several threads gives the same grades"""
    first = list(subject.task.items(subject.task.splits[0], FEW))
    answers = [(item, subject.right.format(item.answer)) for item in first] + [(item, "no") for item in first]
    alone = [subject.task.grade(item, text) for item, text in answers]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda asked: subject.task.grade(*asked), answers)) == alone
