"""The command line: `ensemblehub ask`, `infer`, `serve`, `doctor`, `export-gguf`, and commands of plugins.

Commands parse arguments and print. Each imports the module that does its work when it runs, so that `--help`
loads none of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemblehub import __version__, builtin
from ensemblehub.errors import EnsembleHubError
from ensemblehub.options import FILE, Commands, FiniteRange, config_file_option, config_option
from ensemblehub.ray_cluster import Cluster, ray_options
from ensemblehub.shards import Shard, shard_option

if TYPE_CHECKING:
    from ensemblehub.config import Config

INTERRUPTED = 130  # exit status of a program stopped by SIGINT


def dashed(name: str) -> str:
    """Return the name with `-` for `_`: both spellings of a flag are accepted."""
    return name.replace("_", "-")


@click.group(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": dashed,
    },
)
@click.version_option(__version__, prog_name="ensemblehub")
def cli() -> None:
    """Let language models share the work of an answer: Tandem and other ensembles.

    \b
    See Tandem on the built-in models:      ensemblehub demo
    Ask a question of your own:             ensemblehub ask "There are 3 mugs. ..."
    Answer a file of questions:             ensemblehub infer --input_path FILE --output_path FILE
    Fetch and try public models:            ensemblehub pull qwen-coder; ensemblehub demo --pair qwen-coder
    Serve an OpenAI-compatible API:         ensemblehub serve [YAML]
    Serve tools to assistants (MCP):        ensemblehub mcp [YAML]
    Check a configuration:                  ensemblehub doctor [YAML]
    Write a strategy of your own:           ensemblehub init strategy NAME   (then validate)
    Measure anything on a benchmark:        ensemblehub bench CONFIG... --task NAME   (then compare, board)
    Train and measure a Tandem:             ensemblehub collect --split train   (then calibration, test)
                                            ensemblehub train; ensemblehub calibrate
                                            ensemblehub evaluate; ensemblehub report

    A YAML file names the models and the methods that combine them; examples/ has a file for every method.
    Without a file, commands run Tandem on the built-in models. --set KEY=VALUE changes a value for one run.
    """


@cli.command()
@click.argument("question")
@config_option
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object: answer, insight, verdicts, usage."
)
def ask(question: str, config: Config, as_json: bool) -> None:
    """Answer QUESTION; show which model wrote what, and the cost.

    `-` reads the question from standard input.
    """
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
@config_file_option(positional=True)
@click.option(
    "--probe", is_flag=True, help="Test the abilities of models behind APIs: about 15 short requests each."
)
@click.option("--gpu-memory", type=FiniteRange(min=0, min_open=True), help="Plan for GPUs of so many GiB.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(
    path: Path | None, changes: tuple[str, ...], probe: bool, gpu_memory: float | None, as_json: bool
) -> None:
    """Check a configuration: models, memory, methods, problems.

    The memory plan says, for each device, what every model takes, whether all fit together, and which options
    to set: `gpu_memory_utilization`, `max_model_len`, `batch_rows`, or `swap: true`.

    Loads no weights; needs neither API keys nor a network. Exit status: 0 if the file can run here, 2 if not.

    --probe sends short requests, some hundred tokens in all, to every model behind an API. It reports whether
    the API can be reached, accepts the key, streams, reports usage, returns logprobs, continues an answer,
    scores prompts, calls tools and keeps to an output format, and recommends options. An ability that the
    options require and the probe does not observe is a problem.
    """
    from rich.console import Console

    from ensemblehub import doctor, doctor_report

    doctor.offline()
    report = doctor.examine(path or builtin.CONFIG, changes, probe, gpu_memory)
    if as_json:
        click.echo(json.dumps(report.record(), ensure_ascii=False, default=str))
    else:
        console = Console(highlight=False)
        doctor_report.show(report, console if console.is_terminal else Console(highlight=False, width=160))
    sys.exit(0 if report.ok else 2)


@cli.command()
@config_file_option(positional=True)
@click.option(
    "--model_specs",
    "models",
    multiple=True,
    metavar="PATH:ENGINE:DEVICE",
    help="A model, instead of those of the file; ENGINE and DEVICE are optional; repeatable.",
)
@click.option(
    "--model_selection_method", "selection", metavar="NAME", help="How models are selected: all, zscore, ..."
)
@click.option(
    "--output_aggregation_method",
    "aggregation",
    metavar="NAME",
    help="How outputs are combined: tandem, vote, ...",
)
@click.option("--max_tokens", type=click.IntRange(min=1), help="Maximum number of tokens of an answer.")
@click.option(
    "--input_path",
    type=FILE,
    required=True,
    help="Questions: JSON, JSONL or parquet, optionally gzipped; `-` is standard input.",
)
@click.option(
    "--output_path",
    type=FILE,
    required=True,
    help="Answers: JSONL, one row per item; `-` is standard output, which cannot be resumed.",
)
@click.option(
    "--batch_size",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Items answered concurrently, by each worker of --ray.",
)
@click.option("--max_examples", type=click.IntRange(min=1), help="Only the first N items.")
@click.option("--show_attribution", is_flag=True, help="Record in each row which model wrote which part.")
@shard_option
@ray_options("Answer on a pool of Ray Data")
@click.option("--resume", is_flag=True, help="Continue where the last run stopped (the default).")
@click.option("--force", is_flag=True, help="Start over; answers of another configuration are replaced.")
def infer(
    path: Path | None,
    changes: tuple[str, ...],
    input_path: Path,
    output_path: Path,
    batch_size: int,
    max_examples: int | None,
    show_attribution: bool,
    shard: Shard | None,
    cluster: Cluster | None,
    resume: bool,
    force: bool,
    **flags: Any,
) -> None:
    """Answer every item of a file.

    The command can be interrupted or killed at any time; the same command continues where it stopped and
    retries failed items.

    Exit status: 0 all answered, 1 some failed, 2 nothing could be done, 130 interrupted.

    Also `python -m ensemblehub.inference`.
    """
    from ensemblehub import inference, output
    from ensemblehub.config.flags import configured

    if resume and force:
        raise click.UsageError("--resume continues and --force starts over: choose one")
    if str(input_path) == "-":
        input_path = Path("/dev/stdin")
    if str(output_path) == "-":
        output_path = Path("/dev/stdout")
    if shard and output.is_stream(output_path):
        raise click.UsageError("--shard writes beside a file; name one with --output_path")
    config = configured(path, changes, **flags)
    progress = inference.infer(
        config,
        input_path,
        output_path,
        batch_size,
        max_examples,
        show_attribution,
        force,
        shard=shard,
        cluster=cluster,
    )
    output_path = shard.beside(output_path) if shard else output_path
    click.echo(progress.summary(output_path), err=output.is_stream(output_path))
    if progress.stopped_by:
        click.echo("ensemblehub: interrupted; the same command answers the rest", err=True)
    sys.exit(progress.exit_code)


@cli.command()
@config_file_option(positional=True)
@click.option("--host", envvar="API_HOST", help="Address to listen on (default: server.host, 127.0.0.1).")
@click.option(
    "--port",
    envvar="API_PORT",
    type=click.IntRange(0, 65535),
    help="Port (default: server.port, 8000); 0 picks a free port.",
)
@click.option("--api_key", multiple=True, metavar="KEY", help="A key that clients must send; repeatable.")
@click.option("--api_key_file", type=FILE, help="A file with one key per line.")
@click.option(
    "--log_format", type=click.Choice(["text", "json"]), help="Log as text, or one JSON object per line."
)
@click.option(
    "--board",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder of results of `bench` for the page's Board tab; repeatable.",
)
@ray_options("Serve as replicas of Ray Serve", pool=False)
def serve(
    path: Path | None,
    changes: tuple[str, ...],
    cluster: Cluster | None,
    api_key: tuple[str, ...],
    api_key_file: Path | None,
    board: tuple[Path, ...],
    **server_options: Any,
) -> None:
    """Serve an OpenAI-compatible API and a web page.

    \b
    http://127.0.0.1:8000/              the page
    http://127.0.0.1:8000/v1            the base URL for OpenAI clients; model "ensemble"
    /docs, /health, /status, /metrics   documentation and monitoring

    Without an API key (--api-key, --api-key-file or the environment variable ENSEMBLEHUB_API_KEY), only
    loopback addresses are served. Ctrl-C and SIGTERM let running answers end. --ray: see docs/scale.md.

    Also `python -m ensemblehub.api YAML`.
    """
    from ensemblehub.config import Config

    config = Config.read(path or builtin.CONFIG, changes)
    from ensemblehub.api import serving  # takes half a second, which an error in the file need not wait for

    given = {key: value for key, value in server_options.items() if value is not None}
    if board:
        given["board"] = list(board)
    server = config.server.model_copy(update=given)
    config = config.model_copy(update={"server": server})
    keys = serving.keys_of(server, api_key, api_key_file)
    try:
        if cluster:
            from ensemblehub.api import ray_serve

            ray_serve.serve(config, keys, cluster)
        else:
            serving.serve(config, keys)
    except KeyboardInterrupt:
        click.echo("\nensemblehub: stopped before it was ready", err=True)
        sys.exit(INTERRUPTED)


@cli.command()
@config_file_option(positional=True)
@click.option(
    "--http",
    "port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Streamable HTTP on a port of loopback.",
)
def mcp(path: Path | None, changes: tuple[str, ...], port: int | None) -> None:
    """Serve the tools ask, compare_models and explain to assistants, by the Model Context Protocol.

    \b
    Standard input and output, as assistants start it:   ensemblehub mcp [YAML]
    http://127.0.0.1:PORT/mcp:                            ensemblehub mcp [YAML] --http PORT

    Needs `pip install 'ensemblehub[mcp]'`.
    """
    from ensemblehub.config import Config

    config = Config.read(path or builtin.CONFIG, changes)
    from ensemblehub import mcp_server

    mcp_server.serve(config, port)


@cli.command()
@click.argument("pair")
@click.option(
    "--from", "source", type=FILE, metavar="FOLDER", help="Take files that are in FOLDER/NAME/model.gguf."
)
def pull(pair: str, source: Path | None) -> None:
    """Fetch the models of PAIR, a known pair or a YAML file, from the hub; an interrupted download goes on.

    With --from FOLDER, GGUF files that are already there are linked into ~/.cache/ensemblehub/models; where
    the environment's PAIR_FOLDER names such a folder, its files are used where they lie.

    \b
    ensemblehub pull qwen-coder
    ensemblehub demo --pair qwen-coder
    """
    from ensemblehub.config import Config
    from ensemblehub.generators import hub

    config = Config.read(
        builtin.PAIRS.get(pair) or (Path(pair) if Path(pair).is_file() else builtin.pair(pair))
    )
    for spec in config.model_specs:
        if found := hub.pull(spec.engine, str(spec.options.get("path", "")), source):
            click.echo(f"{spec.name}: {found}")
        else:
            click.echo(f"{spec.name}: nothing to fetch for the engine {spec.engine}")


@cli.command("export-gguf")
@click.argument("model")
@click.argument("folder", type=FILE)
@click.option(
    "--kind",
    type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
    default="f32",
    show_default=True,
    help="Precision of the matrices.",
)
def export_gguf(model: str, folder: Path, kind: Any) -> None:
    """Convert a model to GGUF for the engine `llama_cpp`.

    MODEL is a Hugging Face folder or `builtin:NAME`. Writes FOLDER/model.gguf, the `path` to name in the
    configuration, and the tokenizer beside it.
    """
    from ensemblehub.generators.llama_cpp.gguf_export import export

    written = export(builtin.resolve(model), folder, kind)
    click.echo(f"written to {written}: name it as `path` of the engine llama_cpp")


def add_plugins() -> None:
    """Register the commands of installed packages (entry point group `ensemblehub.commands`)."""
    for plugin in entry_points(group="ensemblehub.commands"):
        plugin.load()(cli)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error and exit status 2, without a traceback."""
    try:
        add_plugins()
        cli.main(arguments, standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except (click.Abort, KeyboardInterrupt):
        click.echo(
            "\nensemblehub: interrupted; finished questions are kept, the same command continues", err=True
        )
        sys.exit(INTERRUPTED)
    except (click.ClickException, EnsembleHubError) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"ensemblehub: {' '.join(text.split())}", err=True)
        sys.exit(2)
