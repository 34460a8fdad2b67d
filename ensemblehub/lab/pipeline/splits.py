"""Which questions a split holds, and which two splits share: nothing is trained or chosen on test questions.

Questions are compared by their words, whatever they are called and whatever file they lie in.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Sequence

from ensemblehub.artifacts import hash_of
from ensemblehub.errors import ArtifactError
from ensemblehub.lab.journal import ANEW, Journal
from ensemblehub.lab.tasks.base import Item

log = logging.getLogger(__name__)
BY_CHANCE = 0.01  # share of a split that public benchmarks repeat in another one


def digest(item: Item) -> str:
    """A hash of a question's words."""
    words = " ".join(item.text.split())
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def asked(*items: Item) -> str:
    """A hash of questions with all that they are graded by."""
    return hash_of([[item.id, item.text, item.answer, item.extra] for item in items])


def check_unchanged(journal: Journal, items: Iterable[Item]) -> None:
    """Check that a journal's rows answer the questions as they are now; rows say what they answer in `asked`.

    Raises:
        ArtifactError: a question was changed since.
    """
    for item in items:
        now = asked(item)
        if journal.rows.get(item.id, {}).get("asked", now) != now:
            raise ArtifactError(
                f"{journal.path}: question {item.id} was changed since it was answered; {ANEW}"
            )


def check_apart(own: Collection[str], other: Collection[str], what: str, others: str) -> int:
    """How many questions two splits share, each given as hashes of its questions.

    Args:
        what, others: the two splits, for the message.

    Raises:
        ArtifactError: they share more than a few: one is a copy of the other, or of a part of it.
    """
    shared = sum(question in other for question in own)
    if shared > BY_CHANCE * min(len(own), len(other)):
        raise ArtifactError(
            f"{what} shares {shared} of its {len(own)} questions with {others}, and splits must not share "
            "questions"
        )
    return shared


def left_out(repeated: int) -> str:
    """The line that says how many repeats are left out."""
    if repeated == 1:
        return "1 question is a repeat of another and left out"
    return f"{repeated} questions are repeats of others and left out"


def distinct(own: Sequence[str], what: str) -> list[int]:
    """The first place of each question in `own`, hashes; repeats are left out with a warning."""
    places = {question: place for place, question in reversed(list(enumerate(own)))}
    if repeated := len(own) - len(places):
        log.warning("%s: %s", what, left_out(repeated))
    return sorted(places.values())


def unshared(own: Sequence[str], other: Collection[str], what: str, others: str) -> list[int]:
    """The places of the questions in `own` that are not in `other`; both are hashes of questions.

    A few that a benchmark repeats are left out with a warning; arguments and errors are those of
    `check_apart`.
    """
    if shared := check_apart(own, other, what, others):
        log.warning("%s: %d questions are left out, since %s has them too", what, shared, others)
    return [place for place, question in enumerate(own) if question not in other]
