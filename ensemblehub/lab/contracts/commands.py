"""`ensemblehub init` and `ensemblehub validate`: code outside the package."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ensemblehub.lab.contracts.scaffold import KINDS
from ensemblehub.options import FILE


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@click.option(
    "--folder", type=FILE, default=Path(), show_default="the current one", help="Where the files go."
)
def init(kind: str, name: str, folder: Path) -> None:
    """Write a working strategy, engine or task NAME, its test and a configuration that uses it.

    The class is named `NAME:Class` in YAML, and no line in this package is needed.

    \b
    ensemblehub init strategy longest
    ensemblehub validate longest:Longest
    ensemblehub ask -c longest.yaml "There are 8 bowls. ..."
    """
    from ensemblehub.lab.contracts.scaffold import class_name, scaffold

    for path in scaffold(kind, name, folder):
        click.echo(f"written: {path}")
    click.echo(f"now: ensemblehub validate {name}:{class_name(name)}")


@click.command()
@click.argument("target", metavar="PACKAGE.MODULE:CLASS")
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="An option of the class, as in YAML."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def validate(target: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Run the contract's checks on an engine, selection, aggregation or task outside the package.

    Strategies run on scripted engines, or on the built-in pair where they need token distributions. Exit
    status: 0 if every check passes, 1 if not.

    \b
    ensemblehub validate my_package.my_module:Longest --set samples=2
    ensemblehub validate ensemblehub.generators.hf.engine:HFEngine --set path=builtin:mentor
    """
    import yaml

    from ensemblehub.lab.contracts.validation import validate as run

    pairs = (change.partition("=") for change in changes)
    outcomes = run(target, {key: yaml.safe_load(value) for key, _, value in pairs})
    if as_json:
        rows = [
            {"check": row.check.name, "title": row.check.title, "problem": row.problem} for row in outcomes
        ]
        click.echo(json.dumps({"target": target, "checks": rows}))
    else:
        for row in outcomes:
            click.echo(f"{'ok    ' if row.passed else 'FAILED'} {row.check.title}")
            if not row.passed:
                click.echo(f"       {row.problem}")
    failed = sum(not row.passed for row in outcomes)
    if not as_json:
        click.echo(f"{len(outcomes) - failed} of {len(outcomes)} checks passed")
    sys.exit(1 if failed else 0)
