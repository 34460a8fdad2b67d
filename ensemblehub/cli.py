"""The command line: `ensemblehub demo | ask | infer | serve | collect | train | calibrate | evaluate | report | ...`.

Knows how to read flags and how to show a ride in a terminal; the work is done elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from ensemblehub import __version__, builtin
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
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": dashed,
    },
)
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

    Every command takes --config FILE; without it, the Tandem of the built-in pair is used.  --set KEY=VALUE changes
    a line of that file for one run.
    """


def config_option(command: CommandT) -> CommandT:
    """`--config FILE` and `--set KEY=VALUE`, read and checked; the command gets a `Config`."""

    @functools.wraps(command)
    def configured(config: Path | None, changes: tuple[str, ...], **options: Any) -> Any:
        return command(config=Config.read(config or builtin.CONFIG, changes), **options)

    file = click.option(
        "--config", "-c", type=click.Path(path_type=Path), help="YAML file (default: the built-in pair)."
    )
    change = click.option(
        "--set",
        "-s",
        "changes",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change the file for this run, as in -s experiment.task=builtin_code; may be repeated.",
    )
    return cast(CommandT, file(change(configured)))


limit_option = click.option("--limit", type=click.IntRange(min=1), help="Only the first N questions.")
force_option = click.option(
    "--force", is_flag=True, help="Start anew, even over data made with other settings."
)


@cli.command()
@click.argument("question")
@config_option
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object: answer, insight, verdicts, bill."
)
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
@click.option(
    "--config", "-c", type=click.Path(path_type=Path), help="YAML file (default: the built-in pair)."
)
@click.option(
    "--set", "-s", "changes", multiple=True, metavar="KEY=VALUE", help="Change the file for this run."
)
@click.option(
    "--probe", is_flag=True, help="Ask models behind APIs what they can do: about 15 short requests each."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(
    file: Path | None, config: Path | None, changes: tuple[str, ...], probe: bool, as_json: bool
) -> None:
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
    report = examining.examine(config or file or builtin.CONFIG, changes, probe)
    if as_json:
        click.echo(json.dumps(report.record(), ensure_ascii=False, default=str))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        examining.show(report, console if console.is_terminal else Console(highlight=False, width=160))
    sys.exit(0 if report.ok else 2)


@cli.command()
@click.argument("file", metavar="[YAML]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--config", "-c", type=click.Path(path_type=Path), help="YAML file (default: the built-in pair)."
)
@click.option(
    "--set", "-s", "changes", multiple=True, metavar="KEY=VALUE", help="Change the file for this run."
)
@click.option("--model_specs", multiple=True, metavar="PATH:ENGINE:DEVICE", help="A model; repeat for more.")
@click.option("--model_selection_method", metavar="NAME", help="Which models take part.")
@click.option("--output_aggregation_method", metavar="NAME", help="How their outputs become one.")
@click.option("--max_tokens", type=click.IntRange(min=1), help="Tokens of an answer at most.")
@click.option(
    "--input_path",
    type=click.Path(path_type=Path),
    required=True,
    help="JSON, JSONL or parquet, gzipped or not; `-` is standard input.",
)
@click.option(
    "--output_path",
    type=click.Path(path_type=Path),
    required=True,
    help="JSONL, one row per item; `-` is standard output, where nothing is resumed.",
)
@click.option(
    "--batch_size", type=click.IntRange(min=1), default=4, show_default=True, help="Items at the same time."
)
@click.option("--max_examples", type=click.IntRange(min=1), help="Only the first N items.")
@click.option("--show_attribution", is_flag=True, help="Write which model wrote what.")
@click.option("--resume", is_flag=True, help="Go on where the last run stopped; this is always so.")
@click.option("--force", is_flag=True, help="Start anew, even over answers of another configuration.")
def infer(
    file: Path | None,
    config: Path | None,
    changes: tuple[str, ...],
    model_specs: tuple[str, ...],
    model_selection_method: str | None,
    output_aggregation_method: str | None,
    max_tokens: int | None,
    input_path: Path,
    output_path: Path,
    batch_size: int,
    max_examples: int | None,
    show_attribution: bool,
    resume: bool,
    force: bool,
) -> None:
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
@click.option(
    "--config", "-c", type=click.Path(path_type=Path), help="YAML file (default: the built-in pair)."
)
@click.option(
    "--set", "-s", "changes", multiple=True, metavar="KEY=VALUE", help="Change the file for this run."
)
@click.option("--host", envvar="API_HOST", help="Address to listen on (default: server.host, 127.0.0.1).")
@click.option(
    "--port",
    envvar="API_PORT",
    type=click.IntRange(0, 65535),
    help="Port (default: server.port, 8000); 0: any.",
)
@click.option(
    "--api_key", multiple=True, metavar="KEY", help="A key that clients must send; repeat for more."
)
@click.option("--api_key_file", type=click.Path(path_type=Path), help="Keys, one a line.")
@click.option("--log_format", type=click.Choice(["text", "json"]), help="Lines, or one JSON object a line.")
def serve(
    file: Path | None,
    config: Path | None,
    changes: tuple[str, ...],
    host: str | None,
    port: int | None,
    api_key: tuple[str, ...],
    api_key_file: Path | None,
    log_format: str | None,
) -> None:
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
    setup = Config.read(config or file or builtin.CONFIG, changes)
    given = {"host": host, "port": port, "log_format": log_format}
    server = setup.server.model_copy(update={key: value for key, value in given.items() if value is not None})
    try:
        serving.serve(
            setup.model_copy(update={"server": server}), serving.keys_of(server, api_key, api_key_file)
        )
    except KeyboardInterrupt:
        click.echo("\nensemblehub: stopped before it was ready", err=True)
        sys.exit(130)


@cli.command("export-gguf")
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
    default="f32",
    show_default=True,
    help="Precision of the matrices.",
)
def export_gguf(model: str, folder: Path, kind: Any) -> None:
    """Write MODEL, a Hugging Face folder or `builtin:NAME`, as GGUF into FOLDER, with its tokenizer beside it.

    The engine `llama_cpp` runs what is written: name FOLDER/model.gguf as its `path`.
    """
    from ensemblehub.generators.llama_cpp.gguf_export import export

    click.echo(
        f"written to {export(builtin.resolve(model), folder, kind)}: name it as `path` of the engine llama_cpp"
    )


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors are one line and exit status 2 (1 for failures while working), without a traceback."""
    try:
        for plugin in entry_points(group="ensemblehub.commands"):
            plugin.load()(cli)
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
        click.echo(
            "\nensemblehub: interrupted; finished questions are kept, the same command goes on", err=True
        )
        sys.exit(130)
    except EnsembleHubError as error:
        click.echo(f"ensemblehub: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
