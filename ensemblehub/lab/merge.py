"""`ensemblehub merge`: the files of all shards become one, and nothing is lost, doubled or mixed."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import click

from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.journal import Lines
from ensemblehub.lab.journal import differences, told
from ensemblehub.shards import FOLDER, Shard

MERGED = ("answers/*.jsonl", "collected/*.partial.jsonl")  # of a folder of results
AGAIN = "run that shard again"
SHOWN = 8  # missing shards that a message names
SPARE_FILES = 64  # open beside those of the shards
Row = dict[str, Any]


def merged(target: Path) -> Iterator[str]:
    """Merge the shards of an output file of `infer`, or of a folder of `bench` or `collect`; a line for each file.

    A target that exists keeps its rows.  The shards stay where they are.

    Raises:
        ConfigError: there are no shards, a folder beside theirs is of none, or a journal is gzipped.
        ArtifactError: a shard is missing, damaged or in use; rows were made with different settings, belong to
            another shard, or differ under one id.
    """
    at, patterns = (target, MERGED) if target.is_dir() else (target.parent, (target.name,))
    parts: dict[Path, dict[Shard, Path]] = {}
    folders = sorted((at / FOLDER).glob("*-of-*"))
    whole = [at] if target.is_dir() else []
    if packed := [
        path for each in (*whole, *folders) for name in patterns for path in each.glob(f"{name}.gz")
    ]:
        raise ConfigError(f"{packed[0]} is gzipped: `gunzip` it before the merge")
    for folder in folders:
        for path in (path for pattern in patterns for path in folder.glob(pattern)):
            parts.setdefault(at / path.relative_to(folder), {})[Shard.named(folder.name)] = path
    if not parts:
        raise ConfigError(f"there are no shards of {target} in {at / FOLDER}; `--shard I/N` writes them")
    for name, paths in sorted(parts.items()):
        check_complete(name, list(paths))
    for name, paths in sorted(parts.items()):
        yield merge_file(name, paths)


def check_complete(target: Path, shards: Sequence[Shard]) -> None:
    """Check that all shards of one number have written a file.

    Raises:
        ConfigError: there are shards of several numbers.
        ArtifactError: some are missing.
    """
    count, *others = sorted({shard.count for shard in shards})
    if others:
        raise ConfigError(
            f"{target} has shards of {count} and of {others[0]} in {FOLDER}/: remove the old ones"
        )
    there = {shard.index for shard in shards}
    if missing := count - len(there):
        first = islice((f"{index}/{count}" for index in range(count) if index not in there), SHOWN)
        more = f" and {missing - SHOWN} more" if missing > SHOWN else ""
        raise ArtifactError(f"{target} lacks shard {', '.join(first)}{more}")


class Place(NamedTuple):
    """A row of a file.

    Attributes:
        start: Byte at which it begins.
        content: Hash of the row.
    """

    part: Part
    start: int
    number: int
    failed: bool
    content: int


class Part:
    """A file of rows, open until the merge is over; the rows themselves stay on disk.

    A journal begins with its settings; every row of `infer` names its configuration.

    Attributes:
        made: The settings that the rows were made with.
        places: The rows by their key.
    """

    def __init__(self, path: Path, shard: Shard | None = None) -> None:
        """Open a file that no process is writing, and read it once.

        Raises:
            ArtifactError: The file is damaged or in use, or its rows are not those of one shard and run.
        """
        self.path, self.shard = path, shard
        self.made: Row | None = None
        self.places: dict[str, Place] = {}
        self.lines = Lines(path, keep=self._keep)

    @property
    def journal(self) -> bool:
        """Whether the file is a journal."""
        return self.made is not None and "settings" in self.made

    def _keep(self, row: Row, start: int) -> None:
        if self.made is None and "settings" in row:
            self.made = row
            return
        key = row.get("id" if self.journal else "key")
        if not isinstance(key, str) or not (self.journal or row.get("config")):
            raise ArtifactError(f"{self.path} holds a row without a key: no shard has written it")
        if key in self.places:
            raise ArtifactError(f"{self.path} holds {key!r} twice; {AGAIN}")
        self.made = self.made or {"config": row["config"]}
        if not self.journal and row["config"] != self.made["config"]:
            raise ArtifactError(f"{self.path} holds answers of several configurations; {AGAIN}")
        if self.shard and not self.shard.holds(row.get("asked") or key):
            raise ArtifactError(f"{self.path} holds {key!r}, which belongs to another shard; {AGAIN}")
        content = hash(json.dumps(row, sort_keys=True))
        self.places[key] = Place(self, start, row.get("number", 0), bool(row.get("error")), content)


def merge_file(target: Path, paths: Mapping[Shard, Path]) -> str:
    """Merge one file; says how many rows it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, len(paths) + SPARE_FILES)), hard))
    with ExitStack() as stack:

        def opened(path: Path, shard: Shard | None = None) -> Part:
            part = Part(path, shard)
            stack.callback(part.lines.close)
            return part

        whole = opened(target)
        made, places = whole.made, dict(whole.places)
        for shard, path in paths.items():
            part = opened(path, shard)
            if made and part.made and (differing := list(differences(made, part.made))):
                so = f"{AGAIN}, or remove {target}" if whole.made else AGAIN
                raise ArtifactError(f"{path} was made with other settings: {told(differing)}; {so}")
            made = made or part.made
            for key, place in part.places.items():
                known = places.setdefault(key, place)
                if known.content == place.content or (place.failed and not known.failed):
                    continue  # what failed may have been answered since
                if not known.failed:
                    raise ArtifactError(f"{path} and another file differ in {key!r}; remove one of them")
                places[key] = place
        ordered = sorted(places.values(), key=lambda place: place.number)
        header = [made] if made and "settings" in made else []
        if ordered != list(whole.places.values()) or (header and not whole.made):
            whole.lines.replace(chain(header, _read(ordered)))
        else:
            whole.lines.mend()
    failed = sum(place.failed for place in ordered)
    said = f", {failed} failed" if failed else ""
    numbers = {place.number for place in ordered}  # of the items of `infer`, from 1; 0 in a journal
    if gaps := max(numbers, default=0) - len(numbers - {0}):
        said += f"; {gaps} of the first {max(numbers)} are missing: a shard was not finished"
    return f"{target}: {len(ordered)} rows of {len(paths)} shards{said}"


def _read(places: Iterable[Place]) -> Iterator[Row]:
    for place in places:
        yield from place.part.lines.read([place.start])


@click.command()
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True, type=click.Path(path_type=Path))
def merge(targets: tuple[Path, ...]) -> None:
    """Put the outputs of all shards together.

    TARGET is what the command with --shard named: the output file of `infer`, or the folder of `bench --out` or
    of `collect` (experiment.results). Missing shards, rows of other settings, rows of another shard and rows that
    differ are refused; nothing is written then. Shards are kept.

    The same command without --shard then answers what failed or is missing, if anything, and writes the tables.

    \b
    seq 0 3 | xargs -P 4 -I {} ensemblehub infer pair.yaml --input_path in.jsonl --output_path out.jsonl --shard {}/4
    ensemblehub merge out.jsonl
    """
    for target in targets:
        for line in merged(target):
            click.echo(line)
