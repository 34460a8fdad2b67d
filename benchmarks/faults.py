"""What a user sees when a model breaks: `python -m benchmarks.faults [ENGINE ...]`, fault by engine.

The built-in pair answers the same questions, all at once, while one of its models breaks: engines in this process by
`benchmarks.broken`, models behind APIs (this project's server and vLLM's) by `benchmarks.fault_proxy`, which breaks
every second question. Every result must be the one without a fault, the intern's own answer where `on_mentor_error:
intern` allows it, or an error of one line; any other text is wrong. Results are kept by engine in
`results/engines/faults.json` and `.md`; the exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import engines
from benchmarks.fault_proxy import FAULTS, FaultProxy
from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import EnsembleHubError
from ensemblehub.lab.tasks.builtin_math import BuiltinMath
from ensemblehub.schema import Request, Result

RESULTS = Path("results/engines")
COUNT = 8
PARAMS = "ensemble.output_aggregation_params"
PATIENCE = {"connect": 1, "first_token": 2, "inter_token": 2, "total": 20, "tries": 3, "backoff": 0.05}
LOCAL = {
    "raise": "a forward pass raises (out of memory)",
    "nan": "the logits are not numbers (NaN)",
    "die": "the library ends the engine's thread",
    "kill": "the process that computes is killed",
}
BREAKS = {"hf": ("raise", "nan", "die"), "llama_cpp": ("raise", "nan", "die"), "vllm": ("kill",)}
ONCE = ("too_many", "broken", "gateway", "late")  # what trying again may help
NAMES = (*BREAKS, "openai", "openai_vllm")
Row = dict[str, Any]


class Table:
    """The results without a fault, and the outcomes under each fault."""

    def __init__(self, questions: int, faults: Sequence[str] = ()) -> None:
        self.faults = faults or (*LOCAL, *FAULTS)
        self.items, self.rows = list(BuiltinMath().items("test", questions)), list[Row]()
        self.home: list[Result] = []
        self.alone: list[Result] = []

    async def answered(self, config: Config) -> list[tuple[Result | BaseException, float]]:
        """Run all questions concurrently; returns the result or exception of each, and its seconds."""
        async with AsyncEnsemble.from_config(config) as ensemble:

            async def answered(request: Request) -> tuple[Result | BaseException, float]:
                started = time.perf_counter()
                try:
                    return await ensemble.generate(request), time.perf_counter() - started
                except Exception as error:
                    return error, time.perf_counter() - started

            sampling = replace(ensemble.sampling, max_tokens=120)
            return list(
                await asyncio.gather(
                    *(answered(Request(BuiltinMath().request(i), sampling)) for i in self.items)
                )
            )

    async def rightly(self, config: Config) -> list[Result]:
        """Run questions that must not fail."""
        found = [result for result, _ in await self.answered(config)]
        return [result for result in found if isinstance(result, Result)]

    async def add(self, engine: str, role: str, fault: str, config: Config, tolerant: bool = False) -> None:
        """Run with a fault, and record the outcomes."""
        row = {"engine": engine, "role": role, "fault": fault, "degrades": tolerant, "asked": len(self.items)}
        row |= {"as without": 0, "intern alone": 0, "errors": {}, "wrong": [], "longest": 0.0}
        for found, home, alone in zip(await self.answered(config), self.home, self.alone, strict=True):
            result, seconds = found
            row["longest"] = max(row["longest"], seconds)
            if isinstance(result, EnsembleHubError) and "\n" not in str(result):
                said = str(result)
                row["errors"][said] = row["errors"].get(said, 0) + 1
            elif not isinstance(result, Result):
                row["wrong"].append(repr(result))
            elif (result.text, result.insight) == (home.text, home.insight):
                row["as without"] += 1
            elif tolerant and result.text == alone.text:
                row["intern alone"] += 1
            else:
                row["wrong"].append(result.text)
        self.rows.append(row)
        print(line(row), flush=True)


def setup(role: str, spec: dict[str, Any], *changes: str) -> Config:
    """the built-in Tandem with one of its models replaced."""
    place = engines.MODELS.index(role)
    other = {
        "name": engines.MODELS[1 - place],
        "engine": "hf",
        "path": f"builtin:{engines.MODELS[1 - place]}",
    }
    specs = {place: spec, 1 - place: other | {"device": "cpu"}}
    named = [f"model_specs.{index}={json.dumps(spec)}" for index, spec in specs.items()]
    judge = [f"{PARAMS}.judge=perplexity:1.35"] if role == "intern" else []
    return Config.read(builtin.CONFIG, [*named, *judge, *changes])


async def local(table: Table, engine: str, specs: engines.Specs) -> None:
    """Break an engine in this process."""
    for role in engines.MODELS:
        await reference(table, role, specs(role))
        for fault in filter(table.faults.__contains__, BREAKS[engine]):
            spec = specs(role) | {"engine": f"benchmarks.broken:{engine}", "fault": fault, "after": 12}
            for tolerant in (False, True) if role == "mentor" else (False,):
                changes = [f"{PARAMS}.on_mentor_error=intern"] if tolerant else []
                await table.add(engine, role, LOCAL[fault], setup(role, spec, *changes), tolerant)


async def far(table: Table, engine: str, specs: engines.Specs, roles: Sequence[str]) -> None:
    """Spoil what an API answers."""
    async with AsyncExitStack() as stack:
        for role in roles:
            straight = specs(role)
            await reference(table, role, straight)
            proxy = await stack.enter_async_context(FaultProxy(straight["base_url"].removesuffix("/v1")))
            spec = straight | {"base_url": f"{proxy.url}/v1", "patience": PATIENCE}
            hit = partial(half, [item.text for item in table.items[::2]]) if role == "mentor" else quarter
            cases = [
                (name, once)
                for name in FAULTS
                if name in table.faults
                for once in ((True, False) if name in ONCE else (False,))
            ]
            for name, once in cases:
                for tolerant in (False, True) if role == "mentor" and not once else (False,):
                    proxy.spoil(name, once=once, hit=hit)
                    changes = [f"{PARAMS}.on_mentor_error=intern"] if tolerant else []
                    title = (FAULTS[name].__doc__ or name) + (", once" if once else "")
                    await table.add(engine, role, title, setup(role, spec, *changes), tolerant)
            if "nothing" not in table.faults:
                continue
            dead = spec | {"base_url": "http://127.0.0.1:9/v1"}
            await table.add(engine, role, "nobody listens", setup(role, dead))
            if role == "mentor":
                tolerant_dead = setup(role, dead, f"{PARAMS}.on_mentor_error=intern")
                await table.add(engine, role, "nobody listens", tolerant_dead, True)


async def reference(table: Table, role: str, spec: dict[str, Any]) -> None:
    """Run without a fault, and with the intern alone."""
    table.home = await table.rightly(setup(role, spec))
    table.alone = await table.rightly(setup(role, spec, f"{PARAMS}.judge=fixed:none"))


def half(texts: Sequence[str], body: str) -> bool:
    """Whether a request is about one of these questions."""
    return any(text in body for text in texts)


def quarter(body: str) -> bool:
    """A fourth of all requests; those of an intern are in token ids, several a question."""
    return zlib.crc32(body.encode()) % 4 == 0


def line(row: Row) -> str:
    """A row as a person reads it."""
    return f"{row['engine']} {row['role']}, {row['fault']}: " + seen(row)


def seen(row: Row) -> str:
    """Return the outcomes of the questions as text."""
    parts = [f"{row['as without']} as without"] if row["as without"] else []
    parts += [f"{row['intern alone']} by the intern alone"] if row["intern alone"] else []
    parts += [f"{count} error: *{said}*" for said, count in sorted(row["errors"].items())]
    parts += [f"**{len(row['wrong'])} WRONG**: {row['wrong'][0]!r}"] if row["wrong"] else []
    return "; ".join(parts)


def markdown(rows: Sequence[Row]) -> str:
    """The table for a person."""
    wrong, asked = sum(len(row["wrong"]) for row in rows), sum(row["asked"] for row in rows)
    lines = [
        "# Fault by engine: what the user saw",
        "",
        f"{asked} runs of the built-in pair in {len(rows)} cases, {wrong} of them wrong. Every other one has the "
        "result without a fault, the intern's own answer where `on_mentor_error: intern` allows it, or an error of "
        f"one line. Deadlines of APIs here: first token {PATIENCE['first_token']} s, next token "
        f"{PATIENCE['inter_token']} s; "
        f"{PATIENCE['tries']} tries. Written by `python -m benchmarks.faults`.",
        "",
        "| fault | engine | role | `on_mentor_error` | outcomes of the questions | longest, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["role"] == "intern", row["fault"], row["engine"])):
        way = "intern" if row["degrades"] else "raise"
        cells = (row["fault"], f"`{row['engine']}`", row["role"], way, seen(row), f"{row['longest']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def scrubbed(rows: Sequence[Row]) -> list[Row]:
    """The rows without the ports and counts of this run, errors that differ by them alone counted together."""
    kept = []
    for row in rows:
        errors: dict[str, int] = {}
        for said, count in row["errors"].items():
            plain = re.sub(r"127\.0\.0\.1:\d+", "HOST", re.sub(r"\b\d+ (times|s\b)", r"N \1", said))
            errors[plain] = errors.get(plain, 0) + count
        kept.append(row | {"errors": errors, "longest": round(row["longest"], 2)})
    return kept


def main() -> int:
    """Break the engines that are asked for and installed; keep what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", nargs="*", default=list(NAMES), help=f"of {', '.join(NAMES)} (all)")
    parser.add_argument("--questions", type=int, default=COUNT, help="(default: %(default)s)")
    parser.add_argument("--fault", action="append", choices=[*LOCAL, *FAULTS], help="only this one (all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    options = parser.parse_args()
    if unknown := set(options.engine) - set(NAMES):
        parser.error(f"no such engine: {', '.join(sorted(unknown))}")
    path = options.out / "faults.json"
    kept: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    for engine in options.engine:
        if lacking := engines.missing(engine):
            print(f"{engine}: not run, {lacking}")
            continue
        table, roles = (
            Table(options.questions, options.fault or ()),
            ("mentor",) if engine == "openai_vllm" else engines.MODELS,
        )
        with engines.started(engine, roles) as specs:
            work: Callable[..., Any] = local if engine in BREAKS else partial(far, roles=roles)
            asyncio.run(work(table, engine, specs))
        kept = [row for row in kept if row["engine"] != engine] + scrubbed(table.rows)
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(kept), encoding="utf-8")
    return int(any(row["wrong"] for row in kept))


if __name__ == "__main__":
    sys.exit(main())
