"""What `advise` records of every question, once: all strategies are replayed from it without a model call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ensemblehub.answers.equality import final_answer
from ensemblehub.artifacts import hash_of
from ensemblehub.cost import ModelInfo, UsageLedger, dollars
from ensemblehub.ensemble_methods import question
from ensemblehub.ensemble_methods.acceptance import Trial
from ensemblehub.ensemble_methods.candidates import Candidate, drafts
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.ensemble_methods.templates import question_of
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.lab.advise.costs import CostUnit, Prices, described, without_prices
from ensemblehub.lab.journal import Journal, told
from ensemblehub.lab.pipeline import collect, splits
from ensemblehub.lab.pipeline.experiment import differing_settings
from ensemblehub.lab.pipeline.records import Collected, DraftScore, Row, Run
from ensemblehub.lab.tasks.base import Item, Task
from ensemblehub.lab.tasks.own import OwnQuestions
from ensemblehub.lab.tasks.shown_tests import ShownTests
from ensemblehub.schema import Request, Sampling
from ensemblehub.tandem.features import features, sequences
from ensemblehub.tandem.insights import Dialogue
from ensemblehub.tandem.judges import Judge

log = logging.getLogger(__name__)
TEMPERATURE = 0.7  # of the samples beside the greedy answer
LOGPROB = "logprob"  # the criterion of drafts in the words of the profile
SHOWN_TESTS = ShownTests()


@dataclass(frozen=True)
class InternAnswer:
    """An answer of the intern to the bare question.

    Attributes:
        answer: what `vote` reads as the answer; None where nothing can be read.
        logprob: mean log-probability of its tokens; None where the engine gives none.
        tests: share of the tests in the question that it passes; None where the question has none.
        reading: of the greedy answer alone: features of the intern's reading of the question, (16,).
        read: tokens of that reading.
    """

    run: Run
    answer: str | None
    logprob: float | None
    tests: float | None = None
    reading: list[float] | None = None
    read: int = 0


@dataclass(frozen=True)
class Recorded:
    """The recorded questions: what `collect` keeps of each, and the intern's drafts, the greedy one first.

    Attributes:
        prices: of mentor and intern, where costs are US dollars; None where they are FLOPs.
        judge: the folder of a trained judge of this pair, and the judge, where one is configured.
    """

    collected: Collected
    drafts: list[list[InternAnswer]]
    prices: Prices | None = None
    judge: tuple[str, Judge] | None = None

    @property
    def n(self) -> int:
        """The number of questions."""
        return len(self.drafts)

    @property
    def cut_off(self) -> int:
        """To how many of them the mentor's own answer was cut off at `max_tokens`."""
        return sum(row.runs["mentor"].finish == "length" for row in self.collected.rows)

    def name(self, role: str) -> str:
        """The name of the engine that is `mentor` or `intern`."""
        found: str = self.collected.header["roles"][role]
        return found

    @property
    def scored(self) -> bool:
        """Whether the criterion `logprob` was asked about every draft in the words of the profile."""
        return len(self.collected.drafts) == self.n

    @property
    def without_thinking(self) -> Recorded | None:
        """The same with the mentor's answers without thinking as its answers; None without such a switch."""
        rows = self.collected.rows
        if not any(row.thinking_switch for row in rows):
            return None
        quiet = [replace(row, runs={**row.runs, "mentor": row.runs["mentor_concise"]}) for row in rows]
        return replace(self, collected=replace(self.collected, rows=quiet))

    @property
    def words(self) -> dict[str, Any]:
        """The profile that both models were prompted with, as an option."""
        return {"profile": self.collected.header["profile"]}

    @property
    def unit(self) -> CostUnit:
        """Of all costs."""
        return "usd" if self.prices else "flops"

    @property
    def measure(self) -> str:
        """What costs are counted in, as text."""
        if not self.prices:
            return "FLOPs of every call"
        prices = "; ".join(map(described, map(self.name, ("mentor", "intern")), self.prices))
        return f"US dollars of every call ({prices}; nothing cached)"

    def cost(self, run: Run) -> float:
        """What a run costs by itself: every token read and written, nothing cached."""
        if not self.prices:
            return run.flops(self.collected.info("mentor"), self.collected.info("intern"))
        mentor, intern = (ModelInfo(price=price) for price in self.prices)
        return dollars(mentor, run.mentor_read, 0, run.mentor_tokens) + dollars(
            intern, run.intern_read, 0, run.intern_tokens
        )

    def repeated_cost(self, run: Run) -> float:
        """What a run of the intern costs after another one of the same prompt, of which only the last token is
        read again; in US dollars as much as by itself.
        """
        cost = self.cost(run)
        return cost if self.prices else cost - self.collected.info("intern").flops(0, run.intern_read - 1)

    def reading_cost(self, draft: InternAnswer) -> float:
        """What it costs more that the intern reads the question before its answer, which goes on from there:
        the prompt's last token once more, or in US dollars another prompt.
        """
        if self.prices:
            return dollars(ModelInfo(price=self.prices[1]), draft.read, 0, 0)
        return self.collected.info("intern").flops(draft.read - 1, draft.read)

    @classmethod
    def of(
        cls,
        rows: list[dict[str, Any]],
        header: dict[str, Any],
        prices: Prices | None = None,
        judge: tuple[str, Judge] | None = None,
    ) -> Recorded:
        """From rows of a `Recorder`."""
        known = dict.fromkeys(Row.__dataclass_fields__) | {"readings": None}
        kept = [{key: value for key, value in row.items() if key in known} for row in rows]
        found = [[_answer_of(draft) for draft in row["drafts"]] for row in rows]
        return cls(collect.folded(kept, header, "the recorded questions"), found, prices, judge)


