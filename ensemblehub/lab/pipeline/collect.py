"""Collect what a judge is trained and calibrated on, and the baselines of every table.

Per question: the mentor's insight once, cut at every level (true prefixes of one stream); the intern's
reading (perplexity and entropy) and its graded answer at every level; the mentor's own answer, long and
concise; with `draft`, what the criterion says of the answer without an insight.  Every finished question is
synced to a journal, so a killed run loses at most the questions in progress.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub.artifacts import parsed
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.acceptance import Trial
from ensemblehub.ensemble_methods.candidates import Candidate
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import ArtifactError
from ensemblehub.generators.base import Engine
from ensemblehub.lab.journal import ANEW, Journal
from ensemblehub.lab.pipeline.records import FEATURES, Collected, DraftScore, Row, Run
from ensemblehub.lab.pipeline.splits import asked, digest
from ensemblehub.lab.tasks.base import Item, Task
from ensemblehub.schema import Cost, Piece, Request, Sampling
from ensemblehub.tandem import features
from ensemblehub.tandem.insights import LEVEL_0, Dialogue

Reading = NDArray[np.float16]


@dataclass(frozen=True)
class InsightCut:
    """An insight cut at a level: its text, what the mentor read and wrote for it, and engine seconds."""

    text: str = ""
    read: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Collector:
    """Collects one question at a time; holds no state between questions."""

    def __init__(self, tandem: Tandem, engines: list[Engine], task: Task, sampling: Sampling) -> None:
        self.tandem = tandem
        self.task = task
        self.sampling = sampling
        self.engines = engines
        self.mentor, self.intern = tandem.roles(engines)

    async def collect(self, item: Item) -> dict[str, Any]:
        """Everything about one question, as a JSON row."""
        ask = self.task.ask(item, self.sampling)
        cuts = await self.insight(ask)
        runs: dict[str, Run] = {}
        readings: dict[str, Any] = {}
        closing, known, draft = 0, dict[str, str](), None
        for level, cut in cuts.items():
            same = known.setdefault(cut.text, level)
            if same == level:
                dialogue = Dialogue(ask, self.tandem.words, self.tandem.insight_mode)
                answer = Candidate(self.intern, dialogue.intern_request(cut.text), self.intern.name)
                runs[level], readings[level], closing = await self.level(item, dialogue, answer, cut)
                draft = await self.draft(ask, answer) if level == LEVEL_0 else draft
            else:  # the mentor ended before this level: nothing new to read
                runs[level], readings[level] = replace(runs[same], mentor_tokens=cut.tokens), readings[same]
        runs["mentor"] = await self.alone(item, ask)
        concise = self.task.ask(item, self.sampling, thinking=False)
        switch = not await asyncio.to_thread(self.mentor.same_prompt, ask, concise)
        runs["mentor_concise"] = await self.alone(item, concise) if switch else runs["mentor"]
        shared = await asyncio.to_thread(self.mentor.shared_prompt, ask, concise)
        whole = list(cuts.values())[-1].text
        about = (item.id, item.subject, item.level, item.steps)
        row = Row(*about, whole, closing, runs, digest(item), switch, draft, shared)
        return asdict(row) | {"asked": asked(item), "readings": readings}

    async def insight(self, ask: Request) -> dict[str, InsightCut]:
        """The mentor's insight, written once, as it stands at every level; the empty one first."""
        words, ledger = self.tandem.words, UsageLedger()
        request = Dialogue(ask, words).mentor_request(max(self.tandem.levels.values()))
        pieces: list[Piece] = []
        async with aclosing(self.mentor.stream(request, ledger.meter("insight"))) as stream:
            async for piece in stream:
                pieces.append(piece)
        total, cuts = ledger.total, {LEVEL_0: InsightCut()}
        for level, budget in self.tandem.levels.items():
            text, tokens = "", 0
            for piece in pieces:
                if tokens >= budget:
                    break
                text, tokens = text + piece.text, tokens + len(piece.tokens)
            seconds = total.seconds * tokens / max(1, total.completion_tokens)
            cuts[level] = InsightCut(words.shown(text), total.prompt_tokens, tokens, seconds)
        return cuts

    async def level(
        self, item: Item, dialogue: Dialogue, answer: Candidate, cut: InsightCut
    ) -> tuple[Run, Any, int]:
        """The intern's answer, which it writes now, its reading, and the count of closing template tokens."""
        reading, closing = await self.read(answer.request, dialogue)
        await answer.write(UsageLedger())
        cost = answer.usage.total
        grade = await asyncio.to_thread(self.task.grade, item, answer.text)
        leak = await asyncio.to_thread(self.task.leaks, item, cut.text)
        run = Run(
            grade.correct,
            answer.finish,
            cut.read,
            cut.tokens,
            cost.prompt_tokens,
            cost.completion_tokens,
            cost.seconds + cut.seconds,
            leak,
            answer.text,
            len(cut.text),
        )
        return run, reading, closing

    async def read(self, request: Request, dialogue: Dialogue) -> tuple[Any, int]:
        """The intern's reading of a request, and the count of closing template tokens."""
        scored = await self.intern.score(request, UsageLedger().meter("judge"))
        perplexity, entropy = features.sequences(dialogue.judged_tokens(scored, "question+insight"))
        closing = next((n for n, token in enumerate(reversed(scored.tokens)) if token.message is not None), 0)
        reading = {
            "features": features.features(perplexity, entropy).tolist(),
            "sequences": _pack(np.stack([perplexity, entropy]).astype(np.float16)),
        }
        return reading, closing

    async def alone(self, item: Item, request: Request) -> Run:
        """The mentor's own answer."""
        answer = await written(self.mentor, request)
        cost = answer.usage.total
        grade = await asyncio.to_thread(self.task.grade, item, answer.text)
        used = (cost.prompt_tokens, cost.completion_tokens, 0, 0, cost.seconds)
        return Run(grade.correct, answer.finish, *used, False, answer.text, logprob=answer.logprob)

    async def with_draft(self, item: Item, row: dict[str, Any]) -> dict[str, Any]:
        """A row of a question that was collected without the configured draft; no insight is asked for."""
        ask = self.task.ask(item, self.sampling)
        dialogue = Dialogue(ask, self.tandem.words, self.tandem.insight_mode)
        answer = Candidate(self.intern, dialogue.intern_request(), self.intern.name)
        run, reading, _ = await self.level(item, dialogue, answer, InsightCut())
        draft = await self.draft(ask, answer)
        own = {"runs": row["runs"] | {LEVEL_0: asdict(run)}, "readings": row["readings"] | {LEVEL_0: reading}}
        return row | own | {"draft": draft and asdict(draft)}

    async def draft(self, ask: Request, answer: Candidate) -> DraftScore | None:
        """What the criterion, if there is one, says of the intern's answer without an insight."""
        criterion = self.tandem.criterion
        if criterion is None:
            return None
        ledger = UsageLedger()
        trial = Trial(ask, answer, self.engines, ledger)
        probability = await criterion.probability(trial) if answer.whole else 0.0
        of = {
            engine.name: sum((call.cost for call in ledger.calls if call.engine == engine.name), Cost())
            for engine in (self.mentor, self.intern)
        }
        tokens = [(cost.prompt_tokens, cost.completion_tokens) for cost in of.values()]
        total = ledger.total
        if not criterion.reads_question:
            return DraftScore(probability, total.flops, *tokens[0], *tokens[1])
        # here the question was read before; where a draft comes first, it was not
        reading = of[self.intern.name].cold_flops
        return DraftScore(probability, total.cold_flops, *tokens[0], *tokens[1], question_flops=reading)


