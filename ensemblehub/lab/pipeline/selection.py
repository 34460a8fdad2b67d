"""`ensemblehub train --selection`: which model answers which question right, and predictors of it.

Every engine of the configuration answers the train and calibration questions alone, as the task puts them;
the smallest one that can score also reads them.  Every finished question is synced to a journal, so a killed
run loses at most the questions in progress.  Predictors are fitted on the train split; the probabilities that
suffice are chosen on the calibration split for `experiment.aim`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub import builtin
from ensemblehub.concurrency import for_each, together
from ensemblehub.config import Config
from ensemblehub.config.sections import EnsembleSection
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods import question
from ensemblehub.ensemble_methods.model_selection.learned import LearnedModel, LearnedSelection
from ensemblehub.ensemble_methods.roles import by_size
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.lab.journal import ANEW, Journal
from ensemblehub.lab.judges.examples import FEWEST
from ensemblehub.lab.judges.training import train_judge
from ensemblehub.lab.pipeline import calibration, splits
from ensemblehub.lab.pipeline.calibration import Objective
from ensemblehub.lab.pipeline.cascade import Outcomes
from ensemblehub.lab.pipeline.collect import written
from ensemblehub.lab.pipeline.experiment import Experiment, as_json
from ensemblehub.lab.pipeline.failures import about
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.tasks.base import Item
from ensemblehub.schema import Cost, Request
from ensemblehub.tandem import features
from ensemblehub.tandem.judges import Inputs, Logistic

MOST = 5  # engines, for whose thresholds all combinations are tried
METRICS = ("auc", "brier", "brier_base_rate", "calibration_error")
Floats = NDArray[np.float64]


def train(config: Config, limit: int | None = None, force: bool = False) -> dict[str, Any]:
    """Collect what is missing, fit, choose thresholds, and save the artifact that the configuration names.

    Args:
        limit: only so many questions of each split.
        force: collect anew.

    Returns:
        per engine: accuracy, mean cost, and how good its predictor is; and what the thresholds bring on the
        calibration questions.

    Raises:
        ConfigError: the configuration names no artifact, or its engines cannot be told apart by cost.
    """
    aim = Objective.parse(config.experiment.aim)
    folder = artifact_folder(config)
    experiment = Experiment(config)
    found = {split: collect(experiment, split, limit, force) for split in ("train", "calibration")}
    held = {item.id for item in experiment.items("calibration", None)}
    test = experiment.questions("test")
    answers = {}
    for split, (header, rows) in found.items():
        items = experiment.items(split, limit)
        kept = splits.unshared(
            [splits.digest(item) for item in items], test, f"{experiment.task.name}: {split}", "test"
        )
        kept = [at for at in kept if split == "calibration" or items[at].id not in held]
        answers[split] = SelectionData.read(header, [rows[at] for at in kept], _path(experiment, split))
    artifact, report = learn(answers["train"], answers["calibration"], aim)
    made = {"task": experiment.task.name, **asdict(experiment.sampling), **report["calibration"]}
    replace(artifact, data=json.loads(json.dumps(made))).save(folder)
    return report


def members(config: Config) -> AsyncEnsemble:
    """The configured engines without the configured strategies, which may need what is yet to be made."""
    plain = EnsembleSection(output_aggregation_method="single", generation=config.ensemble.generation)
    return AsyncEnsemble.from_config(config.model_copy(update={"ensemble": plain, "reward_specs": []}))


def artifact_folder(config: Config) -> Path:
    """Where the configured selection's artifact lies.

    Raises:
        ConfigError: the configuration names none.
    """
    params = config.selection.params
    if config.selection.method != "learned" or not params.get("artifact"):
        raise ConfigError(
            "nothing to train: set `model_selection_method: learned` and `model_selection_params: "
            "{artifact: FOLDER}`"
        )
    return Path(builtin.resolve(str(params["artifact"])))


def collect(
    experiment: Experiment, split: str, limit: int | None, force: bool
) -> tuple[dict[str, Any], list[Any]]:
    """The header and the row of every question of a split, from the journal or run now."""
    ensemble, items = members(experiment.config), experiment.items(split, limit)
    engines = ensemble.engines
    if not 2 <= len(engines) <= MOST:
        raise ConfigError(f"a selection is learned among 2 to {MOST} models, not {len(engines)}")
    reader = smallest(engines)
    header = as_json(
        {
            "task": experiment.task.name,
            "split": split,
            "reader": reader.name,
            **experiment.deciding(engines),
            "models": {engine.name: engine.model for engine in engines},
        }
    )
    with closing(Journal(_path(experiment, split), header, force)) as journal:
        splits.check_unchanged(journal, items)
        missing = journal.missing(items)
        limit = experiment.settings.concurrency

        async def work(item: Item) -> dict[str, Any]:
            with about(experiment.task, item):
                return await answered(engines, reader, experiment, item)

        async def run(step: Callable[[], None]) -> None:
            async with ensemble:
                await for_each(missing, work, limit=limit, keep=journal.append, progress=step)

        if missing:
            with progress(f"answers {split}", len(items), len(items) - len(missing)) as step:
                asyncio.run(run(step))
        return header, [journal.rows[item.id] for item in items]


def _path(experiment: Experiment, split: str) -> Path:
    return experiment.folder / "selection" / f"{split}.jsonl"


def smallest(engines: Sequence[Engine]) -> Engine:
    """The engine that reads the questions: the smallest that can score.

    Raises:
        ConfigError: none can, or the size of one that can is unknown.
    """
    able = [engine for engine in engines if "score" in engine.capabilities]
    if not able:
        raise ConfigError(
            "no engine can score a prompt, and a learned selection needs one that reads the question"
        )
    return by_size(able, "learned")[-1]


async def answered(
    engines: Sequence[Engine], reader: Engine, experiment: Experiment, item: Item
) -> dict[str, Any]:
    """One question as a JSON row: the reader's features, and every engine's graded answer with its cost."""
    ask = experiment.task.ask(item, experiment.sampling)
    ledger = UsageLedger()
    tokens = await question.read(reader, ask, ledger.meter("select"))
    answers = await together(_answer(engine, ask, experiment, item) for engine in engines)
    return {
        "id": item.id,
        "asked": splits.asked(item),
        "features": features.features(*features.sequences(tokens)).tolist(),
        "tokens": len(tokens),
        "reading": _cold_cost(reader, ledger.total),
        "answers": dict(zip([engine.name for engine in engines], answers, strict=True)),
    }


async def _answer(engine: Engine, ask: Request, experiment: Experiment, item: Item) -> dict[str, Any]:
    answer = await written(engine, ask)
    cost = answer.usage.total
    grade = await asyncio.to_thread(experiment.task.grade, item, answer.text)
    return {
        "correct": grade.correct,
        "finish": answer.finish,
        "tokens": cost.completion_tokens,
        **_cold_cost(engine, cost),
    }


def _cold_cost(engine: Engine, cost: Cost) -> dict[str, float]:
    """What a call costs an engine that has read nothing before: FLOPs and US dollars."""
    return {"flops": cost.flops + engine.info.flops(0, cost.cached_tokens), "usd": cost.usd}


@dataclass(frozen=True)
class SelectionData:
    """Collected answers of n questions by E engines.

    Attributes:
        reader, models: name of the engine that read the questions; every engine's model by name.
        table: the reader's features, (n, 16); `tokens` how many it read, (n,).
        correct: (n, E), engines in the order of `models`.
        cost: of every answer in `unit`, (n, E); `reading` of the reader's, (n,).
        unit: "usd" where every engine has a price, else "flops".
    """

    reader: str
    models: dict[str, str]
    table: Floats
    tokens: Floats
    correct: NDArray[np.bool_]
    cost: Floats
    reading: Floats
    unit: str

    @classmethod
    def read(cls, header: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> SelectionData:
        """The rows of the journal at `path` as arrays.

        Raises:
            ArtifactError: a row is damaged.
            ConfigError: the cost of an engine is unknown.
        """
        try:
            return cls.of(header, rows)
        except (LookupError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged ({error}); {ANEW}") from error

    @classmethod
    def of(cls, header: dict[str, Any], rows: list[dict[str, Any]]) -> SelectionData:
        """The rows of a journal as arrays.

        Raises:
            ConfigError: the cost of an engine is unknown.
        """
        models = header["models"]

        def column(key: str) -> NDArray[Any]:
            return np.array([[row["answers"][name][key] for name in models] for row in rows])

        unit = "usd" if (column("usd").sum(axis=0) > 0).all() else "flops"
        cost = column(unit)
        for name, total in zip(models, cost.sum(axis=0), strict=True):
            if not total > 0:
                raise ConfigError(
                    f"the cost of {name!r} is unknown: give the model a price or its parameters"
                )
        return cls(
            header["reader"],
            models,
            np.array([row["features"] for row in rows], np.float32).astype(np.float64),
            np.array([row["tokens"] for row in rows], np.float64),
            column("correct").astype(bool),
            cost,
            np.array([row["reading"][unit] for row in rows], np.float64),
            unit,
        )


def learn(
    train: SelectionData, held: SelectionData, aim: Objective
) -> tuple[LearnedSelection, dict[str, Any]]:
    """Fit a predictor per engine on `train`, choose thresholds on `held`; the artifact and a report."""
    fitted = {name: _member(train, index) for index, name in enumerate(train.models)}
    order = sorted(fitted, key=lambda name: fitted[name].cost)  # the cheapest first
    chosen = calibration.calibrate(outcomes(held, fitted, order), aim)
    thresholds = dict(zip(order, map(float, chosen.thresholds), strict=True))
    made = {name: replace(fitted[name], threshold=thresholds[name]) for name in order}
    expected = {name.replace("mentor", "most_expensive"): value for name, value in chosen.expected.items()}
    expected["shares"] = {order[int(index)]: share for index, share in chosen.expected["shares"].items()}
    report = {
        "members": {name: {"cost": member.cost, **member.metrics} for name, member in made.items()},
        "calibration": {
            "aim": str(aim),
            "n": len(held.tokens),
            "thresholds": thresholds,
            "most_expensive": order[-1],
        }
        | {"unit": train.unit, "reader": train.reader, "n_train": len(train.tokens), **expected},
    }
    return LearnedSelection(train.reader, made), report


def _member(train: SelectionData, index: int) -> LearnedModel:
    """A calibrated logistic regression; the share of right answers where nearly all or none are right."""
    name, right = list(train.models)[index], train.correct[:, index]
    if min(right.sum(), (~right).sum()) < FEWEST:
        predictor, metrics = constant((right.sum() + 1) / (len(right) + 2)), dict[str, Any]()
    else:
        judge, metrics = train_judge(
            "logistic", train.table[:, None], right[:, None], train.tokens[:, None], level=False
        )
        assert isinstance(judge, Logistic)
        predictor = judge
    kept = {key: value for key, value in metrics.items() if key in METRICS}
    cost = float(train.cost[:, index].mean())
    return LearnedModel(
        train.models[name], cost, predictor, metrics={"accuracy": float(right.mean()), **kept}
    )


def constant(probability: float) -> Logistic:
    """A predictor that says the same of every question."""
    inputs = Inputs(1, level=False)
    bias = np.array([math.log(probability / (1 - probability))], np.float32)
    layer = (np.zeros((1, inputs.width), np.float32), bias)
    return Logistic(inputs, np.zeros(inputs.width), np.ones(inputs.width), (layer,))


def outcomes(held: SelectionData, members: dict[str, LearnedModel], order: list[str]) -> Outcomes:
    """The selection as a cascade whose levels are the engines, cheapest first, and cost nothing to pass.

    Every question is read once; the engine that reads has then read it for its own answer, too.
    """
    columns = [list(held.models).index(name) for name in order]
    said = [members[name].predictor.probabilities(held.table, 0, held.tokens) for name in order]
    reading = np.where([name == held.reader for name in order], 0.0, held.reading[:, None])
    correct, cost = held.correct[:, columns], held.cost[:, columns]
    shape = cost.shape
    return Outcomes(
        np.stack(said, axis=1),
        correct,
        cost,
        reading,
        np.zeros(shape),
        correct[:, -1],
        cost[:, -1],
        np.ones(shape, bool),
        "best",
        "usd" if held.unit == "usd" else "flops",
    )
