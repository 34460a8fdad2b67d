"""The laboratory's commands: `ensemblehub demo`, `collect`, `train`, `calibrate`, `evaluate`, `report`, ...

`ensemblehub.cli` finds them through the entry point `ensemblehub.commands` of the package.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ensemblehub import data_files, registry
from ensemblehub.lab.advise.commands import advise, certify
from ensemblehub.lab.bench import commands as bench
from ensemblehub.lab.budget_option import checked_budget
from ensemblehub.lab.contracts.commands import init, validate
from ensemblehub.lab.merge import merge
from ensemblehub.lab.paper.commands import paper
from ensemblehub.lab.promise_options import promise_options
from ensemblehub.lab.tasks import TASKS
from ensemblehub.options import Commands, CommandT, FiniteRange, config_option, force_option, limit_option
from ensemblehub.ray_cluster import Cluster, ray_options
from ensemblehub.shards import Shard, shard_option

if TYPE_CHECKING:
    from ensemblehub.config import Config
    from ensemblehub.lab.pipeline.certificate import Promise


def experiment_option(command: CommandT) -> CommandT:
    """Add the options of `config_option`, and `--dataset`, `--data` and `--prompt` for the benchmark."""

    @functools.wraps(command)
    def chosen(
        dataset: str | None, data: Path | None, prompt: str | None, changes: tuple[str, ...], **options: Any
    ) -> Any:
        given = {"task": dataset, "data": data, "prompt": prompt}
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
        help="File or folder of the benchmark in its public format, instead of data/ or the hub; {split} in "
        "the name stands for the split.",
    )
    words = click.option(
        "--prompt",
        metavar="NAME",
        help="Prompt profile: plain, or to compare with published scores official, evalplus or reference "
        "(docs/tasks.md).",
    )
    return cast(CommandT, name(file(words(chosen))))


@click.command()
@config_option
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Number of questions to evaluate (default: 100 for the built-in pair, 8 for other models).",
)
@click.option(
    "--question",
    type=click.IntRange(min=0),
    default=22,
    show_default=True,
    help="Index of the test question that is run live.",
)
def demo(config: Config, limit: int | None, question: int) -> None:
    """Show one run live, then evaluate a sample of questions.

    Prints the table of the evaluation and writes its plot.  With --pair qwen-coder, two public models write
    small Python functions; `ensemblehub pull qwen-coder` fetches them.
    """
    from ensemblehub.lab.demo import run

    run(config, limit, question)


@click.command()
@experiment_option
@config_option
@click.option(
    "--split",
    required=True,
    help="train (for the judge), calibration (for the thresholds), test or all (docs/tasks.md).",
)
@click.option("--parallel", is_flag=True, help="Collect in several worker processes.")
@click.option(
    "--num_workers",
    type=click.IntRange(min=1),
    help="Number of workers (default: one per GPU of the mentors).",
)
@click.option(
    "--gpus",
    default="",
    metavar="0,1",
    help="GPUs to divide among the workers; a worker's GPUs hold both its models.",
)
@click.option("--mentor_gpus", default="", metavar="0,1", help="GPUs to divide among the mentors.")
@click.option("--intern_gpus", default="", metavar="2,3", help="GPUs to divide among the interns.")
@shard_option
@ray_options("Answer on a pool of Ray Data")
@limit_option
@force_option
def collect(
    config: Config,
    split: str,
    shard: Shard | None,
    cluster: Cluster | None,
    limit: int | None,
    force: bool,
    parallel: bool,
    num_workers: int | None,
    gpus: str,
    mentor_gpus: str,
    intern_gpus: str,
) -> None:
    """Collect one split: mentor and intern at every level.

    For each question, records the mentor's whole answer once, and at every level the intern's perplexity and
    entropy, its answer and whether it is right.

    The command can be interrupted at any time; the same command continues where it stopped.
    """
    from ensemblehub.lab.pipeline.parallel import placements
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    places = placements(num_workers or 0, gpus, mentor_gpus, intern_gpus) if parallel else []
    if parallel and (shard or cluster):
        raise click.UsageError("--parallel, --shard and --ray each divide the questions: choose one")
    if not parallel and (num_workers or gpus or mentor_gpus or intern_gpus):
        raise click.UsageError("--num_workers and the GPU lists go with --parallel")
    pipeline = Pipeline(config)
    if shard:
        click.echo(f"collected into {pipeline.collect_shard(shard, split, limit, force)}")
        return
    data = pipeline.collect(split, limit, force, places, cluster)
    click.echo(f"{len(data.rows)} questions in {config.experiment.results / 'collected'}")


@click.command()
@experiment_option
@config_option
@click.option("--selection", is_flag=True, help="Collect data for the `learned` selection, and train it.")
@click.option(
    "--limit", type=click.IntRange(min=1), help="With --selection: only the first N questions of each split."
)
@click.option("--force", is_flag=True, help="With --selection: collect the data again.")
def train(config: Config, selection: bool, limit: int | None, force: bool) -> None:
    """Train the judge on the collected split `train`.

    With --selection, trains the `learned` selection instead, and collects its data first.
    """
    if selection:
        from ensemblehub.lab.pipeline.selection import train as train_selection

        click.echo(json.dumps(train_selection(config, limit, force), indent=1))
        return
    if limit or force:
        raise click.UsageError(
            "--limit and --force go with --selection; the judge is trained on all collected rows"
        )
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    click.echo(json.dumps(Pipeline(config).train(), indent=1))


@click.command()
@config_option
@click.option(
    "--input_path", "--input-path", type=click.Path(path_type=Path), required=True, help="File of questions."
)
@click.option(
    "--output_path",
    "--output-path",
    type=click.Path(path_type=Path),
    default="stats.json",
    show_default=True,
    help="File to write the statistics to.",
)
@limit_option
def stats(config: Config, input_path: Path, output_path: Path, limit: int | None) -> None:
    """Measure every model's perplexity and confidence for `zscore`.

    The file of statistics is the option `stats_file` of the selection `zscore`.
    """
    from ensemblehub.lab.pipeline.stats import measure, questions

    for name, statistics in measure(config, questions(input_path, limit), output_path).items():
        spread = "{ppl_mean:.3f} ± {ppl_std:.3f}, confidence {conf_mean:.3f} ± {conf_std:.3f} ({n} questions)"
        click.echo(f"{name}: perplexity {spread.format(**statistics)}")
    click.echo(f"written to {output_path}: name it as `stats_file` of the selection")


@click.command()
@experiment_option
@config_option
@click.option("--max-accuracy", is_flag=True, help="The most accurate thresholds, whatever they cost.")
@click.option(
    "--budget",
    callback=checked_budget,
    metavar="AMOUNT",
    help="The most accurate thresholds whose questions cost at most this on average: a share of the mentor's cost "
    "(0.4), dollars ($0.002) or compute (1.5TFLOPs).",
)
@click.option(
    "--min-accuracy", type=FiniteRange(0, 1), help="The cheapest thresholds with at least this accuracy."
)
@promise_options("The cheapest thresholds that are certified to lose at most this share of the questions.")
def calibrate(
    config: Config,
    max_accuracy: bool,
    budget: str | None,
    min_accuracy: float | None,
    promise: Promise | None,
) -> None:
    """Choose the judge's thresholds on the split `calibration`.

    One threshold per level; test data is never used. The default objective is `experiment.aim` of the file. Where
    `give_up` of the Tandem is `calibrated`, the probability below which the mentor is stopped is chosen, too.
    With --max-loss, a certificate is saved beside the judge (docs/judges.md).
    """
    given = {"budget": budget, "min-accuracy": min_accuracy}
    objectives = ["max-accuracy"] if max_accuracy else []
    objectives += [f"{name}:{value}" for name, value in given.items() if value is not None]
    if len(objectives) + (promise is not None) > 1:
        raise click.UsageError("choose one of --max-accuracy, --budget, --min-accuracy and --max-loss")
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    pipeline = Pipeline(config)
    if promise is None:
        click.echo(json.dumps(pipeline.calibrate(next(iter(objectives), None)), indent=1))
        return
    from ensemblehub.lab.pipeline.certificate_command import certify

    click.echo(certify(pipeline, promise))


@click.command()
@experiment_option
@config_option
@limit_option
@force_option
def evaluate(config: Config, limit: int | None, force: bool) -> None:
    """Run Tandem live on the split `test`.

    The command can be interrupted at any time; the same command continues where it stopped.
    """
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    runs = Pipeline(config).evaluate(limit, force)
    right = sum(run.correct for run in runs)
    click.echo(
        f"{right} of {len(runs)} right ({right / len(runs):.2%}); `ensemblehub report` writes the table"
    )


@click.command()
@experiment_option
@config_option
@click.option(
    "--replay",
    "judges",
    multiple=True,
    metavar="JUDGE",
    help="Instead of live runs, replay this judge (a folder, or a rule such as entropy:1.0) on what was "
    "collected; repeatable.",
)
@click.option("--split", help="With --replay: the collected split (default: test).")
def report(config: Config, judges: tuple[str, ...], split: str | None) -> None:
    """Write table, summary and plots of an evaluation.

    Writes table.md, summary.json and the Pareto plot to the folder of results.  With
    --replay, no live run is needed and no model is called.
    """
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    if split and not judges:
        raise click.UsageError("--split goes with --replay: live runs are on the split test")
    pipeline = Pipeline(config)
    click.echo(pipeline.report_replayed(judges, split or "test") if judges else pipeline.report())


@click.group(cls=Commands)
def data() -> None:
    """Download benchmarks as data files."""


@data.command("fetch")
@click.argument("name")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="A file in the benchmark's public format, instead of the Hugging Face hub.",
)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    default=Path("data"),
    show_default=True,
    help="Folder to write to.",
)
@click.option("--split", help="Only this split; with --from, the split that the file holds.")
def fetch_command(name: str, source: Path | None, to: Path, split: str | None) -> None:
    """Download the public benchmark NAME (docs/tasks.md)."""
    from ensemblehub.lab.data import fetch, named

    files, benchmark = fetch(name, source, to, split), named(name)
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
    """Train and compare every kind of judge.

    Works on the collected data and writes classifiers.md, .json and .svg: AUC, F1, Brier score, calibration
    error, kinds of failure, feature importance, and accuracy by difficulty.

    A sequence judge takes minutes to train.
    """
    from ensemblehub.lab.judges.classifiers import run
    from ensemblehub.lab.pipeline.pipeline import Pipeline

    click.echo(run(Pipeline(config), kinds, lambda line: click.echo(line, err=True)))


def register(cli: click.Group) -> None:
    """Register the laboratory's commands, and the sandbox's line in the report of `doctor`."""
    own = (
        demo,
        advise,
        certify,
        collect,
        train,
        stats,
        calibrate,
        evaluate,
        report,
        data,
        merge,
        classifiers,
    )
    for command in (*own, paper, init, validate):
        cli.add_command(command)
    bench.register(cli)
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