async def written(engine: Engine, request: Request) -> Candidate:
    """One engine's whole answer."""
    answer = Candidate(engine, request, engine.name)
    await answer.write(UsageLedger())
    return answer


def settings(
    tandem: Tandem, engines: list[Engine], task: str, split: str, sampling: Sampling
) -> dict[str, Any]:
    """What collected data was made with; data made with anything else is not mixed with it."""
    mentor, intern = tandem.roles(engines)
    drafting = {"draft": tandem.drafting_by} if tandem.drafting_by else {}
    return drafting | {
        "task": task,
        "split": split,
        "mentor": mentor.model,
        "intern": intern.model,
        "cards": {"mentor": asdict(mentor.info), "intern": asdict(intern.info)},
        "prompts": tandem.words.fingerprint,
        "insight_mode": tandem.insight_mode,
        "levels": {LEVEL_0: 0, **tandem.levels},
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
    }


def take_over(done: Collected, journal: Journal) -> None:
    """Add the rows of a collected split to the journal of a larger one."""
    for row in unfolded(done):
        if row["id"] not in journal.rows:
            journal.append(row)


def unfolded(done: Collected) -> Iterator[dict[str, Any]]:
    """The rows of a collected split as a `Collector` made them; the inverse of `folded`."""
    for row, table, sequences in zip(done.rows, done.features, done.sequences, strict=True):
        readings = {
            level: {"features": table[index].tolist(), "sequences": _pack(sequences[index])}
            for index, level in enumerate(done.levels)
        }
        yield asdict(row) | {"readings": readings}


def finish(journal: Journal, header: dict[str, Any], order: list[str], folder: Path, split: str) -> Collected:
    """Turn a complete journal into the compressed form that is committed, and remove it.

    Raises:
        ArtifactError: a row of the journal is damaged, or the files cannot be written.
    """
    try:
        collected = folded([journal.rows[item] for item in order], header, str(journal.path))
    except (LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{journal.path} is damaged ({error}): use --force to start it anew") from error
    collected.save(folder, split)
    journal.close()
    journal.path.unlink()
    return collected


def folded(rows: list[dict[str, Any]], header: dict[str, Any], where: str) -> Collected:
    """Rows of a `Collector` as they are kept; no features and sequences where a reading is None.

    Raises:
        LookupError, TypeError, ValueError: a row is damaged.
    """
    levels = list(header["levels"])
    kept = [parsed(Row, json.dumps(row), f"{where}: {row['id']}", ANEW) for row in rows]
    if any(name not in row.runs for row in kept for name in (*levels, "mentor", "mentor_concise")):
        raise ValueError("a question without one of its runs")
    readings = [[row["readings"][level] for level in levels] for row in rows]
    if any(reading is None for row in readings for reading in row):
        return Collected(header, kept, np.zeros((len(rows), len(levels), 0), np.float32), [[]] * len(rows))
    table = np.array([[reading["features"] for reading in row] for row in readings], np.float64)
    sequences = [[_unpack(reading["sequences"]) for reading in row] for row in readings]
    if rows and table.shape != (len(rows), len(levels), FEATURES):
        raise ValueError(f"features of shape {table.shape}")
    if not (np.abs(table) <= np.finfo(np.float32).max).all():
        raise ValueError("features that are no numbers of single precision")
    if any(not array.size or not np.isfinite(array).all() for row in sequences for array in row):
        raise ValueError("sequences without numbers")
    return Collected(
        header, kept, table.astype(np.float32).reshape(len(rows), len(levels), FEATURES), sequences
    )


def _pack(array: Reading) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _unpack(text: str) -> Reading:
    return np.frombuffer(base64.b64decode(text, validate=True), np.float16).reshape(2, -1)