def _answer_of(draft: dict[str, Any]) -> InternAnswer:
    """A recorded answer, read as `vote` reads it: older recordings hold what the grader read."""
    run = Run(**draft["run"])
    return InternAnswer(
        **{**draft, "run": run, "answer": final_answer(run.text.rpartition("</think>")[2].strip())}
    )


class Recorder(collect.Collector):
    """Records one question at a time.

    Args:
        samples: answers of the intern at temperature 0.7, beside its greedy one.
        known: what a `Collector` recorded of questions already, by id; it is not asked for again.
    """

    def __init__(
        self,
        tandem: Tandem,
        engines: list[Engine],
        task: Task,
        sampling: Sampling,
        samples: int,
        known: Mapping[str, dict[str, Any]],
    ) -> None:
        super().__init__(_with_draft(tandem, engines), engines, task, sampling)
        self.samples, self.known = samples, known

    async def collect(self, item: Item) -> dict[str, Any]:
        ask = self.task.ask(item, self.sampling)
        warm = replace(ask, sampling=replace(ask.sampling, temperature=TEMPERATURE))
        sampled = [candidate.request for candidate in drafts(warm, [self.intern], self.samples)]
        reading, read = await self.reading(ask)
        answered = [await self.attempt(item, request) for request in (ask, *sampled)]
        answered[0] = replace(answered[0], reading=reading, read=read)
        row = self.known.get(item.id) or await super().collect(item)
        row = row | {"drafts": [asdict(draft) for draft in answered]}
        if not item.answer:
            row = await asyncio.to_thread(graded, self.task, item, row)
        return row | {"asked": splits.asked(replace(item, extra={}))}

    async def read(self, request: Request, dialogue: Dialogue) -> tuple[Any, int]:
        """Nothing where the intern cannot score a prompt: no rule is replayed then."""
        can = "score" in self.intern.capabilities
        return await super().read(request, dialogue) if can else (None, 0)

    def is_whole(self, row: dict[str, Any] | None) -> bool:
        """Whether a question is recorded with all that is read now; earlier versions did not read it alone."""
        reads = "score" in self.intern.capabilities
        return row is not None and not (reads and row["drafts"][0].get("reading") is None)

    async def completed(self, item: Item, row: dict[str, Any]) -> dict[str, Any]:
        """A row of an earlier version with what it lacks."""
        reading, read = await self.reading(self.task.ask(item, self.sampling))
        first, *others = row["drafts"]
        return row | {"drafts": [first | {"reading": reading, "read": read}, *others]}

    async def reading(self, ask: Request) -> tuple[list[float] | None, int]:
        """What `lost` reads before a draft; nothing where the intern cannot score a prompt."""
        if "score" not in self.intern.capabilities:
            return None, 0
        ledger = UsageLedger()
        tokens = await question.read(self.intern, ask, ledger.meter("judge"))
        return list(features(*sequences(tokens))), ledger.total.prompt_tokens

    async def draft(self, ask: Request, answer: Candidate) -> DraftScore | None:
        """Nothing where the log-probability of a token is not known."""
        known = answer.logprob is not None or not answer.tokens  # an empty draft scores 0
        return await super().draft(ask, answer) if known else None

    async def attempt(self, item: Item, request: Request) -> InternAnswer:
        """Let the intern answer."""
        draft = await collect.written(self.intern, request)
        grade, cost = await asyncio.to_thread(self.task.grade, item, draft.text), draft.usage.total
        written = (cost.prompt_tokens, cost.completion_tokens, cost.seconds)
        run = Run(grade.correct, draft.finish, 0, 0, *written, False, draft.text)
        return InternAnswer(run, final_answer(draft.reply), draft.logprob, await self.passed(draft))

    async def passed(self, draft: Candidate) -> float | None:
        """The share of the tests in the question that a program passes; None without tests."""
        trial = Trial(draft.request, draft, [self.intern], draft.usage)
        if not await SHOWN_TESTS.tests(trial, question_of(draft.request.prompt, "tests")):
            return None
        return await SHOWN_TESTS.probability(trial)


