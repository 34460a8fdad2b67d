"""The laboratory's commands:
`ensemblehub demo | collect | train | calibrate | evaluate | report | paper | ...`.

`ensemblehub.cli` finds them through the entry point `ensemblehub.commands` of the package.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ensemblehub import data_files, registry
from ensemblehub.cli import Commands, CommandT, config_option, force_option, limit_option
from ensemblehub.lab.tasks import TASKS

if TYPE_CHECKING:
    from ensemblehub.config import Config


def experiment_option(command: CommandT) -> CommandT:
    """`config_option`, and `--dataset` and `--data` for what the experiment is about."""

    @functools.wraps(command)
    def chosen(dataset: str | None, data: Path | None, changes: tuple[str, ...], **options: Any) -> Any:
        given = {"task": dataset, "data": data}
        more = (
            f"experiment.{key}={json.dumps(str(value))}" for key, value in given.items() if value is not None
        )
        return command(changes=(*changes, *more), **options)

    name = click.option(
        "--dataset",
        metavar="NAME",
        help=f"The benchmark: {', '.join(TASKS)} (default: experiment.task of the file).",
    )
    file = click.option(
        "--data",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Its questions: a file or folder in the public form ({split} in a name stands for the split), instead "
        "of data/ or the hub.",
    )
    return cast(CommandT, name(file(chosen)))


@click.command()
@config_option
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Questions to evaluate."
)
@click.option(
    "--question",
    type=click.IntRange(min=0),
    default=22,
    show_default=True,
    help="Number of the test question to run.",
)
def demo(config: Config, limit: int, question: int) -> None:
    """Show one run live, then a quick evaluation with its table and plot."""
    from ensemblehub.lab import demo as demonstration

    demonstration.demo(config, limit, question)


@click.command()
@experiment_option
@config_option
@click.option(
    "--split",
    required=True,
    help="train (for the judge), calibration (for thresholds), test or all; docs/tasks.md says how each benchmark "
    "is divided.",
)
@click.option("--parallel", is_flag=True, help="Collect by worker processes.")
@click.option(
    "--num_workers", type=click.IntRange(min=1), help="How many (default: one per GPU of the mentors)."
)
@click.option(
    "--gpus", default="", metavar="0,1", help="GPUs, shared evenly; each worker has both models on its own."
)
@click.option("--mentor_gpus", default="", metavar="0,1", help="GPUs for the mentors, shared evenly.")
@click.option("--intern_gpus", default="", metavar="2,3", help="GPUs for the interns, shared evenly.")
@limit_option
@force_option
def collect(
    config: Config,
    split: str,
    limit: int | None,
    force: bool,
    parallel: bool,
    num_workers: int | None,
    gpus: str,
    mentor_gpus: str,
    intern_gpus: str,
) -> None:
    """Collect a split: the mentor's stream once, the intern's reading and answer at every level.

    Interrupt it whenever you like: the same command goes on where it stopped.
    """
    from ensemblehub.lab.pipeline.parallel import placements
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    places = placements(num_workers or 0, gpus, mentor_gpus, intern_gpus) if parallel else []
    if not parallel and (num_workers or gpus or mentor_gpus or intern_gpus):
        raise click.UsageError("--num_workers and the GPU lists go with --parallel")
    data = Pipeline(config).collect(split, limit, force, places)
    click.echo(f"{len(data.rows)} questions in {config.experiment.results / 'collected'}")


@click.command()
@experiment_option
@config_option
@click.option(
    "--selection", is_flag=True, help="Train a `learned` selection instead: collect what it needs, then fit."
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="With --selection: only the first N questions of each split."
)
@click.option("--force", is_flag=True, help="With --selection: collect anew.")
def train(config: Config, selection: bool, limit: int | None, force: bool) -> None:
    """Train the sufficiency judge on the collected `train` split, or a selection."""
    if selection:
        from ensemblehub.lab.pipeline import selection as learning

        click.echo(json.dumps(learning.train(config, limit, force), indent=1))
        return
    if limit or force:
        raise click.UsageError(
            "--limit and --force go with --selection; the judge learns from what was collected"
        )
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    click.echo(json.dumps(Pipeline(config).train(), indent=1))


@click.command()
@config_option
@click.option(
    "--input_path", "--input-path", type=click.Path(path_type=Path), required=True, help="Questions."
)
@click.option(
    "--output_path",
    "--output-path",
    type=click.Path(path_type=Path),
    default="stats.json",
    show_default=True,
    help="Where the statistics go.",
)
@limit_option
def stats(config: Config, input_path: Path, output_path: Path, limit: int | None) -> None:
    """Measure every model's perplexity and confidence on questions, for the selection `zscore`."""
    from ensemblehub.lab.pipeline import stats as measuring

    found = measuring.measure(config, measuring.questions(input_path, limit), output_path)
    for name, one in found.items():
        spread = "{ppl_mean:.3f} ± {ppl_std:.3f}, confidence {conf_mean:.3f} ± {conf_std:.3f} ({n} questions)"
        click.echo(f"{name}: perplexity {spread.format(**one)}")
    click.echo(f"written to {output_path}: name it as `stats_file` of the selection")


@click.command()
@experiment_option
@config_option
@click.option("--max-accuracy", is_flag=True, help="The most accurate thresholds.")
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    help="Most accurate within this share of the mentor's cost.",
)
@click.option(
    "--min-accuracy", type=click.FloatRange(0, 1), help="Cheapest thresholds with at least this accuracy."
)
def calibrate(config: Config, max_accuracy: bool, budget: float | None, min_accuracy: float | None) -> None:
    """Choose one threshold per level on the collected `calibration` split (never on test data)."""
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    given = {"budget": budget, "min-accuracy": min_accuracy}
    aims = ["max-accuracy"] if max_accuracy else []
    aims += [f"{name}:{value}" for name, value in given.items() if value is not None]
    if len(aims) > 1:
        raise click.UsageError("choose one of --max-accuracy, --budget and --min-accuracy")
    aim = aims[0] if aims else None
    click.echo(json.dumps(Pipeline(config).calibrate(aim), indent=1))


