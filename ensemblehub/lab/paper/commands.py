"""`ensemblehub paper`."""

from __future__ import annotations

from pathlib import Path

import click

from ensemblehub.options import force_option, limit_option


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
    help="The benchmark; the built-in pairs replace it by a built-in one of the same kind.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="File or folder of the benchmark, where it is not in data/.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("data/acte_experiments/results"),
    show_default=True,
    help="Folder of results; existing results are reused.",
)
@click.option(
    "--judge", help="A trained judge (a folder) or a rule such as entropy:1.0 (default: train a judge)."
)
@click.option(
    "--max_tokens",
    multiple=True,
    type=click.IntRange(min=1),
    help="Maximum number of tokens of an answer; repeat for a run with each (default: the pair's own).",
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
    """Reproduce a table of the paper for a pair of models.

    The table shows the paper's own figures beside the measured ones.

    \b
    TABLE is one of:
      main       accuracy and cost of every method, by subject and by level (Table 1)
      transfer   a judge trained on math, applied to code unchanged (Table 5)
      api        a mentor behind an API (Table 4)
      guidance   accuracy by length of the insight (Figure 5)
      thinking   models with and without thinking (Table 7)
      latency    seconds per question, one at a time (Table 13)
      ablation   insights without Goal, Planning, Retrieval or Action
      families   mentors and interns of several families (Table 2)

    The data that a table needs is collected first, and kept. The command can be interrupted at any time; the
    same command continues where it stopped.

    Scripts with the reference's names and defaults are in scripts/mentor_guided/.
    """
    from ensemblehub.lab.paper import run
    from ensemblehub.lab.paper.study import Study

    study = Study(pair, dataset, out, data, judge, limit, None, changes, force)
    for tokens in max_tokens or (None,):
        for made in run(table, study.of(max_tokens=tokens)):
            click.echo(made)
