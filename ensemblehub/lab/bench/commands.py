"""`ensemblehub bench | compare | board`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import click

from ensemblehub.lab.tasks import TASKS
from ensemblehub.options import force_option, limit_option
from ensemblehub.ray_cluster import Cluster, ray_options
from ensemblehub.shards import Shard, shard_option

changes_option = click.option(
    "--set",
    "-s",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of every CONFIG, as in -s ensemble.generation.max_tokens=1024; repeatable.",
)


class _Pilot(click.IntRange):
    """A number of questions, which may be left out where no configuration follows."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).isdecimal():
            self.fail(f"{value!r} is no number of questions; name the configurations before it", param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@click.argument("configs", metavar="CONFIG...", nargs=-1, required=True)
@click.option("--task", required=True, metavar="NAME", help=f"The benchmark: {', '.join(TASKS)}.")
@click.option("--split", default="test", show_default=True, help="docs/tasks.md says how each is divided.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Its questions: a file or folder in the public form, instead of data/ or the hub.",
)
@click.option(
    "--prompt",
    metavar="PROFILE",
    help="Prompt profile: plain (default), or to compare with published scores official, evalplus, "
    "reference or, on GSM8K, few_shot.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Answers to every question; more than one needs a temperature above 0.",
)
@click.option("--seed", type=int, help="Seed of every answer (default: ensemble.generation.seed).")
@changes_option
@click.option(
    "--errors",
    type=click.Choice(["stop", "wrong"]),
    default="stop",
    show_default=True,
    help="Handling of failed answers: stop the run, or count them as wrong.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the results (default: results/bench/TASK)."
)
@click.option(
    "--dry-run",
    "pilot",
    is_flag=False,
    flag_value=10,
    type=_Pilot(min=2),
    metavar="[N]",
    help="Answer N questions (10) only, and tell what all would take: tokens, FLOPs, dollars and time.",
)
@click.option(
    "--reuse",
    is_flag=True,
    help="Make a call that several CONFIGs make alike once: the same model, prompt and sampling, greedy or with "
    "a seed. Each is billed for it as if it had made it; kept in OUT/calls.sqlite.",
)
@shard_option
@ray_options("Answer on a pool of Ray Data")
@limit_option
@force_option
def bench(
    configs: tuple[str, ...],
    task: str,
    split: str,
    data: Path | None,
    prompt: str | None,
    samples: int,
    seed: int | None,
    changes: tuple[str, ...],
    errors: str,
    out: Path | None,
    pilot: int | None,
    reuse: bool,
    shard: Shard | None,
    cluster: Cluster | None,
    limit: int | None,
    force: bool,
) -> None:
    """Measure every CONFIG on the same questions of a benchmark: accuracy and cost.

    \b
    CONFIG is one of
      FILE.yaml                   a configuration; with `sweep:` in it, several
      builtin:mentor, FOLDER,     a model alone
        MODEL.gguf, HUB/ID
      http://HOST:8000/v1,        a running server, or one of its models
        MODEL:http://HOST:8000/v1

    \b
    Into the folder go
      answers/NAME.jsonl          every answer: text, grade, tokens, cost, verdicts
      summary.json, table.md      the figures, with 95 % intervals
      accuracy_cost.svg           the plot

    The command can be interrupted or killed at any time; the same command continues where it stopped. More
    questions (--limit), samples and CONFIGs extend existing results. `ensemblehub compare` and `ensemblehub
    board` read the folder.
    """
    from ensemblehub.lab.bench import run
    from ensemblehub.lab.bench.cells import cells_of

    questions = run.questions_of(task, split, data, prompt, limit, samples, shard)
    seeded = [] if seed is None else [f"ensemble.generation.seed={seed}"]
    cells = cells_of(configs, [*changes, *seeded])
    folder = out or Path("results/bench") / questions.task.name
    folder = shard.within(folder) if shard else folder
    if pilot and cluster:
        raise click.UsageError("--dry-run measures one process: leave out --ray")
    if reuse and (pilot or cluster):
        raise click.UsageError(
            "--reuse is for one process that answers all questions: leave out --dry-run and --ray"
        )
    if pilot:
        from ensemblehub.lab.bench.forecast import dry_run

        click.echo(dry_run(cells, questions, folder, pilot, force, cast(Any, errors)), nl=False)
        return
    click.echo(run.bench(cells, questions, folder, force, cast(Any, errors), cluster, reuse), nl=False)
    click.echo(f"\nwritten to {folder}", err=True)


@click.command()
@click.argument(
    "paths", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True)
)
@click.option(
    "--common",
    is_flag=True,
    help="Compare over the questions that both have answered; with --mixes, that all have.",
)
@click.option(
    "--brief", "is_brief", is_flag=True, help="Print one line per cell, with its costs as multiples."
)
@click.option(
    "--mixes",
    "mixed",
    is_flag=True,
    help="Also set every cell against the best random mix of the single models (and of Tandem's fixed levels) at "
    "its own cost, and add an oracle over them. Implies --brief.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every question gained and lost.")
def compare(paths: tuple[Path, ...], common: bool, is_brief: bool, mixed: bool, as_json: bool) -> None:
    """Compare results of `ensemblehub bench` question by question.

    DIR is a result folder, or one cell of it (DIR/answers/NAME.jsonl).  Every cell is compared to the first
    one; two folders that hold several cells of the same names are compared cell by cell.

    Prints the paired difference with its 95 % interval (bootstrap over questions), an exact McNemar test, and
    gains and losses: in all, by subject and by level.  Different questions or prompts are refused.
    """
    from ensemblehub.lab.bench.compare import against_mixes, brief, comparisons, text

    found = (against_mixes if mixed else comparisons)(paths, common)
    if as_json:
        click.echo(json.dumps([comparison.record() for comparison in found], ensure_ascii=False))
    else:
        click.echo(brief(found) if is_brief or mixed else "\n".join(map(text, found)), nl=False)


@click.command()
@click.argument(
    "folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True)
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("board.html"),
    show_default=True,
    help="The page.",
)
def board(folders: tuple[Path, ...], out: Path) -> None:
    """Write results of `ensemblehub bench` as one page: table, plot, and answers side by side.

    The page is a single file that any browser opens, without network.  It holds all questions and answers of
    the folders.
    """
    from ensemblehub.lab.bench import board as page

    size = page.write(folders, out)
    click.echo(f"{out}: {len(folders)} results, {size / 1e6:.1f} MB")


def register(cli: click.Group) -> None:
    """Add the commands to `ensemblehub`."""
    for command in (bench, compare, board):
        cli.add_command(command)
