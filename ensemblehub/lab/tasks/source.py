"""Where the items of a public benchmark come from: a file, a folder of files, EvalPlus's package, or the hub.

Knows the forms of files (`ensemblehub.lab.data`) and no task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ensemblehub.errors import ConfigError
from ensemblehub.lab.data import (
    BENCHMARKS,
    SUBJECTS,
    Benchmark,
    Fields,
    converted,
    from_hub,
    missing,
    rows_of,
)

FOLDER = Path("data")  # where `ensemblehub data fetch` writes
BY_SUBJECT = (  # where else the files of MATH lie: in the reference toolkit's repository, and without its folders
    "math/hendrycks_math/{subject}/{split}.json",
    "hendrycks_math/{subject}/{split}.json",
    "{subject}/{split}.json",
    "{split}/{subject}.json",
)
ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
_EVALPLUS = {"humaneval_plus": "get_human_eval_plus", "mbpp_plus": "get_mbpp_plus"}


@dataclass(frozen=True)
class Read:
    """The items of a part of a benchmark, in our form, each with where it stands; and from what they were read."""

    rows: list[tuple[str, Fields]]
    source: str


def read(name: str, part: str, data: Path | None) -> Read:
    """A part of a benchmark.

    Args:
        part: of the benchmark as it is published.
        data: a file in the public form or ours (`{split}` in its name stands for the part), or a folder with
            the files of `ensemblehub data fetch` or with NAME.jsonl or NAME_PART.jsonl; None looks into `data/`,
            then asks EvalPlus's package (HumanEval+ and MBPP+, where it is installed), then the hub.

    Raises:
        ConfigError: one line: the file and line that cannot be used.
        MissingExtraError: neither a file nor the library that asks the hub.
    """
    benchmark = BENCHMARKS[name]
    files = files_of(name, part, data)
    if files:
        source = (
            ", ".join(file.name for file in files) if len(files) <= len(SUBJECTS) else f"{len(files)} files"
        )
        return Read([row for file in files for row in rows_of(benchmark, file)], source)
    found: Iterator[tuple[str, Any]]
    if (rows := _evalplus(name)) is not None:
        found, source = iter(rows), "evalplus"
    else:
        asked = replace(benchmark, configs=("main",)) if name == "gsm8k" else benchmark
        hint = f"--data FILE (or `ensemblehub data fetch {name}`)"
        found = ((where, value) for where, _, _, value in from_hub(asked, part, hint))
        source = benchmark.hub
    return Read([(where, converted(benchmark, where, value)) for where, value in found], source)


def files_of(name: str, part: str, data: Path | None) -> list[Path]:
    """The files to read; none where nothing was named and nothing was fetched.

    Raises:
        ConfigError: what was named has no such part, or a fetched file is missing.
    """
    benchmark = BENCHMARKS[name]
    if data is not None and "{split}" in data.name:
        return [data.with_name(data.name.replace("{split}", part))]
    if data is not None and not data.is_dir():
        if len(benchmark.splits) > 1 and part != benchmark.splits[-1] and data.exists():
            hint = f"name its files with {{split}}, as in {name}_{{split}}.jsonl, or their folder"
            raise ConfigError(f"{data} is one file, taken as `{benchmark.splits[-1]}`; for `{part}` {hint}")
        return [data]
    folder = data or FOLDER
    fetched = _files(folder, benchmark.files, benchmark, part)
    layouts = [
        fetched,
        *(_files(folder, layout, benchmark, part) for layout in BY_SUBJECT if benchmark.by_subject),
    ]
    for files in layouts:
        if any(file.exists() for file in files):
            if absent := next((file for file in files if not file.exists()), None):
                raise ConfigError(missing(absent))
            return files
    if benchmark.by_subject and (
        single := [file for subject in SUBJECTS for file in _single(folder, part, subject)]
    ):
        return single
    stems = [f"{name}_{part}"]
    stems += [name] if part == benchmark.splits[-1] else []
    stems += [part] if data is not None else []
    beside = next(
        (file for stem in stems for end in ENDINGS if (file := folder / f"{stem}{end}").is_file()), None
    )
    if beside is None and data is not None:
        raise ConfigError(
            f"{data} has no file of {benchmark.title}: neither {fetched[0]} nor {stems[0]}.jsonl"
        )
    return [beside] if beside else []


def _files(folder: Path, layout: str, benchmark: Benchmark, part: str) -> list[Path]:
    """The files of a part, one a subject where the benchmark has subjects."""
    subjects = SUBJECTS if benchmark.by_subject else ("",)
    names = (layout.format(config=benchmark.configs[0], split=part, subject=subject) for subject in subjects)
    return [folder / name for name in names]


def _single(folder: Path, part: str, subject: str) -> list[Path]:
    """The files of MATH as its authors publish it: `test/algebra/17.json`, one a question."""
    return sorted((folder / part / subject).glob("*.json"))


def _evalplus(name: str) -> list[tuple[str, Any]] | None:
    """The rows of EvalPlus's package; None where it is not installed, or this is no benchmark of its.

    Raises:
        ConfigError: one line: it cannot get its data.
    """
    if name not in _EVALPLUS:
        return None
    try:
        from evalplus.data import humaneval, mbpp
    except ImportError:
        return None
    get = getattr(humaneval if name == "humaneval_plus" else mbpp, _EVALPLUS[name])
    try:
        rows: dict[str, Any] = get()
    except Exception as error:  # it downloads, reads and asserts
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"evalplus cannot read its data ({reason}); use --data FILE") from error
    return [(f"evalplus: {identity}", row) for identity, row in rows.items()]
