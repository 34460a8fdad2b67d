"""The command line: `ensemblehub demo | ask | infer | serve | collect | train | calibrate | evaluate | report | ...`.

Knows how to read flags and how to show a ride in a terminal; the work is done elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from ensemblehub import __version__, studio
from ensemblehub.config import Config
from ensemblehub.errors import EnsembleHubError, did_you_mean

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class Commands(click.Group):
    """A group that names the nearest command for a mistyped one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(did_you_mean(args[0], self.list_commands(ctx), "command"), ctx)
        return super().resolve_command(ctx, args)


def dashed(name: str) -> str:
    """Flags are the same with `_` and with `-`."""
    return name.replace("_", "-")


@click.group(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"], "max_content_width": 100, "token_normalize_func": dashed,
    },
)  # fmt: skip
@click.version_option(__version__, prog_name="ensemblehub")
def cli() -> None:
    """Reasoning from language models at a fraction of the cost.

    \b
    Watch a ride on the models that ship:   ensemblehub demo
    Ask your own question:                  ensemblehub ask "There are 3 mugs. ..."
    Answer a file of questions:             ensemblehub infer --input_path FILE --output_path FILE
    Serve an OpenAI-compatible API:         ensemblehub serve [CONFIG]
    What a configuration means here:        ensemblehub doctor CONFIG
    The experiment behind the table:        ensemblehub collect --split train   (then calibration, test)
                                            ensemblehub train; ensemblehub calibrate
                                            ensemblehub evaluate; ensemblehub report

    Every command takes --config FILE; without it, the Tandem of the studio pair is used.  --set KEY=VALUE changes
    a line of that file for one run.
    """


def config_option(command: CommandT) -> CommandT:
    """`--config FILE` and `--set KEY=VALUE`, read and checked; the command gets a `Config`."""

    @functools.wraps(command)
    def configured(config: Path | None, changes: tuple[str, ...], **options: Any) -> Any:
        return command(config=Config.read(config or studio.CONFIG, changes), **options)

    file = click.option("--config", "-c", type=click.Path(path_type=Path), help="YAML file (default: the studio pair).")
    change = click.option(
        "--set", "-s", "changes", multiple=True, metavar="KEY=VALUE",
        help="Change the file for this run, as in -s experiment.task=studio_code; may be repeated.",
    )  # fmt: skip
    return cast(CommandT, file(change(configured)))


def experiment_option(command: CommandT) -> CommandT:
    """`config_option`, and `--dataset` and `--data` for what the experiment is about."""

    @functools.wraps(command)
    def chosen(dataset: str | None, data: Path | None, changes: tuple[str, ...], **options: Any) -> Any:
        given = {"task": dataset, "data": data}
        more = (f"experiment.{key}={json.dumps(str(value))}" for key, value in given.items() if value is not None)
        return command(changes=(*changes, *more), **options)

    name = click.option(
        "--dataset", metavar="NAME",
        help="The benchmark: studio_math, studio_code, math, math500, gsm8k, aime24, amc23, humaneval, "
        "humaneval_plus, mbpp or mbpp_plus (default: experiment.task of the file).",
    )  # fmt: skip
    file = click.option(
        "--data", type=click.Path(path_type=Path), metavar="FILE",
        help="Its questions: a file or folder in the public form ({split} in a name stands for the split), instead "
        "of data/ or the hub.",
    )  # fmt: skip
    return cast(CommandT, name(file(chosen)))


SPLITS = """math and gsm8k have their own train and test; math500 (400 train, 100 test) and humaneval (130, 34) are
divided by seed 42, and calibration is a seeded quarter of train (training leaves it out); aime24 and amc23 are test
only; mbpp goes by its published numbers."""

limit_option = click.option("--limit", type=click.IntRange(min=1), help="Only the first N questions.")
force_option = click.option("--force", is_flag=True, help="Start anew, even over data made with other settings.")


@cli.command()
@config_option
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Questions to evaluate.")
@click.option(
    "--question", type=click.IntRange(min=0), default=22, show_default=True, help="Which test question to ride."
)
def demo(config: Config, limit: int, question: int) -> None:
    """Show one ride live, then a quick evaluation with its table and plot."""
    from ensemblehub import terminal

    terminal.demo(config, limit, question)


