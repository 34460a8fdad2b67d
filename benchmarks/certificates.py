"""How often certificates are broken, and what they save: `python -m benchmarks.certificates`.

*Redrawn*: 4,000 questions are drawn with replacement, 1,000 times, from the collected questions of `builtin_math` that
no judge and no path was chosen on: 4,000 of its split calibration, the 2,000 of its split test.  In these draws the
loss of every setting is known: it is its loss on those 6,000.  A certificate is broken where the chosen setting's loss
is above the promise; saving is 1 less its cost as a share of the mentor's.  The path is chosen once, on train.
Tandem with `builtin:judge` is replayed from what `collect` recorded, `think_on_failure` from that and from
`results/certificates/thinking`, what `bench` recorded of the mentor without thinking; there the prompt counts twice
where the mentor thinks, though it is read once.

*Simulated*: settings of known risk from below to above the promise, nested as along a path, n questions drawn
independently, 1,000 times.

Writes `results/certificates/certificates.json` and `.txt`.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub import builtin
from ensemblehub.errors import ConfigError
from ensemblehub.lab import metrics
from ensemblehub.lab.bench.report import CellAnswers
from ensemblehub.lab.bench.rows import journals
from ensemblehub.lab.pipeline import replay
from ensemblehub.lab.pipeline.cascade import Fallback
from ensemblehub.lab.pipeline.certificate import Loss, Promise, Settings, certified, kept
from ensemblehub.lab.pipeline.certificate_path import FOLDS, along, path_of, unseen
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.tandem.artifact import load_judge
from ensemblehub.tandem.certificate import percent

ROOT = Path(__file__).parents[1]
THINKING = "think_on_failure"
TANDEM: dict[str, Fallback] = {"tandem, else best": "best", "tandem, else mentor": "mentor"}
CASES: tuple[tuple[Loss, str], ...] = (
    ("net", "tandem, else best"),
    ("net", "tandem, else mentor"),
    ("net", THINKING),
    ("lost-correct", "tandem, else mentor"),
    ("lost-correct", "tandem, else best"),
    ("lost-correct", THINKING),
)
LIMITS = 64  # quantiles of the training scores of `think_on_failure`
Found = dict[str, Any]
Floats = NDArray[np.float64]


class Population:
    """The collected questions of the built-in pair's own task, with its judge."""

    def __init__(self, folder: Path, calibration: Path, thinking: Path) -> None:
        self.judge = load_judge(Path(builtin.resolve("builtin:judge"))).judge
        self.train = Collected.load(folder, "train")
        self.others = [Collected.load(calibration, "calibration"), Collected.load(folder, "test")]
        self.levels = list(self.train.levels)
        self.short = {data.header["split"]: _short(data, thinking) for data in (self.train, *self.others)}

    @cached_property
    def unseen(self) -> Floats:
        """Probabilities of the training questions by judges that were trained without them, (n, L)."""
        with progress("judge training questions unseen", FOLDS) as step:
            return unseen(self.train, self.levels, self.judge.kind, step)

    def settings(self, loss: Loss, fallback: Fallback) -> Settings:
        """The path that is chosen on train, on all other questions."""
        training = replay.outcomes(self.train, self.judge, self.levels, fallback)
        path = path_of(replace(training, probabilities=self.unseen), loss)
        parts = [
            along(replay.outcomes(data, self.judge, self.levels, fallback), path) for data in self.others
        ]
        return _joined(parts)

    def thinking(self) -> Settings:
        """`think_on_failure` at thresholds from train, the highest first, on all other questions."""
        scores, *_ = self.short["train"]
        limits = np.unique(np.quantile(scores, np.linspace(0, 1, LIMITS)))[::-1]
        return _joined([_thinking(data, limits, *self.short[data.header["split"]]) for data in self.others])


def _short(data: Collected, folder: Path) -> tuple[Floats, Floats, Floats]:
    """Scores, rightness and FLOPs of the answers without thinking to collected questions, each (n,)."""
    (path,) = journals(folder / data.header["split"]).values()
    answers = {row.question: row for row in CellAnswers.read(path).rows}
    rows = [answers[row.id] for row in data.rows]
    scores = [row.verdicts[0]["probability"] for row in rows]
    return (
        np.array(scores),
        np.array([row.correct for row in rows]),
        np.array([row.cold_flops for row in rows]),
    )


def _thinking(data: Collected, limits: Floats, scores: Floats, correct: Floats, cost: Floats) -> Settings:
    own = [row.runs["mentor"] for row in data.rows]
    right = np.array([run.correct for run in own])
    price = np.array([run.flops(data.info("mentor"), data.info("intern")) for run in own])
    kept = scores[:, None] >= limits
    return Settings(
        right,
        price,
        np.where(kept, correct[:, None], right[:, None]),
        cost[:, None] + np.where(kept, 0.0, price[:, None]),
    )


def _joined(parts: Sequence[Settings]) -> Settings:
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    return Settings(**joined)


def redrawn(settings: Settings, promise: Promise, n: int, draws: int) -> Found:
    """Certificates from calibration sets that are drawn anew, against what is known of every setting.

    `best_saving` is that of the cheapest setting of the path whose known loss keeps the promise.
    """
    random, size = np.random.default_rng(0), len(settings.mentor_cost)
    risk, share = settings.losses(promise.loss).mean(axis=0), settings.shares
    chosen, refusals = list[int](), set[str]()
    with progress(f"{promise.loss}", draws) as step:
        for _ in range(draws):
            at = random.integers(size, size=n)
            drawn = Settings(**{name: value[at] for name, value in vars(settings).items()})
            try:
                chosen.append(certified(drawn, promise))
            except ConfigError as error:
                refusals.add(str(error))
            step()
    made, known = np.array(chosen, int), risk <= promise.max_loss
    return {
        "settings": len(risk),
        "refused": draws - len(made),
        "refusal": min(refusals, default=""),
        **_shares(int((risk[made] > promise.max_loss).sum()), draws),
        "saving": float(1 - share[made].mean()) if len(made) else None,
        "saving_range": np.percentile(1 - share[made], [2.5, 97.5]).tolist() if len(made) else None,
        "loss": float(risk[made].mean()) if len(made) else None,
        "best_saving": float(1 - share[known].min()) if known.any() else None,
    }


