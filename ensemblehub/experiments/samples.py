"""Let a studio model answer corpus problems: `python -m ensemblehub.experiments.samples PATH --out FILE`.

What it writes, `ensemblehub.studio.samples` reads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from ensemblehub import studio
from ensemblehub.cost import Ledger
from ensemblehub.schema import Chat, Message, Request, Sampling
from ensemblehub.studio.samples import Answered, numbered
from ensemblehub.tasks.answers import last_boxed


async def answers(path: str, count: int, rows: int) -> list[Answered]:
    """The greedy, concise answers of the model at `path` to corpus problems 0 to `count - 1`."""
    from ensemblehub.generators.hf import HFEngine, HFOptions

    engine, room = HFEngine("model", HFOptions(path=studio.resolve(path), batch_rows=rows)), asyncio.Semaphore(rows)

    async def answer(number: int) -> Answered:
        problem = numbered(number)
        request = Request(Chat((Message("user", problem.text),), thinking=False), Sampling(max_tokens=384))
        async with room:
            pieces = [piece.text async for piece in engine.stream(request, Ledger().meter("answer"))]
        reply = "".join(pieces)
        return Answered(number, reply, last_boxed(reply) == str(problem.answer))

    try:
        return await asyncio.gather(*map(answer, range(count)))
    finally:
        await engine.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m ensemblehub.experiments.samples", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("path", help="folder of a model, or studio:NAME")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=4000, help="how many (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=64, help="answered at the same time (default: %(default)s)")
    options = parser.parse_args()
    done = asyncio.run(answers(options.path, options.problems, options.rows))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(asdict(one)) + "\n" for one in done), encoding="utf-8")
    print(f"{sum(one.solved for one in done)} of {len(done)} solved; {options.out}")


if __name__ == "__main__":
    main()