@cli.command()
@click.argument("question")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: answer, insight, verdicts, bill.")
def ask(question: str, config: Config, as_json: bool) -> None:
    """Answer QUESTION (`-` reads it from standard input)."""
    from rich.console import Console

    from ensemblehub import terminal
    from ensemblehub.schema import Chat, Message

    try:
        text = sys.stdin.read() if question == "-" else question
        text.encode()
    except UnicodeError as error:
        raise click.UsageError("the question is not UTF-8 text") from error
    if not text.strip():
        raise click.UsageError("the question is empty")
    console = Console(quiet=as_json, highlight=False)
    record = asyncio.run(terminal.ask(config, Chat((Message("user", text),)), console))
    if as_json:
        click.echo(json.dumps(record, ensure_ascii=False))


@cli.command()
@click.argument("file", metavar="[YAML]", required=False, type=click.Path(path_type=Path))
@click.option("--config", "-c", type=click.Path(path_type=Path), help="YAML file (default: the studio pair).")
@click.option("--set", "-s", "changes", multiple=True, metavar="KEY=VALUE", help="Change the file for this run.")
@click.option("--probe", is_flag=True, help="Ask models behind APIs what they can do: about 15 short requests each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(file: Path | None, config: Path | None, changes: tuple[str, ...], probe: bool, as_json: bool) -> None:
    """Explain a configuration: who takes part, what is needed and present, how much memory.

    Loads no weights, needs no API keys and no network.  Exit status: 0 it can run, 2 it cannot.

    With --probe every model behind an API is asked, by short requests that cost some hundred tokens, whether it can be
    reached and takes the key, streams and bills, gives logprobs, continues an answer, scores prompts, calls tools and
    keeps to a format; each is told in a sentence, with the options to write and the bill.  What the options count on
    and was not seen is a problem.
    """
    from ensemblehub import doctor as examining

    if file and config:
        raise click.UsageError(f"two configurations: {file} and --config {config}")
    examining.offline()
    report = examining.examine(config or file or studio.CONFIG, changes, probe)
    if as_json:
        click.echo(json.dumps(report.record(), ensure_ascii=False, default=str))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        examining.show(report, console if console.is_terminal else Console(highlight=False, width=160))
    sys.exit(0 if report.ok else 2)


@cli.command()
@experiment_option
@config_option
@click.option(
    "--split", required=True, help=f"train (for the judge), calibration (for thresholds), test or all. {SPLITS}"
)
@click.option("--parallel", is_flag=True, help="Collect by worker processes.")
@click.option("--num_workers", type=click.IntRange(min=1), help="How many (default: one per GPU of the mentors).")
@click.option("--gpus", default="", metavar="0,1", help="GPUs, shared evenly; each worker has both models on its own.")
@click.option("--mentor_gpus", default="", metavar="0,1", help="GPUs for the mentors, shared evenly.")
@click.option("--intern_gpus", default="", metavar="2,3", help="GPUs for the interns, shared evenly.")
@limit_option
@force_option
def collect(
    config: Config, split: str, limit: int | None, force: bool, parallel: bool, num_workers: int | None, gpus: str,
    mentor_gpus: str, intern_gpus: str,
) -> None:  # fmt: skip
    """Collect a split: the mentor's stream once, the intern's reading and answer at every level.

    Interrupt it whenever you like: the same command goes on where it stopped.
    """
    from ensemblehub.experiments.parallel import placements
    from ensemblehub.experiments.pipeline import Pipeline

    places = placements(num_workers or 0, gpus, mentor_gpus, intern_gpus) if parallel else []
    if not parallel and (num_workers or gpus or mentor_gpus or intern_gpus):
        raise click.UsageError("--num_workers and the GPU lists go with --parallel")
    data = Pipeline(config).collect(split, limit, force, places)
    click.echo(f"{len(data.rows)} questions in {config.experiment.results / 'collected'}")


@cli.command()
@experiment_option
@config_option
@click.option("--selection", is_flag=True, help="Train a `learned` selection instead: collect what it needs, then fit.")
@click.option("--limit", type=click.IntRange(min=1), help="With --selection: only the first N questions of each split.")
@click.option("--force", is_flag=True, help="With --selection: collect anew.")
def train(config: Config, selection: bool, limit: int | None, force: bool) -> None:
    """Train the sufficiency judge on the collected `train` split, or a selection."""
    if selection:
        from ensemblehub.experiments import selection as learning

        click.echo(json.dumps(learning.train(config, limit, force), indent=1))
        return
    if limit or force:
        raise click.UsageError("--limit and --force go with --selection; the judge learns from what was collected")
    from ensemblehub.experiments.pipeline import Pipeline

    click.echo(json.dumps(Pipeline(config).train(), indent=1))


@cli.command()
@config_option
@click.option("--input_path", "--input-path", type=click.Path(path_type=Path), required=True, help="Questions.")
@click.option(
    "--output_path", "--output-path", type=click.Path(path_type=Path), default="stats.json", show_default=True,
    help="Where the statistics go.",
)  # fmt: skip
@limit_option
def stats(config: Config, input_path: Path, output_path: Path, limit: int | None) -> None:
    """Measure every model's perplexity and confidence on questions, for the selection `zscore`."""
    from ensemblehub.experiments import stats as measuring

    found = measuring.measure(config, measuring.questions(input_path, limit), output_path)
    for name, one in found.items():
        spread = "{ppl_mean:.3f} ± {ppl_std:.3f}, confidence {conf_mean:.3f} ± {conf_std:.3f} ({n} questions)"
        click.echo(f"{name}: perplexity {spread.format(**one)}")
    click.echo(f"written to {output_path}: name it as `stats_file` of the selection")


@cli.command()
@experiment_option
@config_option
@click.option("--max-accuracy", is_flag=True, help="The most accurate thresholds.")
@click.option(
    "--budget", type=click.FloatRange(0, min_open=True), help="Most accurate within this share of the mentor's cost."
)
@click.option("--min-accuracy", type=click.FloatRange(0, 1), help="Cheapest thresholds with at least this accuracy.")
def calibrate(config: Config, max_accuracy: bool, budget: float | None, min_accuracy: float | None) -> None:
    """Choose one threshold per level on the collected `calibration` split (never on test data)."""
    from ensemblehub.experiments.pipeline import Pipeline

    given = {"budget": budget, "min-accuracy": min_accuracy}
    aims = ["max-accuracy"] if max_accuracy else []
    aims += [f"{name}:{value}" for name, value in given.items() if value is not None]
    if len(aims) > 1:
        raise click.UsageError("choose one of --max-accuracy, --budget and --min-accuracy")
    aim = aims[0] if aims else None
    click.echo(json.dumps(Pipeline(config).calibrate(aim), indent=1))


@cli.command()
@experiment_option
@config_option
@limit_option
@force_option
def evaluate(config: Config, limit: int | None, force: bool) -> None:
    """Run Tandem live on the test split; resumable like `collect`."""
    from ensemblehub.experiments.pipeline import Pipeline

    rides = Pipeline(config).evaluate(limit, force)
    right = sum(ride.correct for ride in rides)
    click.echo(f"{right} of {len(rides)} right ({right / len(rides):.2%}); `ensemblehub report` writes the table")


@cli.command()
@config_option
def report(config: Config) -> None:
    """Write the table, `summary.json`, the per-question file and the Pareto plot."""
    from ensemblehub.experiments.pipeline import Pipeline

    click.echo(Pipeline(config).report())


@cli.command()
@click.argument("file", metavar="[YAML]", required=False, type=click.Path(path_type=Path))
@click.option("--config", "-c", type=click.Path(path_type=Path), help="YAML file (default: the studio pair).")
@click.option("--set", "-s", "changes", multiple=True, metavar="KEY=VALUE", help="Change the file for this run.")
@click.option("--model_specs", multiple=True, metavar="PATH:ENGINE:DEVICE", help="A model; repeat for more.")
@click.option("--model_selection_method", metavar="NAME", help="Which models take part.")
@click.option("--output_aggregation_method", metavar="NAME", help="How their outputs become one.")
@click.option("--max_tokens", type=click.IntRange(min=1), help="Tokens of an answer at most.")
@click.option(
    "--input_path", type=click.Path(path_type=Path), required=True,
    help="JSON, JSONL or parquet, gzipped or not; `-` is standard input.",
)  # fmt: skip
@click.option(
    "--output_path", type=click.Path(path_type=Path), required=True,
    help="JSONL, one row per item; `-` is standard output, where nothing is resumed.",
)  # fmt: skip
@click.option("--batch_size", type=click.IntRange(min=1), default=4, show_default=True, help="Items at the same time.")
@click.option("--max_examples", type=click.IntRange(min=1), help="Only the first N items.")
@click.option("--show_attribution", is_flag=True, help="Write which model wrote what.")
@click.option("--resume", is_flag=True, help="Go on where the last run stopped; this is always so.")
@click.option("--force", is_flag=True, help="Start anew, even over answers of another configuration.")
def infer(
    file: Path | None, config: Path | None, changes: tuple[str, ...], model_specs: tuple[str, ...],
    model_selection_method: str | None, output_aggregation_method: str | None, max_tokens: int | None,
    input_path: Path, output_path: Path, batch_size: int, max_examples: int | None, show_attribution: bool,
    resume: bool, force: bool,
) -> None:  # fmt: skip
    """Answer every item of a file; also `python -m ensemblehub.inference`.

    Interrupt or kill it whenever you like: the same command goes on where it stopped, and tries failed items
    again.  Exit status: 0 all answered, 1 some failed, 2 nothing could be done, 130 interrupted.
    """
    from ensemblehub import inference, output

    if file and config:
        raise click.UsageError(f"two configurations: {file} and --config {config}")
    if resume and force:
        raise click.UsageError("--resume goes on and --force starts anew: choose one")
    if str(input_path) == "-":
        input_path = Path("/dev/stdin")
    if str(output_path) == "-":
        output_path = Path("/dev/stdout")
    setup = inference.configured(
        config or file, changes, model_specs, model_selection_method, output_aggregation_method, max_tokens
    )
    tally = inference.infer(setup, input_path, output_path, batch_size, max_examples, show_attribution, force)
    click.echo(tally.summary(output_path), err=output.is_stream(output_path))
    if tally.stopped_by:
        click.echo("ensemblehub: interrupted; the same command goes on with the rest", err=True)
    sys.exit(tally.exit_code)


@cli.command()
@click.argument("file", metavar="[YAML]", required=False, type=click.Path(path_type=Path))
@click.option("--config", "-c", type=click.Path(path_type=Path), help="YAML file (default: the studio pair).")
@click.option("--set", "-s", "changes", multiple=True, metavar="KEY=VALUE", help="Change the file for this run.")
@click.option("--host", envvar="API_HOST", help="Address to listen on (default: server.host, 127.0.0.1).")
@click.option(
    "--port", envvar="API_PORT", type=click.IntRange(0, 65535), help="Port (default: server.port, 8000); 0: any."
)
@click.option("--api_key", multiple=True, metavar="KEY", help="A key that clients must send; repeat for more.")
@click.option("--api_key_file", type=click.Path(path_type=Path), help="Keys, one a line.")
@click.option("--log_format", type=click.Choice(["text", "json"]), help="Lines, or one JSON object a line.")
def serve(
    file: Path | None, config: Path | None, changes: tuple[str, ...], host: str | None, port: int | None,
    api_key: tuple[str, ...], api_key_file: Path | None, log_format: str | None,
) -> None:  # fmt: skip
    """Serve the ensembles of a file: an OpenAI-compatible API, and a page that shows the ride.

    \b
    Also `python -m ensemblehub.api YAML`.  Then:
      http://127.0.0.1:8000/       the page
      base_url="http://127.0.0.1:8000/v1", model="ensemble"     for OpenAI clients
      /docs, /health, /metrics

    Without an API key (--api-key, --api-key-file or the environment's ENSEMBLEHUB_API_KEY) only loopback is
    served.  Ctrl-C or SIGTERM lets answers in flight end.
    """
    from ensemblehub.api import serving

    if file and config:
        raise click.UsageError(f"two configurations: {file} and --config {config}")
    setup = Config.read(config or file or studio.CONFIG, changes)
    given = {"host": host, "port": port, "log_format": log_format}
    server = setup.server.model_copy(update={key: value for key, value in given.items() if value is not None})
    try:
        serving.serve(setup.model_copy(update={"server": server}), serving.keys_of(server, api_key, api_key_file))
    except KeyboardInterrupt:
        click.echo("\nensemblehub: stopped before it was ready", err=True)
        sys.exit(130)


@cli.group(cls=Commands)
def data() -> None:
    """Benchmarks as data files."""


@data.command()
@click.argument("name")
@click.option(
    "--from", "source", type=click.Path(path_type=Path), help="A file in the public format, instead of the hub."
)
@click.option("--to", type=click.Path(path_type=Path), default=Path("data"), show_default=True, help="Data folder.")
@click.option("--split", help="Only this split; with --from, the one that FILE is.")
def fetch(name: str, source: Path | None, to: Path, split: str | None) -> None:
    """Write the files of benchmark NAME: math, math500, gsm8k, aime24, amc23, humaneval(_plus) or mbpp(_plus)."""
    from ensemblehub import data as benchmarks

    files, benchmark = benchmarks.fetch(name, source, to, split), benchmarks.named(name)
    for file, count in files.items():
        click.echo(f"{file}: {count} items")
    whole, count = benchmark.sizes[split or benchmark.splits[-1]], sum(files.values())
    if source and count != whole:
        click.echo(f"note: {benchmark.title} has {whole} items, {source} {count}", err=True)


@cli.command()
@config_option
@click.option("--judge", "kinds", multiple=True, metavar="KIND", help="Only this kind; repeat for more (default: all).")
def classifiers(config: Config, kinds: tuple[str, ...]) -> None:
    """Train and measure every kind of judge on what was collected.

    Writes classifiers.md, .json and .svg: AUC, F1, Brier, calibration, failure types, importance, by difficulty.
    The sequence judges take minutes each.
    """
    from ensemblehub.experiments import classifiers as comparing
    from ensemblehub.experiments.pipeline import Pipeline

    click.echo(comparing.run(Pipeline(config), kinds, lambda line: click.echo(line, err=True)))


@cli.command()
@click.argument("table", metavar="TABLE")
@click.option(
    "--pair",
    envvar="PAIR",
    default="studio",
    show_default=True,
    help="A pair by name (studio, deepseek, gpt-4o, qwen3, qwen3-deepseek), or a YAML file that runs Tandem.",
)
@click.option(
    "--dataset", default="math500", show_default=True, help="Benchmark; a studio pair has its own of each kind."
)
@click.option("--data", type=click.Path(path_type=Path), help="Its file or folder, where it is not in data/.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("data/acte_experiments/results"),
    show_default=True,
    help="Folder of results; what is there is not made twice.",
)
@click.option("--judge", help="A judge to use as it is: a folder, or a rule such as entropy:1.0 (default: train one).")
@click.option(
    "--max_tokens",
    multiple=True,
    type=click.IntRange(min=1),
    help="Of an answer; repeat it for a run with each (default: the pair's own).",
)
@click.option("--set", "-s", "changes", multiple=True, metavar="KEY=VALUE", help="Change the pair's file for this run.")
@limit_option
@force_option
def paper(
    table: str, pair: str, dataset: str, data: Path | None, out: Path, judge: str | None, max_tokens: tuple[int, ...],
    changes: tuple[str, ...], limit: int | None, force: bool,
) -> None:  # fmt: skip
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

    Whatever a table needs is collected first, and kept: interrupt it whenever you like, the same command goes on.
    Scripts with the reference's names and defaults are in scripts/mentor_guided/.
    """
    from ensemblehub.experiments import paper as tables
    from ensemblehub.experiments.paper.study import Study

    study = Study(pair, dataset, out, data, judge, limit, None, changes, force)
    for tokens in max_tokens or (None,):
        for made in tables.run(table, study.of(max_tokens=tokens)):
            click.echo(made)


@cli.command("export-gguf")
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--kind", type=click.Choice(["f32", "f16", "bf16", "q8_0"]), default="f32", show_default=True,
    help="Precision of the matrices.",
)  # fmt: skip
def export_gguf(model: str, folder: Path, kind: Any) -> None:
    """Write MODEL, a Hugging Face folder or `studio:NAME`, as GGUF into FOLDER, with its tokenizer beside it.

    The engine `llama_cpp` runs what is written: name FOLDER/model.gguf as its `path`.
    """
    from ensemblehub.generators.gguf_export import export

    click.echo(f"written to {export(studio.resolve(model), folder, kind)}: name it as `path` of the engine llama_cpp")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors are one line and exit status 2 (1 for failures while working), without a traceback."""
    try:
        cli.main(arguments, standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        click.echo(f"ensemblehub: {' '.join(error.format_message().split())}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nensemblehub: interrupted; finished questions are kept, the same command goes on", err=True)
        sys.exit(130)
    except EnsembleHubError as error:
        click.echo(f"ensemblehub: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
