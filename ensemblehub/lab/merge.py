"""`ensemblehub merge`: the files of all shards become one, and nothing is lost, doubled or mixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from ensemblehub.artifacts import content_of, entries
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.journal import Lines
from ensemblehub.lab.journal import differences, told
from ensemblehub.shards import FOLDER, Shard

MERGED = ("answers/*.jsonl", "collected/*.partial.jsonl")  # of a folder of results
AGAIN = "run that shard again"
Row = dict[str, Any]


def merged(target: Path) -> Iterator[str]:
    """Merge the shards of an output file of `infer`, or of a folder of `bench` or `collect`; a line for each file.

    A target that exists keeps its rows.  The shards stay where they are.

    Raises:
        ConfigError: there are no shards.
        ArtifactError: a shard is missing, damaged or in use; rows were made with different settings, belong to
            another shard, or differ under one id.
    """
    at, patterns = (target, MERGED) if target.is_dir() else (target.parent, (target.name,))
    parts: dict[Path, dict[Shard, Path]] = {}
    for folder in sorted((at / FOLDER).glob("*-of-*")):
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
    missing = sorted(set(range(count)) - {shard.index for shard in shards})
    if missing:
        raise ArtifactError(f"{target} lacks shard {', '.join(f'{index}/{count}' for index in missing)}")


def merge_file(target: Path, parts: Mapping[Shard, Path]) -> str:
    """Merge one file; says how many rows it has."""
    with closing(Lines(target)) as lines:
        before = list(lines.found)
        made, rows = _divided(target, before)
        for shard, path in parts.items():
            theirs, found = _divided(path, _read(path))
            if made and theirs and (differing := list(differences(made, theirs))):
                raise ArtifactError(f"{path} was made with other settings: {told(differing)}; {AGAIN}")
            made = made or theirs
            for key, row in found.items():
                if not shard.holds(row.get("asked") or key):
                    raise ArtifactError(f"{path} holds {key!r}, which belongs to another shard; {AGAIN}")
                known = rows.setdefault(key, row)
                if known != row and not known.get("error"):
                    raise ArtifactError(f"{path} and another file differ in {key!r}; remove one of them")
                rows[key] = row
        ordered = sorted(rows.values(), key=lambda row: row.get("number", 0))
        after = [made, *ordered] if made and "settings" in made else ordered
        if after != before:
            lines.replace(after)
        else:
            lines.mend()
    failed = sum(bool(row.get("error")) for row in ordered)
    said = f", {failed} failed" if failed else ""
    return f"{target}: {len(ordered)} rows of {len(parts)} shards{said}"


def _read(path: Path) -> list[Row]:
    """The whole lines of a file that no process is writing."""
    with closing(Lines(path)):
        try:
            return entries(content_of(path, AGAIN))[0]
        except ValueError as error:
            raise ArtifactError(f"{path} is damaged ({error}); {AGAIN}") from error


def _divided(path: Path, lines: list[Row]) -> tuple[Row | None, dict[str, Row]]:
    """What the rows of a file were made with, and the rows by their key.

    A journal begins with its settings; every row of `infer` names its configuration.
    """
    journal = bool(lines) and "settings" in lines[0]
    made, rows = lines[0] if journal else None, dict[str, Row]()
    for row in lines[journal:]:
        key = row.get("id" if journal else "key")
        made = made or {"config": row.get("config")}
        if not isinstance(key, str) or not (journal or row.get("config")):
            raise ArtifactError(f"{path} holds a row without a key: no shard has written it")
        if key in rows:
            raise ArtifactError(f"{path} holds {key!r} twice; {AGAIN}")
        if not journal and row["config"] != made["config"]:
            raise ArtifactError(f"{path} holds answers of several configurations; {AGAIN}")
        rows[key] = row
    return made, rows


@click.command()
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True, type=click.Path(path_type=Path))
def merge(targets: tuple[Path, ...]) -> None:
    """Put the outputs of all shards together.

    TARGET is what the command with --shard named: the output file of `infer`, or the folder of `bench --out` or
    of `collect` (experiment.results). Missing shards, rows of other settings, rows of another shard and rows that
    differ are refused; nothing is written then. Shards are kept.

    The same command without --shard then answers what failed or is missing, if anything, and writes the tables.

    \b
    seq 0 3 | xargs -P 4 -I I ensemblehub infer pair.yaml --input_path in.jsonl --output_path out.jsonl --shard I/4
    ensemblehub merge out.jsonl
    """
    for target in targets:
        for line in merged(target):
            click.echo(line)
