"""`ensemblehub calibrate --max-loss`: the cheapest certified thresholds and give-up limits, and their certificate."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np

from ensemblehub.artifacts import hash_of
from ensemblehub.ensemble_methods.identity import identity
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import ConfigError
from ensemblehub.lab import metrics
from ensemblehub.lab.judges.training import KINDS
from ensemblehub.lab.pipeline import replay as collected
from ensemblehub.lab.pipeline import splits
from ensemblehub.lab.pipeline.calibration import by_level, limits_of
from ensemblehub.lab.pipeline.cascade import Floats, Outcomes
from ensemblehub.lab.pipeline.certificate import Promise, Settings, certified
from ensemblehub.lab.pipeline.certificate_path import FOLDS, along, path_of, unseen
from ensemblehub.lab.pipeline.experiment import with_sampling
from ensemblehub.lab.pipeline.pipeline import Pipeline, made_for
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.pipeline.records import Collected, with_current_names
from ensemblehub.tandem.artifact import JudgeArtifact
from ensemblehub.tandem.certificate import Certificate, percent
from ensemblehub.tandem.drift import histogram

SLICE = 100  # questions of a subject, from which on its loss is shown


def certify(pipeline: Pipeline, promise: Promise) -> str:
    """Save the cheapest thresholds that keep the promise, with their certificate; returns what a user reads.

    The path of thresholds is chosen on the split `train`, and tested on `calibration`.

    Raises:
        ConfigError: no thresholds that save anything keep the promise on so many questions, or an option of
            the Tandem is not in what was collected.
        ArtifactError: a split is missing, or the judge is for something else.
    """
    artifact, tandem, data = pipeline.calibration()
    data.check_sizes()
    data = data.part(splits.distinct([row.key for row in data.rows], "calibration"))
    levels = [checkpoint.level for checkpoint in tandem.checkpoints]
    training = pipeline.learning("train")
    pipeline.check_levels(training, tandem)
    pipeline.check_drafts(training, tandem)
    learned = training_outcomes(pipeline, artifact, training, levels, tandem)
    path = path_of(learned, promise.loss, limits_of(tandem.give_up, levels))
    outcomes = collected.outcomes(data, artifact.judge, levels, tandem.fallback, bool(tandem.draft))
    settings = along(outcomes, path)
    try:
        chosen = certified(settings, promise)
    except ConfigError as error:
        safer = "" if tandem.fallback == "mentor" else "; `fallback: mentor` is safer"
        raise ConfigError(f"{error}{safer}") from error
    seen = CalibrationShares.of(settings, chosen, [row.subject for row in data.rows])
    thresholds, give_up = by_level(levels, *path[chosen])
    made = dict(artifact.data) | {"calibrated": made_for(tandem, str(promise), data) | vars(seen)}
    folder = pipeline.saved_folder
    replace(artifact, thresholds=thresholds, give_up=give_up, data=made).save(folder)
    engines, tandem = pipeline.ensemble(judge=str(folder), thresholds=None)  # the certified ones
    asked = with_sampling(pipeline.config, pipeline.sampling.max_tokens, pipeline.sampling.stop)
    certificate = Certificate(
        promise.loss,
        promise.max_loss,
        promise.confidence,
        len(data.rows),
        thresholds,
        vars(seen),
        identity(asked, tandem, engines.engines),
        {
            "data": hash_of([row.key for row in data.rows]),
            "path": hashlib.sha256(path.tobytes()).hexdigest()[:16],
        },
        _scores(outcomes, *path[chosen]),
        give_up=give_up,
    )
    certificate.save(folder)
    said = lines(certificate, promise)
    if asked is not pipeline.config:
        generation = asked.ensemble.generation.model_dump(
            mode="json", include={"max_tokens", "stop_strings", "stop_sequences"}
        )
        said.append(f"to serve    set in ensemble.generation: {json.dumps(generation)}")
    return "\n".join([*said, *prompt_line(pipeline.task.unserved())])


def training_outcomes(
    pipeline: Pipeline, artifact: JudgeArtifact, data: Collected, levels: list[str], tandem: Tandem
) -> Outcomes:
    """What levels bring on the training questions, judged without having been trained on them."""
    outcomes = collected.outcomes(data, artifact.judge, levels, tandem.fallback, bool(tandem.draft))
    task = f'"task": "{artifact.data.get("task")}"'.encode()
    same = pipeline.task.name in with_current_names(task).decode()
    if artifact.judge.kind not in KINDS or not same:
        return outcomes  # it was trained on other questions
    with progress("judge training questions unseen", FOLDS) as step:
        found = unseen(data, levels, artifact.judge.kind, step)
    if outcomes.drafted:
        found[:, 0] = outcomes.probabilities[:, 0]
    return replace(outcomes, probabilities=found)


@dataclass(frozen=True)
class CalibrationShares:
    """What a setting brings on the calibration questions, as shares.

    Attributes:
        cost: of the mentor's, with its 95 % interval.
        subjects: share of lost questions by subject, of those with `SLICE` questions or more.
    """

    lost: float
    gained: float
    cost: float
    cost_interval: list[float]
    subjects: dict[str, float]

    @classmethod
    def of(cls, settings: Settings, chosen: int, subjects: list[str]) -> CalibrationShares:
        """Count one setting's losses and gains."""
        lost = settings.losses("lost-correct")[:, chosen]
        gained = lost - settings.losses("net")[:, chosen]
        cost = settings.cost[:, chosen] / settings.mentor_cost.mean()
        known = np.array(subjects)
        return cls(
            float(lost.mean()),
            float(gained.mean()),
            float(cost.mean()),
            list(metrics.paired_bootstrap(cost, 0.0)),
            {
                name: float(lost[known == name].mean())
                for name in sorted(set(subjects))
                if subjects.count(name) >= SLICE
            },
        )


