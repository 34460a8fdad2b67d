"""The check of the option `--budget`."""

from __future__ import annotations

import click

from ensemblehub.errors import ConfigError


def checked_budget(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The value unchanged: a share of the mentor's cost, US dollars or compute (`Objective.parse`).

    Raises:
        BadParameter: it is none of these.
    """
    from ensemblehub.lab.pipeline.calibration import Objective

    try:
        if value is not None:
            Objective.parse(f"budget:{value}")
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error
    return value
