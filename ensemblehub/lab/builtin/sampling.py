"""Let a built-in model answer corpus problems: `python -m ensemblehub.lab.builtin.sampling PATH --out FILE`.

What it writes, `ensemblehub.lab.builtin.samples` reads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from ensemblehub import builtin
from ensemblehub.answers.equality import last_boxed
from ensemblehub.concurrency import for_each
from ensemblehub.cost import UsageLedger
from ensemblehub.lab.builtin.samples import Answered, numbered
from ensemblehub.schema import Chat, Message, Request, Sampling


async def answers(path: str, count: int, rows: int) -> list[Answered]:
    """The greedy, concise answers of the model at `path` to corpus problems 0 to `count - 1`."""
    from ensemblehub.generators.hf.engine import HFEngine, HFOptions

    engine = HFEngine("model", HFOptions(path=builtin.resolve(path), batch_rows=rows))

    async def answer(number: int) -> Answered:
        problem = numbered(number)
        request = Request(Chat((Message("user", problem.text),), thinking=False), Sampling(max_tokens=384))
        pieces = [piece.text async for piece in engine.stream(request, UsageLedger().meter("answer"))]
        reply = "".join(pieces)
        return Answered(number, reply, last_boxed(reply) == str(problem.answer))

    try:
        return await for_each(range(count), answer, limit=rows)
    finally:
        await engine.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m ensemblehub.lab.builtin.sampling", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("path", help="folder of a model, or builtin:NAME")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=4000, help="how many (default: %(default)s)")
    parser.add_argument(
        "--rows", type=int, default=64, help="answered at the same time (default: %(default)s)"
    )
    options = parser.parse_args()
    done = asyncio.run(answers(options.path, options.problems, options.rows))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in done), encoding="utf-8")
    print(f"{sum(sample.solved for sample in done)} of {len(done)} solved; {options.out}")


if __name__ == "__main__":
    main()
