"""Reading the items of a public benchmark: from a file, a folder of files, a package, or the hub.

An item in this project's form has `instruction`, `input` and `output`, the last with the answer boxed where
it is mathematics, and the benchmark's own fields that grading needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblehub.data_files import Broken, located
from ensemblehub.errors import ConfigError, MissingExtraError

Fields = dict[str, Any]
Rows = Iterator[tuple[str, Any]]  # where an item stands, and the item

FOLDER = Path("data")  # where `ensemblehub data fetch` writes
ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
MANY = 7  # files whose names are listed in a result


def boxed(solution: str, answer: str) -> str:
    r"""The solution, with ``\boxed{answer}`` appended unless it has a box."""
    return solution if "\\boxed" in solution or not answer else f"{solution}\n\\boxed{{{answer}}}".lstrip()


@dataclass(frozen=True)
class Source:
    """Where a public benchmark comes from and how its items are read.

    Attributes:
        title: its published name.
        hub: its repository on the hub.
        files: path of the fetched files below the data folder; may contain `{config}`, `{split}` and
            `{subject}`.
        sizes: number of items by published split.
        instruction: what the model is asked to do.
        convert: makes an item in our form of a published one (field names in lower case).  KeyError and
            ValueError say what is wrong with it.
        configs: configurations on the hub that are read.
        more_configs: configurations that `data fetch` writes besides.
        package: reads the items from an installed package instead of the hub; None where it is not installed.
    """

    title: str
    hub: str
    files: str
    sizes: Mapping[str, int]
    instruction: str
    convert: Callable[[Mapping[str, Any]], Fields]
    configs: tuple[str, ...] = ("default",)
    more_configs: tuple[str, ...] = ()
    package: Callable[[], Mapping[str, Any] | None] = lambda: None

    @property
    def splits(self) -> tuple[str, ...]:
        """The published splits; a single file is taken as the last."""
        return tuple(self.sizes)

    @property
    def folder(self) -> str:
        """The folder of the fetched files, below the data folder."""
        return self.files.partition("/")[0]

    # -- items ---------------------------------------------------------------------------------------------

    def converted(self, where: str, value: Any) -> Fields:
        """A published item, or one in our form, as one in our form.

        Raises:
            ConfigError: one line: where it stands, and what it lacks.
        """
        try:
            return self._converted(value)
        except (KeyError, ValueError, TypeError, AttributeError, SyntaxError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{where} is no item of {self.title}: {reason}") from error

    def _converted(self, value: Any) -> Fields:
        if not isinstance(value, dict):
            raise ValueError(value.reason if isinstance(value, Broken) else "it is not an object")
        item = {key.lower(): inner for key, inner in value.items()}
        if {"instruction", "input", "output"} <= item.keys():
            return {"subject": item["type"], **item} if "type" in item else item
        identity = next(({"id": item[key]} for key in ("id", "task_id", "unique_id") if key in item), {})
        return identity | {"instruction": self.instruction} | self.convert(item)

    def path_of(self, config: str, split: str, item: Mapping[str, Any]) -> str:
        """Path of the fetched file that an item belongs to; ValueError if the item does not say."""
        return self.files.format(config=config, split=split)

    def rows_of(self, file: Path) -> Rows:
        """The items of a file, in our form.

        Raises:
            ConfigError: one line: the file and line that cannot be used.
        """
        for where, value in located(file):
            yield where, self.converted(where, value)

    # -- places --------------------------------------------------------------------------------------------

    def read(self, name: str, split: str, data: Path | None) -> tuple[list[tuple[str, Fields]], str]:
        """The items of a published split, in our form, and a description of where they were read from.

        Args:
            name: of the task.
            data: a file in the public form or ours (`{split}` in its name stands for the split), or a folder
                with the files of `ensemblehub data fetch` or with NAME.jsonl or NAME_SPLIT.jsonl; None looks
                into `data/`, then asks the benchmark's package where installed, then the hub.

        Raises:
            ConfigError: one line: the file and line that cannot be used.
            MissingExtraError: neither a file nor the library that asks the hub.
        """
        files = self.files_of(name, split, data)
        if files:
            origin = ", ".join(file.name for file in files) if len(files) <= MANY else f"{len(files)} files"
            return [row for file in files for row in self.rows_of(file)], origin
        rows: Rows
        if (packaged := self.package()) is not None:
            rows, origin = ((f"evalplus: {key}", value) for key, value in packaged.items()), "evalplus"
        else:
            hint = f"--data FILE (or `ensemblehub data fetch {name}`)"
            found = self.from_hub(self.configs, (split,), hint)
            rows, origin = ((where, value) for where, _, _, value in found), self.hub
        return [(where, self.converted(where, value)) for where, value in rows], origin

    def files_of(self, name: str, split: str, data: Path | None) -> list[Path]:
        """The files of a published split; empty where none is named and none was fetched.

        Raises:
            ConfigError: `data` has no such split, or a fetched file is missing.
        """
        if data is not None and "{split}" in data.name:
            return [data.with_name(data.name.replace("{split}", split))]
        if data is not None and not data.is_dir():
            if split != self.splits[-1] and data.exists():
                hint = f"name its files with {{split}}, as in {name}_{{split}}.jsonl, or their folder"
                raise ConfigError(f"{data} is one file, taken as `{self.splits[-1]}`; for `{split}` {hint}")
            return [data]
        folder = data or FOLDER
        for files in self.layouts(folder, split):
            if any(file.exists() for file in files):
                if absent := next((file for file in files if not file.exists()), None):
                    raise ConfigError(f"{absent} is missing: run `ensemblehub data fetch {name}`")
                return files
        stems = [f"{name}_{split}"]
        stems += [name] if split == self.splits[-1] else []
        stems += [split] if data is not None else []
        candidates = (folder / f"{stem}{ending}" for stem in stems for ending in ENDINGS)
        beside = next(filter(Path.is_file, candidates), None)
        if beside is None and data is not None:
            fetched = next(self.layouts(folder, split))[0]
            raise ConfigError(f"{data} has no file of {self.title}: neither {fetched} nor {stems[0]}.jsonl")
        return [beside] if beside else []

    def layouts(self, folder: Path, split: str) -> Iterator[list[Path]]:
        """The files that together make a split, one list per known layout of a folder;
        the fetched one first.
        """
        yield [folder / self.files.format(config=self.configs[0], split=split)]

    def from_hub(
        self, configs: tuple[str, ...], splits: tuple[str, ...], otherwise: str
    ) -> Iterator[tuple[str, str, str, Any]]:
        """The published items on the hub: where each stands, its configuration, its split, and itself.

        Args:
            otherwise: what can be given instead, for error messages.

        Raises:
            ConfigError: one line: the hub does not answer.
            MissingExtraError: without the `datasets` library.
        """
        try:
            import datasets
        except ModuleNotFoundError as error:
            hint = f"pip install 'ensemblehub[data]', or give a downloaded file with {otherwise}"
            raise MissingExtraError(f"{self.title} comes from the hub with `datasets`: {hint}") from error
        for config in configs:
            for split in splits:
                try:
                    rows = list(datasets.load_dataset(self.hub, config, split=split))
                except (
                    Exception
                ) as error:  # the library's own and its connections' errors have no common base
                    reason = " ".join(str(error).split())[:200]
                    raise ConfigError(
                        f"cannot load {self.hub} from the hub ({reason}); or use {otherwise}"
                    ) from error
                for number, value in enumerate(rows, 1):
                    yield f"{self.hub} {config} {split}: item {number}", config, split, value
