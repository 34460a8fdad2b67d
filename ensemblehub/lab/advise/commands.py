"""`ensemblehub advise`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from ensemblehub import builtin
from ensemblehub.lab.bench.commands import changes_option
from ensemblehub.lab.budget_option import checked_budget
from ensemblehub.lab.promise_options import promise_options
from ensemblehub.lab.tasks import TASKS
from ensemblehub.lab.tasks.base import Task
from ensemblehub.options import FiniteRange, config_file_option, force_option

if TYPE_CHECKING:
    from ensemblehub.lab.advise.choice import Aim, Criterion
    from ensemblehub.lab.pipeline.certificate import Promise


@click.command()
@config_file_option()
@click.option(
    "--models",
    nargs=2,
    metavar="mentor=MODEL intern=MODEL",
    help="The two models instead of a file: hub ids, folders, .gguf files, MODEL:URL.",
)
@click.option("--task", metavar="NAME", help=f"A benchmark: {', '.join(TASKS)}.")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="FILE", help="Its questions in the public form."
)
@click.option(
    "--input",
    "own",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Your own questions, as for `infer`. With answers, these are compared; without, the mentor's own "
    "answers count as right.",
)
@click.option(
    "--prompt",
    metavar="PROFILE",
    help="Prompt profile of the benchmark (default: experiment.prompt of the file, else plain; docs/tasks.md).",
)
@click.option(
    "--collected",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="What `collect` recorded of the same models and prompts (FOLDER/SPLIT.jsonl.gz); it is not asked again.",
)
@click.option("--split", help="Split of the benchmark (default: its first one, never test).")
@click.option("--n", type=click.IntRange(min=10), default=50, show_default=True, help="Questions at most.")
@click.option(
    "--all", "whole", is_flag=True, help="Ask all --n questions, also when the answer is clear before."
)
@click.option(
    "--aim",
    type=click.Choice(["accuracy", "cost"]),
    help="cost: the cheapest that loses at most --margin against the mentor; accuracy: the most "
    "accurate within --budget (default: cost, with --budget accuracy).",
)
@click.option(
    "--budget",
    callback=checked_budget,
    metavar="AMOUNT",
    help="Cost of a question at most: a share of the mentor's (0.7; default: 1), dollars ($0.002) or compute "
    "(1.5TFLOPs).",
)
@click.option(
    "--margin",
    type=FiniteRange(0, 100),
    help="Points of accuracy that may be lost against the mentor (default: 1.5).",
)
@promise_options(
    "Certify the cheapest strategy that loses at most this share of the questions against the mentor "
    "(docs/judges.md); all --n questions are recorded."
)
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="Further answers of the intern per question, for voting; 0 leaves voting out.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("advice"),
    show_default=True,
    help="Folder for the report, the configuration and what was recorded.",
)
@force_option
def advise(
    path: Path | None,
    changes: tuple[str, ...],
    models: tuple[str, str] | None,
    task: str | None,
    data: Path | None,
    own: Path | None,
    prompt: str | None,
    collected: Path | None,
    split: str | None,
    n: int,
    whole: bool,
    aim: Aim | None,
    budget: str | None,
    margin: float | None,
    promise: Promise | None,
    samples: int,
    out: Path,
    force: bool,
) -> None:
    """Find out which strategy pays for a pair of models on a task.

    Records once per question the mentor's answer and insight, and the intern's answers and readings;
    replays over that the strategies that it can (docs/advise.md names the others) at every threshold; and
    prints accuracy and cost with intervals, the recommended configuration (written to OUT/advice.yaml, ready
    for `ensemblehub serve`), what it would save, and what cannot be told yet. Stops early once the answer is
    clear.

    The command can be interrupted at any time; the same command continues where it stopped, and a larger
    --n extends what is recorded. With --max-loss the cheapest strategy that keeps this promise against the
    mentor is certified (OUT/certificate.json) and becomes the recommended configuration.

    \b
    ensemblehub advise --models mentor=builtin:mentor intern=builtin:intern --task builtin_math
    ensemblehub advise --pair qwen-coder --input questions.jsonl --n 100
    """
    from ensemblehub.config import Config
    from ensemblehub.lab.advise import advice
    from ensemblehub.lab.advise.pair import pair_of

    if models and path:
        raise click.UsageError("give --models or a configuration, not both")
    if bool(task) == bool(own):
        raise click.UsageError("give --task or --input")
    if promise and not (aim is None and budget is None and margin is None):
        raise click.UsageError(
            "--max-loss chooses by its certificate: leave out --aim, --budget and --margin"
        )
    criterion = _criterion(aim, budget, margin)
    config = pair_of(models, changes) if models else Config.read(path or builtin.CONFIG, changes)
    chosen, split = _asked(own, task, data, prompt, config.experiment.prompt, split)
    made = advice.advise(config, chosen, split, n, whole, samples, criterion, out, force, promise, collected)
    click.echo(made.text)
    if made.refusal:
        raise made.refusal
    click.echo(f"ensemblehub serve {out}/advice.yaml")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("configs", metavar="CONFIG...", nargs=-1, required=True)
@changes_option
@click.option(
    "--against", default="mentor", show_default=True, metavar="NAME", help="The cell of the mentor alone."
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Certify only cells with such names, as in --only 'cascade*'; repeatable.",
)
@click.option(
    "--task", metavar="NAME", help="What was measured (default: as DIR says); needed for a task of your own."
)
@promise_options(
    "Certify the cheapest cell that loses at most this share of the questions against the mentor.",
    required=True,
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("certified"),
    show_default=True,
    help="Folder for the certificate and the configuration.",
)
def certify(
    folder: Path,
    configs: tuple[str, ...],
    changes: tuple[str, ...],
    against: str,
    only: tuple[str, ...],
    task: str | None,
    promise: Promise,
    out: Path,
) -> None:
    """Certify a strategy from results of `ensemblehub bench`, without asking a model.

    DIR is the result folder, CONFIG... what `bench` measured, with one cell per setting (`sweep:`).  Cells of one
    method and the same models are the settings of one strategy.  Every second question chooses the strategy
    and orders its settings, the others test them (docs/judges.md).

    Writes OUT/certificate.json, and OUT/certified.yaml for `ensemblehub serve`, which compares and watches.

    \b
    ensemblehub certify results/sweep sweep.yaml --max-loss 0.02
    """
    from ensemblehub.lab.advise.measured import FILE, certify_measured
    from ensemblehub.lab.bench.cells import cells_of

    click.echo(certify_measured(folder, cells_of(configs, changes), against, only, promise, out, task))
    click.echo(f"ensemblehub serve {out / FILE}")


def _criterion(aim: Aim | None, budget: str | None, margin: float | None) -> Criterion:
    """What is wanted; --budget alone asks for accuracy."""
    from ensemblehub.lab.advise.choice import Criterion
    from ensemblehub.lab.pipeline.calibration import Objective

    aim = aim or ("cost" if budget is None else "accuracy")
    if budget is not None and aim == "cost":
        raise click.UsageError("--budget goes with --aim accuracy")
    if margin is not None and aim == "accuracy":
        raise click.UsageError("--margin goes with --aim cost")
    most = Objective.parse(f"budget:{1 if budget is None else budget}")
    limits = {} if margin is None else {"margin": margin / 100}
    return Criterion(aim, most.value or 1.0, unit=most.unit, **limits)


def _asked(
    own: Path | None, task: str | None, data: Path | None, prompt: str | None, default: str, split: str | None
) -> tuple[Task, str]:
    """The task that is asked, and its split."""
    from ensemblehub.lab.tasks import task_named
    from ensemblehub.lab.tasks.own import OwnQuestions

    if own and (prompt or data):
        raise click.UsageError("--data and --prompt go with --task, not with --input")
    chosen = OwnQuestions(own) if own else task_named(cast(str, task), data, prompt or default)
    held_out = {"test", "all"} if "test" in chosen.splits else set()  # `all` holds the test questions, too
    splits = [name for name in chosen.splits if name not in held_out]
    if split is None and not splits:
        raise click.UsageError(f"{chosen.name} has only test questions: name them with --split test")
    return chosen, split or splits[0]