@click.command()
@experiment_option
@config_option
@limit_option
@force_option
def evaluate(config: Config, limit: int | None, force: bool) -> None:
    """Run Tandem live on the test split; resumable like `collect`."""
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    runs = Pipeline(config).evaluate(limit, force)
    right = sum(run.correct for run in runs)
    click.echo(
        f"{right} of {len(runs)} right ({right / len(runs):.2%}); `ensemblehub report` writes the table"
    )


@click.command()
@config_option
def report(config: Config) -> None:
    """Write the table, `summary.json`, the per-question file and the Pareto plot."""
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    click.echo(Pipeline(config).report())


@click.group(cls=Commands)
def data() -> None:
    """Benchmarks as data files."""


@data.command()
@click.argument("name")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="A file in the public format, instead of the hub.",
)
@click.option(
    "--to", type=click.Path(path_type=Path), default=Path("data"), show_default=True, help="Data folder."
)
@click.option("--split", help="Only this split; with --from, the one that FILE is.")
def fetch(name: str, source: Path | None, to: Path, split: str | None) -> None:
    """Write the files of the public benchmark NAME (docs/tasks.md)."""
    from ensemblehub.lab import data as benchmarks

    files, benchmark = benchmarks.fetch(name, source, to, split), benchmarks.named(name)
    for file, count in files.items():
        click.echo(f"{file}: {count} items")
    whole, count = benchmark.sizes[split or benchmark.splits[-1]], sum(files.values())
    if source and count != whole:
        click.echo(f"note: {benchmark.title} has {whole} items, {source} {count}", err=True)


@click.command()
@config_option
@click.option(
    "--judge", "kinds", multiple=True, metavar="KIND", help="Only this kind; repeat for more (default: all)."
)
def classifiers(config: Config, kinds: tuple[str, ...]) -> None:
    """Train and measure every kind of judge on what was collected.

    Writes classifiers.md, .json and .svg: AUC, F1, Brier, calibration, failure types, importance, by
        difficulty.
    The sequence judges take minutes each.
    """
    from ensemblehub.lab.judges import classifiers as comparing
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    click.echo(comparing.run(Pipeline(config), kinds, lambda line: click.echo(line, err=True)))


@click.command()
@click.argument("table", metavar="TABLE")
@click.option(
    "--pair",
    envvar="PAIR",
    default="builtin",
    show_default=True,
    help="A pair by name (builtin, deepseek, gpt-4o, qwen3, qwen3-deepseek), or a YAML file that runs Tandem.",
)
@click.option(
    "--dataset",
    default="math500",
    show_default=True,
    help="Benchmark; a built-in pair has its own of each kind.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Its file or folder, where it is not in data/.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("data/acte_experiments/results"),
    show_default=True,
    help="Folder of results; what is there is not made twice.",
)
@click.option(
    "--judge", help="A judge to use as it is: a folder, or a rule such as entropy:1.0 (default: train one)."
)
@click.option(
    "--max_tokens",
    multiple=True,
    type=click.IntRange(min=1),
    help="Of an answer; repeat it for a run with each (default: the pair's own).",
)
@click.option(
    "--set", "-s", "changes", multiple=True, metavar="KEY=VALUE", help="Change the pair's file for this run."
)
@limit_option
@force_option
def paper(
    table: str,
    pair: str,
    dataset: str,
    data: Path | None,
    out: Path,
    judge: str | None,
    max_tokens: tuple[int, ...],
    changes: tuple[str, ...],
    limit: int | None,
    force: bool,
) -> None:
    """Make one of the paper's tables for a pair, with the paper's own figures beside it.

    \b
    TABLE is one of
      main       accuracy and cost of every method, by subject and by level (Table 1)
      transfer   the classifier trained on math, unchanged on code (Table 5)
      api        a mentor behind an API (Table 4)
      guidance   accuracy by the length of the insight (Figure 5)
      thinking   thinking and concise models (Table 7)
      latency    seconds per question, one at a time (Table 13)
      ablation   the insight without its Goal, Planning, Retrieval or Action
      families   mentors and interns of several families (Table 2)

    Whatever a table needs is collected first, and kept: interrupt it whenever you like, the same command goes
        on.
    Scripts with the reference's names and defaults are in scripts/mentor_guided/.
    """
    from ensemblehub.lab import paper as tables
    from ensemblehub.lab.paper.study import Study

    study = Study(pair, dataset, out, data, judge, limit, None, changes, force)
    for tokens in max_tokens or (None,):
        for made in tables.run(table, study.of(max_tokens=tokens)):
            click.echo(made)


def register(cli: click.Group) -> None:
    """Add the commands to `ensemblehub`, and the sandbox to what `doctor` says."""
    for command in (demo, collect, train, stats, calibrate, evaluate, report, data, classifiers, paper):
        cli.add_command(command)
    registry.DOCTOR_LINES["sandbox"] = _sandbox
    data_files.HINTS.append(_how_to_fetch)


def _how_to_fetch(path: Path) -> str:
    from ensemblehub.lab.data import missing

    return missing(path)


def _sandbox() -> str:
    """How generated programs are isolated on this machine, or why they cannot be run."""
    from ensemblehub.errors import EnsembleHubError
    from ensemblehub.lab.tasks.sandbox import isolation

    try:
        return str(isolation())
    except EnsembleHubError as error:
        return f"none: {error}"
