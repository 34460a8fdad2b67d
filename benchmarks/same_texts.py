"""Whether the public pair answers live as it was recorded: `python -m benchmarks.same_texts --data FOLDER`.

`results/qwen_coder/rivals` was answered live, `draft_mbpp` and `advise_mbpp` hold what replays go by, all greedily on
the same questions of MBPP, but on other processors and in other batches, where 4-bit arithmetic rounds otherwise.  Of
each model: how many texts are equal, on how many questions both are right or both wrong, and where two texts part, the
gap of log-probability (nats) between the two most probable tokens there, on this machine: a small one is a near tie.
(The common part is given as text, so where it ends within a word the tokens may be others.)

Writes `results/qwen_coder/same_texts.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from statistics import median

from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.generators.base import Engine
from ensemblehub.lab import markdown
from ensemblehub.lab.bench.rows import read_rows
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.lab.tasks import task_named
from ensemblehub.schema import Request

QWEN = Path(__file__).parents[1] / "results/qwen_coder"
HEADER = (
    "model",
    "questions",
    "equal texts",
    "both right or both wrong",
    "gap where they part, nats: median (least to most)",
)
Answers = Mapping[str, tuple[str, bool]]  # text and rightness, by question


def live(name: str) -> Answers:
    """Answers of one model in the live run."""
    _, rows = read_rows(QWEN / f"rivals/answers/{name}.jsonl.gz")
    return {row.question: (row.text, row.correct) for row in rows.values()}


def recorded(name: str) -> Answers:
    """The mentor's own answers as collected, or the intern's to the bare question as `advise` recorded them."""
    if name == "mentor":
        rows = Collected.load(QWEN / "draft_mbpp/collected", "test").rows
        return {row.id: (row.runs[name].text, row.runs[name].correct) for row in rows}
    with gzip.open(QWEN / "advise_mbpp/recorded.jsonl.gz", "rt") as file:
        _, *lines = map(json.loads, file)
    runs = {line["id"]: line["drafts"][0]["run"] for line in lines}
    return {question: (run["text"], run["correct"]) for question, run in runs.items()}


async def gap(engine: Engine, request: Request, common: str) -> float:
    """Between the log-probabilities of the two most probable tokens after the common part of two answers."""
    sampling = replace(request.sampling, max_tokens=1, top_logprobs=2)
    asked = replace(request, prefix=request.prefix + common, sampling=sampling)
    async with aclosing(engine.stream(asked, UsageLedger().meter("answer"))) as pieces:
        tokens = [token async for piece in pieces for token in piece.tokens]
    first, second = tokens[0].top[:2]
    return first.logprob - second.logprob


async def compared(data: Path) -> list[tuple[str, ...]]:
    """A line of the table for each model."""
    config, task = Config.read(QWEN / "rivals.yaml"), task_named("mbpp", data / "mbpp.jsonl", "official")
    sampling, lines = task.sampling(config.ensemble.generation.sampling()), []
    async with AsyncEnsemble.from_config(config) as ensemble:
        engines = {engine.name: engine for engine in ensemble.engines}
        for name in ("mentor", "intern"):
            now, then = live(name), recorded(name)
            both = [question for question in now if question in then]
            items = {item.id: item for item in task.items("test") if item.id in both}
            parted = [question for question in both if now[question][0] != then[question][0]]
            gaps = list[float]()
            for question in parted:
                pairs = zip(now[question][0], then[question][0], strict=False)
                common = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                gaps.append(await gap(engines[name], task.ask(items[question], sampling), common))
            same = sum(now[question][1] == then[question][1] for question in both)
            told = f"{median(gaps):.2f} ({min(gaps):.2f} to {max(gaps):.2f})" if gaps else "–"
            lines.append((name, str(len(both)), str(len(both) - len(parted)), str(same), told))
    return lines


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the public files")
    text = markdown.table(HEADER, asyncio.run(compared(parser.parse_args().data)), "lrrrl")
    print(text)
    (QWEN / "same_texts.md").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