def simulated(promise: Promise, n: int, draws: int, gain: float) -> Found:
    """Nested settings of known risk; `gain` of the questions are won at every setting."""
    random = np.random.default_rng(1)
    risks = np.linspace(0, 2 * promise.max_loss, 61)
    chosen = list[int]()
    for _ in range(draws):
        draw = random.random((n, 1))
        losses = (draw < risks + gain).astype(float) - (draw > 1 - gain)
        chosen.append(kept(losses, promise) - 1)
    last: NDArray[np.int64] = np.array(chosen)
    made = last >= 0
    return {
        **_shares(int((made & (risks[last] > promise.max_loss + 1e-12)).sum()), draws),
        "refused": int((~made).sum()),
        "loss": float(risks[last][made].mean()),
        "gain": gain,
    }


def _shares(broken: int, draws: int) -> Found:
    low, high = metrics.wilson_interval(broken, draws)
    return {"broken": broken, "broken_share": broken / draws, "broken_interval": [low, high]}


def lines(record: Found) -> list[str]:
    """The record as a person reads it."""
    out = [
        f"Promise: at most {percent(record['max_loss'], 1)} lost with {percent(record['confidence'], 0)} confidence; "
        f"{record['draws']:,} redrawn calibration sets of n = {record['n']:,} from "
        f"{record['population']:,} collected questions of builtin_math",
        "",
        "loss          strategy              settings  broken (95 % interval)     refused  "
        "mean saving (95 % of draws)  mean loss",
    ]
    for row in record["redrawn"]:
        saving = "-"
        if row["saving"] is not None:
            low, high = row["saving_range"]
            saving = f"{row['saving']:.1%} ({low:.1%} to {high:.1%})"
        loss = "-" if row["loss"] is None else f"{row['loss']:.2%}"
        out.append(
            f"{row['name']:<13} {row['strategy']:<21} {row['settings']:>8}  {_broken(row):<26} {row['refused']:>7}  "
            f"{saving:<28} {loss:>9}"
        )
    out += [
        f"refused ({row['name']}, {row['strategy']}): {row['refusal']}"
        for row in record["redrawn"]
        if row["refusal"]
    ]
    out += ["", "Simulated settings of known risk:"]
    out += [
        f"{row['name']:<13} n = {row['n']:>5,}, gains {row['gain']:.0%}: broken {_broken(row)}, "
        f"refused {row['refused']}, mean loss {row['loss']:.2%}"
        for row in record["simulated"]
    ]
    return [*out, "", record["conditions"]]


def _broken(row: Found) -> str:
    low, high = row["broken_interval"]
    return f"{row['broken_share']:.1%} ({low:.1%} to {high:.1%})"


def measured(options: argparse.Namespace) -> Found:
    """Everything, as a JSON record."""
    population = Population(options.collected, options.calibration, options.thinking)
    promises: dict[Loss, Promise] = {
        loss: Promise(options.max_loss, options.confidence, loss) for loss in ("net", "lost-correct")
    }
    rows = []
    for loss, strategy in CASES:
        if options.only not in strategy:
            continue
        thinks = strategy == THINKING
        settings = population.thinking() if thinks else population.settings(loss, TANDEM[strategy])
        found = redrawn(settings, promises[loss], options.n, options.draws)
        rows.append({"name": loss, "strategy": strategy, **found})
        print(f"{loss}, {strategy}: broken {_broken(rows[-1])}", flush=True)
    simulations = [
        {"name": loss, "n": n, **simulated(promise, n, options.draws, gain)}
        for loss, promise in promises.items()
        for n in (500, options.n)
        for gain in ((0.0, 0.03) if loss == "net" else (0.0,))
    ]
    return {
        "max_loss": options.max_loss,
        "confidence": options.confidence,
        "n": options.n,
        "draws": options.draws,
        "population": sum(len(data.rows) for data in population.others),
        "redrawn": rows,
        "simulated": simulations,
        "conditions": f"judge builtin:judge ({population.judge.kind}), path chosen on "
        f"{len(population.train.rows):,} train questions; numpy {np.__version__}, Python {platform.python_version()}",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max-loss", type=float, default=0.03)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--n", type=int, default=4000, help="questions of a calibration set")
    parser.add_argument("--only", default="", help="strategies whose name holds this")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--collected", type=Path, default=ROOT / "results/builtin_math/collected")
    parser.add_argument(
        "--calibration",
        type=Path,
        default=ROOT / "results/certificates/collected",
        help="folder of the calibration questions (`ensemblehub collect --split calibration --limit 4000`)",
    )
    parser.add_argument(
        "--thinking",
        type=Path,
        default=ROOT / "results/certificates/thinking",
        help="folder of the answers without thinking (results/certificates/thinking.yaml says how they are made)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results/certificates")
    options = parser.parse_args(arguments)
    record = measured(options)
    text = "\n".join(lines(record)) + "\n"
    print(text, end="")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "certificates.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "certificates.txt").write_text(text)


if __name__ == "__main__":
    main()
