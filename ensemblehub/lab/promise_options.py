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
        def promised(max_loss: float | None, confidence: float, loss: Loss, **rest: Any) -> Any:
            from ensemblehub.lab.pipeline.certificate import Promise

            return command(promise=None if max_loss is None else Promise(max_loss, confidence, loss), **rest)

        limit = click.option("--max-loss", type=SHARE, required=required, help=text)
        certain = click.option(
            "--confidence",
            type=SHARE,
            default=0.95,
            show_default=True,
            help="With --max-loss: the probability with which that holds.",
        )
        counted = click.option(
            "--loss",
            type=click.Choice(["lost-correct", "net"]),
            default="lost-correct",
            show_default=True,
            help="With --max-loss: what is lost: questions that the mentor has right and the answer wrong, or these "
            "less those that only the answer has right.",
        )
        return cast(CommandT, limit(certain(counted(promised))))

    return decorate
