"""The options of a certificate: `--max-loss`, `--confidence` and `--loss`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import click

from ensemblehub.options import CommandT, FiniteRange

if TYPE_CHECKING:
    from ensemblehub.lab.pipeline.certificate import Loss

SHARE = FiniteRange(0, 1, min_open=True, max_open=True)


def promise_options(text: str, required: bool = False) -> Callable[[CommandT], CommandT]:
    """Add the options; the command gets the `Promise` that they describe as `promise`.

    Args:
        text: help of `--max-loss`.
        required: whether `--max-loss` must be given; else `promise` is None without it.
    """

    def decorate(command: CommandT) -> CommandT:
        @functools.wraps(command)
        def promised(max_loss: float | None, confidence: float | None, loss: Loss | None, **rest: Any) -> Any:
            from ensemblehub.lab.pipeline.certificate import Promise

            options: dict[str, Any] = {"confidence": confidence, "loss": loss}
            given = {name: value for name, value in options.items() if value is not None}
            if max_loss is None and given:
                raise click.UsageError(f"give --max-loss with {' and '.join(f'--{name}' for name in given)}")
            return command(promise=None if max_loss is None else Promise(max_loss, **given), **rest)

        limit = click.option("--max-loss", type=SHARE, required=required, help=text)
        certain = click.option(
            "--confidence",
            type=SHARE,
            help="With --max-loss: the probability with which that holds (default: 0.95).",
        )
        counted = click.option(
            "--loss",
            type=click.Choice(["lost-correct", "net"]),
            help="With --max-loss: what is lost: questions that the mentor has right and the answer wrong, or these "
            "less those that only the answer has right (default: lost-correct).",
        )
        return cast(CommandT, limit(certain(counted(promised))))

    return decorate
