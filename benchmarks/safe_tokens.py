"""What `every: safe` brings on the built-in math: `python -m benchmarks.safe_tokens`.

The three built-in models write every answer together, at every token or at SAFE's positions only, beside the
best of them alone.  Accuracy with 95 % intervals (Wilson; the difference by paired bootstrap), and the share of
tokens that more than one model chose.  Weights are not tuned on these questions: 1, and twice that of the best.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping

from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.base import Aggregation
from ensemblehub.ensemble_methods.output_aggregation.gac import GaC
from ensemblehub.ensemble_methods.output_aggregation.single import Single
from ensemblehub.lab import metrics
from ensemblehub.lab.tasks import task_named
from ensemblehub.schema import Sampling

METHODS: Mapping[str, Aggregation] = {
    "mentor alone": Single(engine="mentor"),
    "every token": GaC(),
    "every token, weighted": GaC(method="weighted"),
    "safe": GaC(every="safe"),
    "safe, weighted": GaC(every="safe", method="weighted"),
    "safe, mentor 2": GaC(every="safe", weights={"mentor": 2.0}),
    "safe, weighted, mentor 2": GaC(every="safe", method="weighted", weights={"mentor": 2.0}),
}


async def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=500, help="of the test split (default: %(default)s)")
    options = parser.parse_args()
    task = task_named("builtin_math")
    items = list(task.items("test", options.questions))
    names = ("mentor", "intern", "guest")
    models = [{"name": name, "path": f"builtin:{name}", "enable_thinking": False} for name in names]
    requests = [task.ask(item, Sampling(max_tokens=384)) for item in items]
    first: list[bool] = []
    print(f"n = {len(items)}, greedy, without thinking\n")
    print(f"{'':26}{'accuracy':>24}{'against the mentor':>28}{'ensembled':>12}")
    async with AsyncEnsemble(models) as ensemble:
        for name, method in METHODS.items():
            results = await ensemble.with_aggregation(method).generate(requests)
            right = [
                task.grade(item, result.text).correct for item, result in zip(items, results, strict=True)
            ]
            first = first or right
            pieces = [piece for result in results for piece in result.pieces]
            tokens = sum(len(piece.tokens) for piece in pieces)
            joint = sum(len(piece.tokens) for piece in pieces if "+" in piece.engine) / tokens
            low, high = (100 * bound for bound in metrics.wilson_interval(sum(right), len(right)))
            worse, better = (100 * bound for bound in metrics.paired_bootstrap(right, first))
            share, gap = 100 * sum(right) / len(right), 100 * (sum(right) - sum(first)) / len(right)
            print(
                f"{name:26}{share:9.1f} % ({low:.1f} to {high:.1f}){gap:+11.1f} ({worse:+.1f} to {better:+.1f})"
                f"{100 * joint:11.2f} %",
                flush=True,
            )


if __name__ == "__main__":
    asyncio.run(main())
