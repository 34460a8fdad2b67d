"""`ensemblehub advise`: record, replay, compare, and write down what to use."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ensemblehub.artifacts import write_atomically
from ensemblehub.concurrency import for_each
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import ConfigError, ContextOverflowError
from ensemblehub.lab.advise import choice
from ensemblehub.lab.advise.certified import CHOOSING, CertifiedStrategy, certify, check_enough
from ensemblehub.lab.advise.choice import Criterion, Evaluated
from ensemblehub.lab.advise.costs import Prices, prices_of, without_prices
from ensemblehub.lab.advise.escalations import warn_of_drafts, warn_of_thinking
from ensemblehub.lab.advise.pair import trained_judge, warn_of, with_rule
from ensemblehub.lab.advise.record import Recorded, Recorder, check_answers, distinct, reused
from ensemblehub.lab.advise.strategies import NO_THINKING, strategies
from ensemblehub.lab.advise.strategy import Changes
from ensemblehub.lab.advise.summary import as_markdown, headline, open_questions, over_budget
from ensemblehub.lab.journal import Journal, unpack
from ensemblehub.lab.pipeline.certificate import Promise
from ensemblehub.lab.pipeline.experiment import Experiment, as_json, tandem_of, with_sampling
from ensemblehub.lab.pipeline.failures import about
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.tasks.base import Item, Task
from ensemblehub.lab.tasks.own import OwnQuestions
from ensemblehub.tandem.judges import Judge

log = logging.getLogger(__name__)
SWITCHES = {  # options that turn a model's thinking off, by engine
    "openai": "extra_body.chat_template_kwargs.enable_thinking",
    "api": "extra_body.chat_template_kwargs.enable_thinking",
    **dict.fromkeys(("hf", "llama_cpp", "numpy", "vllm"), "enable_thinking"),
}
RECORDED = "recorded.jsonl"  # in the folder of an advice; or its gzipped copy
BLOCK = 10  # questions between two looks at what is known so far


@dataclass(frozen=True)
class Advice:
    """What was found.

    Attributes:
        found: every strategy; the first is the mentor alone.
        text: the report as Markdown.
        config: the recommended configuration as YAML; the certified one, where there is one.
        refusal: why nothing was certified, where a certificate was asked for.
    """

    found: list[Evaluated]
    text: str
    config: str
    refusal: ConfigError | None = None


def advise(
    config: Config,
    task: Task,
    split: str,
    n: int,
    whole: bool,
    samples: int,
    criterion: Criterion,
    folder: Path,
    force: bool,
    promise: Promise | None = None,
    collected: Path | None = None,
) -> Advice:
    """Record up to `n` questions, stop earlier once the answer is clear, and write `advice.md` and
    `advice.yaml`.

    Args:
        whole: do not stop earlier.
        promise: certify the cheapest strategy that keeps it, on all `n` questions, and recommend that one.
        collected: what `collect` recorded of the same models, prompts and questions; it is not asked again.

    Raises:
        ConfigError: the configuration is not Tandem's, what the models cost is unknown, there is no question,
            too few for the promise, some questions have answers and some have none, or one has two that disagree;
            nothing was asked.  Or no answer was right.
        ArtifactError: `collected` was made with other settings, or the recorded questions were.
    """
    agreement = isinstance(task, OwnQuestions) and not task.labelled
    whole = whole or promise is not None
    recorded = record(config, task, split, n, samples, folder, force, criterion, whole, collected, promise)
    sampling = task.sampling(config.ensemble.generation.sampling())
    config = with_sampling(with_rule(config), sampling.max_tokens, sampling.stop)
    warn_of_thinking(recorded)
    if agreement and recorded.cut_off:
        log.warning(
            "the mentor's answer to %d of %d questions was cut off at max_tokens, so nothing counts as right there: "
            "raise `ensemble.generation.max_tokens`",
            recorded.cut_off,
            recorded.n,
        )
    found = choice.outcomes(strategies(recorded), criterion)
    check_right(found, recorded)
    chosen = choice.recommended(found, criterion)
    best, refusal = _certified(recorded, promise) if promise else (None, None)
    wanted = (
        f"{criterion}; then, of all settings, the cheapest that is certified: {promise}"
        if promise
        else criterion
    )
    if best:
        title, made = best.name, with_changes(config, {**best.changes, "ensemble.certificate": "."})
        keys = [row.key for row in recorded.collected.rows]
        certificate = best.save(made, keys, folder, best.judged)
        mentor = replace(found[0], **{of: getattr(found[0], of)[best.tested] for of in ("correct", "cost")})
        said = [headline(mentor, best.outcome, recorded.unit)]
    else:
        title = f"{chosen.name}: {chosen.setting}" if chosen.setting else chosen.name
        made, certificate = with_changes(config, chosen.changes), str(refusal)
        clear = choice.is_clear(found, chosen, criterion)
        said = [
            headline(found[0], chosen, recorded.unit),
            *over_budget(found, chosen, criterion, recorded.unit),
            *open_questions(found, chosen, clear, criterion),
        ]
    text = as_markdown(found, str(wanted), said, agreement, f"`{task.name}` ({split})", recorded)
    if promise:
        text += f"\n## Certificate\n\n```\n{certificate}\n```\n"
    heading, unserved = f"# {title}\n", task.unserved()
    heading += f"# chosen by {recorded.measure}\n" if recorded.prices else ""
    if unserved:
        text, heading = f"{text}\nThe questions were {unserved}.\n", f"{heading}# {unserved}\n"
    advice = Advice(found, text, f"{heading}{made.to_yaml()}", refusal)
    write_atomically(folder / "advice.md", advice.text)
    write_atomically(folder / "advice.yaml", advice.config)
    return advice


def _certified(
    recorded: Recorded, promise: Promise
) -> tuple[CertifiedStrategy, None] | tuple[None, ConfigError]:
    """The cheapest strategy that keeps the promise, or why none is certified."""
    subjects = [row.subject for row in recorded.collected.rows]
    try:
        return certify(strategies(recorded, CHOOSING), subjects, promise), None
    except ConfigError as error:
        return None, error


def record(
    config: Config,
    task: Task,
    split: str,
    n: int,
    samples: int,
    folder: Path,
    force: bool,
    criterion: Criterion,
    whole: bool,
    collected: Path | None,
    promise: Promise | None = None,
) -> Recorded:
    """Ask up to `n` questions, from what `folder` holds of them.

    Args:
        whole: ask all of them, also once the answer by the criterion is clear.
        promise: what they are to certify.

    Raises:
        ConfigError: the configuration is not Tandem's, what the models cost is unknown, there is no question,
            one has two answers that disagree, or they are too few for the promise; nothing was asked.
    """
    configured, config = config, with_rule(config)
    ensemble = AsyncEnsemble.from_config(config)
    tandem = tandem_of(ensemble)
    mentor, intern = tandem.roles(ensemble.engines)
    warn_of(mentor, intern)
    judge = trained_judge(configured, tandem, mentor, intern, (task.name, split))
    prices = prices_of(mentor, intern, criterion.unit)
    experiment = Experiment(config, task)
    items = distinct(task, split, n)
    if not items:
        raise ConfigError(f"{task.name} has no questions in its split {split!r}")
    if promise:
        check_enough(len(items), promise)
    header = without_prices(experiment.header(split, ensemble, tandem))
    known = reused(collected, split, header, items) if collected else {}
    recorder = Recorder(tandem, ensemble.engines, task, experiment.sampling, samples, known)
    roles = {role: engine.name for role, engine in tandem.parts(ensemble.engines).items()}
    profile = config.ensemble.output_aggregation_params.get("profile", tandem.profile)
    more = {"samples": samples, "roles": roles, "profile": profile}
    header = as_json(header | more)
    unpack(folder / RECORDED, force)
    with closing(Journal(folder / RECORDED, header, force)) as journal:
        check_answers(task, items, journal)
        recorded = asyncio.run(
            _recorded(
                ensemble,
                recorder,
                items,
                journal,
                header,
                prices,
                judge,
                None if whole else criterion,
                config.experiment.concurrency,
            )
        )
    if "logprobs" in intern.capabilities:
        warn_of_drafts(recorded)
    return recorded


async def _recorded(
    ensemble: AsyncEnsemble,
    recorder: Recorder,
    items: list[Item],
    journal: Journal,
    header: Mapping[str, Any],
    prices: Prices | None,
    judge: tuple[str, Judge] | None,
    enough: Criterion | None,
    limit: int,
) -> Recorded:
    """Record block by block until the questions are used up or the answer is clear.

    Raises:
        ContextOverflowError: a question is too long for a model; the others of its block are recorded.
    """
    too_long = list[ContextOverflowError]()

    def missing(part: list[Item]) -> list[Item]:
        return [item for item in part if not recorder.is_whole(journal.rows.get(item.id))]

    async def asked(item: Item) -> None:
        row = journal.rows.get(item.id)
        try:
            with about(recorder.task, item):
                row = await (recorder.completed(item, row) if row else recorder.collect(item))
        except ContextOverflowError as error:
            too_long.append(error)
        else:
            journal.append(row)

    done = len(items) - len(missing(items))
    async with ensemble:
        with progress("advise", len(items), done) as step:
            block = BLOCK if enough else len(items)
            for end in range(block, len(items) + block, block):
                part = items[:end]
                await for_each(missing(part), asked, limit=limit, progress=step)
                if too_long:
                    raise ContextOverflowError(
                        f"{too_long[0]} ({len(too_long)} of {len(part)} questions too long, the others are recorded: "
                        "shorten it or leave it out, and the same command goes on)"
                    )
                rows = [journal.rows[item.id] for item in part]
                recorded = Recorded.of(rows, dict(header), prices, judge)
                if enough and len(part) >= choice.FEWEST and _is_clear(recorded, enough):
                    break
    return recorded


def _is_clear(recorded: Recorded, criterion: Criterion) -> bool:
    found = choice.outcomes(strategies(recorded), criterion)
    return choice.is_clear(found, choice.recommended(found, criterion), criterion)


def check_right(found: Sequence[Evaluated], recorded: Recorded) -> None:
    """Check that something was right.

    Raises:
        ConfigError: no answer was.
    """
    if not any(outcome.correct.any() for outcome in found):
        empty = sum(not row.runs["mentor"].text.strip() for row in recorded.collected.rows)
        said = f"; the mentor's answers to {empty} of them are empty" if empty else ""
        raise ConfigError(
            f"nothing to recommend: no answer of any model or strategy to {recorded.n} questions is right"
            f"{said}"
        )


def with_changes(config: Config, changes: Changes) -> Config:
    """The configuration with a strategy's changes, and the models that it uses.

    Beside a certificate the others stay, for `server.on_drift: mentor`.
    """
    kept = config.model_dump(
        exclude_unset=True, mode="json", include={"model_specs", "engine_options", "debug"}
    )
    whole = config.model_dump(exclude_unset=True, mode="json", include={"ensemble"})
    whole["ensemble"].pop("certificate", None)  # of another strategy
    if "ensemble.output_aggregation_method" in changes:
        for key in ("request_params", "request_members"):  # options and models of the Tandem
            whole["ensemble"].pop(key, None)
    if NO_THINKING in changes:
        changes = {key: value for key, value in changes.items() if key != NO_THINKING}
        quiet = changes.get("ensemble.models") or [_mentor(config)]
        for index, spec in enumerate(config.model_specs):
            if spec.engine in SWITCHES and spec.name in quiet:
                changes = {**changes, f"model_specs.{index}.{SWITCHES[spec.engine]}": False}
    made = Config.from_dict(kept | whole, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    used = set(made.ensemble.models)
    if not used or made.ensemble.certificate:
        return made
    return made.model_copy(update={"model_specs": [spec for spec in made.model_specs if spec.name in used]})


def _mentor(config: Config) -> str:
    """The name of a Tandem's mentor."""
    ensemble = AsyncEnsemble.from_config(config)
    return tandem_of(ensemble).roles(ensemble.engines)[0].name