def _scores(outcomes: Outcomes, thresholds: Floats, give_up: Floats) -> dict[str, list[int]]:
    """Histograms of the first and the last probability that the judge gives in a run."""
    heard = outcomes.heard
    last = heard[np.arange(len(heard)), outcomes.giving_up(give_up).ends(thresholds)]
    return {"first": histogram(heard[:, 0].tolist()), "last": histogram(last.tolist())}


def prompt_line(unserved: str) -> list[str]:
    """What a configuration lacks of the prompts that a certificate holds for (`Task.unserved`), if anything."""
    return [f"prompts     {unserved}"] if unserved else []


def lines(certificate: Certificate, promise: Promise, strategy: str = "") -> list[str]:
    """The certificate as a person reads it."""
    seen = CalibrationShares(**certificate.seen)
    thresholds, lost = (
        ", ".join(f"{level} {value:.2f}" for level, value in limits.items())
        for limits in (certificate.thresholds, certificate.give_up)
    )
    chosen = ": ".join(part for part in (strategy, thresholds) if part)
    chosen += f"; given up below {lost}" if lost else ""
    low, high = seen.cost_interval
    slices = list(seen.subjects.values())
    by_subject = f"; lost by subject {min(slices):.1%} to {max(slices):.1%}" if slices else ""
    return [
        f"certified   at most {percent(promise.max_loss, 1)} {promise.measured} are lost, with "
        f"{percent(promise.confidence, 0)} confidence (n = {certificate.n:,})",
        f"chosen      {chosen}     cost {seen.cost:.2f} of the mentor ({low:.2f} to {high:.2f})",
        f"seen        lost {seen.lost:.1%}, gained {seen.gained:.1%}{by_subject} "
        f"(subjects are not certified; those under {SLICE} questions are not shown)",
        f"holds for   {', '.join([*certificate.holds_for, *certificate.made_from])} by hash; exchangeable "
        f"questions; {'until drift' if certificate.scores else 'drift is not watched'}",
    ]