def _with_draft(tandem: Tandem, engines: list[Engine]) -> Tandem:
    """The Tandem whose intern's answer without an insight is scored as a draft, where that can be."""
    _, intern = tandem.roles(engines)
    can = "logprobs" in intern.capabilities and tandem.insight_mode == "prompt"
    return replace(tandem, draft=LOGPROB if can else None)


def graded(task: Task, item: Item, row: dict[str, Any]) -> dict[str, Any]:
    """A recorded row with its texts graded again: by agreement with the mentor's own answer, where the
    question has none; nothing agrees with one that is empty or was cut off.
    """
    row, known = deepcopy(row), True
    if not item.answer:
        mentor = row["runs"]["mentor"]
        item = replace(item, answer=mentor["text"])
        known = bool(item.answer.strip()) and mentor["finish"] != "length"
    for run in (*row["runs"].values(), *(draft["run"] for draft in row["drafts"])):
        run["correct"] = known and task.grade(item, run["text"]).correct
    return row


def reused(folder: Path, split: str, header: dict[str, Any], items: list[Item]) -> dict[str, dict[str, Any]]:
    """The rows of a folder of `collect` that answer these questions, by id.

    Raises:
        ArtifactError: they were made with other settings.
    """
    done = Collected.load(folder, split)
    made = without_prices(done.header)
    if differing := differing_settings(made, {**made, **header}):
        raise ArtifactError(f"{folder}/{split} was collected with other settings: {told(differing)}")
    words = {item.id: splits.digest(item) for item in items}
    scored = made.get("draft", [""])[0] == LOGPROB
    return {
        row["id"]: row | {"question": words[row["id"]], "draft": row["draft"] if scored else None}
        for row in collect.unfolded(done)
        if row["id"] in words and row["question"] in ("", words[row["id"]])  # older data has no hash
    }


def check_answers(task: Task, items: Iterable[Item], journal: Journal) -> None:
    """Grade again the recorded texts of questions whose answers alone were changed since, and of a user's own
    questions all, which takes no sandbox: earlier versions graded them by other rules.

    Raises:
        ArtifactError: the words of a question were changed; nothing in the journal was changed.
    """
    known = [item for item in items if item.id in journal.rows]
    same = {item.id for item in known if journal.rows[item.id]["question"] == splits.digest(item)}
    splits.check_unchanged(journal, [replace(item, extra={}) for item in known if item.id not in same])
    for item in known:
        row, asked = journal.rows[item.id], splits.asked(replace(item, extra={}))
        if row["asked"] != asked or isinstance(task, OwnQuestions):
            now = graded(task, item, row) | {"asked": asked}
            if now != row:
                journal.append(now)


def distinct(task: Task, split: str, n: int) -> list[Item]:
    """The first `n` questions of a split that differ; repeats are no evidence of their own.

    Raises:
        ConfigError: a repeat of a user's own question has another answer.
    """
    found, repeated, own = dict[str, Item](), 0, isinstance(task, OwnQuestions)
    for item in task.items(split):
        if len(found) == n and not own:
            break
        turns = task.request(item).messages
        key = hash_of([[turn.role, " ".join(turn.content.split())] for turn in turns])
        if first := found.get(key):
            repeated += 1
            if own and not (task.grade(first, item.answer).correct or task.grade(item, first.answer).correct):
                raise ConfigError(
                    f"{task.named(item)} repeats {task.named(first)} with another answer: correct one, or take it out"
                )
        elif len(found) < n:
            found[key] = item
    if repeated:
        log.warning(splits.left_out(repeated))
    if len(found) < n:
        log.warning("--n is %d, but there are only %d questions", n, len(found))
    return list(found.values())
