"""Options and arguments that several commands of the command line share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from ensemblehub import builtin
from ensemblehub.errors import did_you_mean

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)


class FiniteRange(click.FloatRange):
    """A finite number in a range; click compares NaN with the bounds, which it passes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Commands(click.Group):
    """A group that suggests the nearest command for a mistyped one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(did_you_mean(args[0], self.list_commands(ctx), "command"), ctx)
        return super().resolve_command(ctx, args)


def config_file_option(positional: bool = False) -> Callable[[CommandT], CommandT]:
    """Add `--config FILE`, `--pair NAME` and `--set KEY=VALUE`.

    The command gets `path` (None where omitted) and `changes`.

    Args:
        positional: The file may also be given as an argument.
    """

    def decorate(command: CommandT) -> CommandT:
        @functools.wraps(command)
        def given(
            config: Path | None,
            pair: str | None,
            changes: tuple[str, ...],
            file: Path | None = None,
            **rest: Any,
        ) -> Any:
            known = [path for path in (file, config, builtin.pair(pair) if pair else None) if path]
            if len(known) > 1:
                raise click.UsageError(f"two configurations: {known[0]} and {known[1]}")
            return command(path=known[0] if known else None, changes=changes, **rest)

        parameters = (
            [click.argument("file", metavar="[YAML]", required=False, type=FILE)] if positional else []
        )
        parameters += [
            click.option(
                "--config", "-c", type=FILE, help="YAML file (default: Tandem on the built-in models)."
            ),
            click.option(
                "--pair", metavar="NAME", help=f"A known pair of models instead: {', '.join(builtin.PAIRS)}."
            ),
            click.option(
                "--set",
                "-s",
                "changes",
                multiple=True,
                metavar="KEY=VALUE",
                help="Change a value of the file for this run, e.g. -s ensemble.generation.max_tokens=64; "
                "repeatable.",
            ),
        ]
        for parameter in reversed(parameters):
            given = parameter(given)
        return cast(CommandT, given)

    return decorate


def config_option(command: CommandT) -> CommandT:
    """Add the options of `config_file_option`; the command gets the `Config` that they describe."""

    @functools.wraps(command)
    def configured(path: Path | None, changes: tuple[str, ...], **options: Any) -> Any:
        from ensemblehub.config import Config

        return command(config=Config.read(path or builtin.CONFIG, changes), **options)

    return config_file_option()(cast(CommandT, configured))


limit_option = click.option("--limit", type=click.IntRange(min=1), help="Only the first N questions.")
force_option = click.option(
    "--force", is_flag=True, help="Start over; existing data is replaced, whatever settings it was made with."
)
