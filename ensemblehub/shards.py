"""Shards: N processes, wherever they run, share the items of one command without talking to each other.

An item belongs to the shard that the hash of its content names, so that every process finds its own items by
reading the same input.  Each writes below `shards/I-of-N/` beside the target; `ensemblehub merge` puts the
files together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import click

from ensemblehub.errors import ConfigError

FOLDER = "shards"


@dataclass(frozen=True)
class Shard:
    """Shard `index`, from 0, of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `I/N`.

        Raises:
            ValueError: says what is expected.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or int(found[1]) >= int(found[2]):
            raise ValueError(f"expected I/N with I from 0 to N - 1, such as 0/4, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def named(cls, folder: str) -> Self:
        """The shard that writes into a folder `I-of-N`.

        Raises:
            ConfigError: no shard has a folder of this name.
        """
        found = re.fullmatch(r"(0|[1-9]\d*)-of-([1-9]\d*)", folder, re.ASCII)
        if not found or int(found[1]) >= int(found[2]):
            raise ConfigError(f"{FOLDER}/{folder} is the folder of no shard I-of-N: remove it")
        return cls(int(found[1]), int(found[2]))

    def holds(self, digest: str) -> bool:
        """Whether an item belongs to it, by the hexadecimal hash of its content."""
        return int(digest, 16) % self.count == self.index

    def beside(self, target: Path) -> Path:
        """Where this shard writes what the whole command writes to `target`."""
        return target.parent / FOLDER / str(self) / target.name

    def within(self, folder: Path) -> Path:
        """The folder in which this shard writes what the whole command writes to `folder`."""
        return folder / FOLDER / str(self)

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


class _ShardType(click.ParamType[Shard]):
    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        try:
            return value if isinstance(value, Shard) else Shard.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


shard_option = click.option(
    "--shard",
    type=_ShardType(),
    metavar="I/N",
    help="Only the items of shard I (from 0) of N, into shards/I-of-N/ beside the output; `ensemblehub "
    "merge` puts the shards together.",
)
