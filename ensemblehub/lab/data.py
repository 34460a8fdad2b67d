"""Public benchmarks as files: where each comes from, where it lies, what an item of it becomes.

Written items have `instruction`, `input` and `output`, the last with the answer boxed where it is mathematics,
and keep the benchmark's own fields that grading needs.  Knows no engine and no task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblehub.data_files import Broken, located
from ensemblehub.errors import ConfigError, MissingExtraError, did_you_mean
from ensemblehub.lab.tasks import code_tests

Fields = dict[str, Any]

MATHS = "Solve this math problem step by step and put the final answer in \\boxed{}."
CODE = "Complete this Python function. Reply with the whole function in one code block."
WRITE = "Write this Python function. Reply with the whole function in one code block."
SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def missing(path: Path) -> str:
    """One line for a data file that is not there: the command that makes it, where there is one."""
    for name, benchmark in BENCHMARKS.items():
        if benchmark.folder in path.parts:
            return f"{path} is missing: run `ensemblehub data fetch {name}`"
    return f"{path}: no such file (`ensemblehub data fetch NAME` makes those of {', '.join(BENCHMARKS)})"


@dataclass(frozen=True)
class Benchmark:
    """A public benchmark.

    Attributes:
        title: how people call it.
        hub: its name on the hub; `configs` and `splits` what is loaded from there.
        files: of its items, under the data folder; `{config}`, `{split}` and `{subject}` are those of an item.
        convert: from the fields of a public item (names in lower case) to ours.
        sizes: number of items by split (of the first configuration, or of all where they are its parts).
    """

    title: str
    hub: str
    configs: tuple[str, ...]
    splits: tuple[str, ...]
    files: str
    convert: Callable[[Mapping[str, Any]], Fields]
    sizes: Mapping[str, int]

    @property
    def folder(self) -> str:
        """Its own folder, under the data folder."""
        return self.files.partition("/")[0]

    def file(self, config: str, split: str, item: Mapping[str, Any]) -> str:
        """Where a converted item goes, under the data folder; a `ValueError` if its subject is unknown."""
        subject = _subject(item.get("subject") or "") if self.by_subject else ""
        return self.files.format(config=config, split=split, subject=subject)

    @property
    def by_subject(self) -> bool:
        """Whether every subject has files of its own."""
        return "{subject}" in self.files


def boxed(solution: str, answer: str) -> str:
    """The solution, ended by its boxed answer unless it boxes one itself."""
    return solution if "\\boxed" in solution or not answer else f"{solution}\n\\boxed{{{answer}}}".lstrip()


def _number(value: Any) -> str:
    """27.0 as 27."""
    text = str(value)
    return re.sub(r"\.0+$", "", text) if re.fullmatch(r"-?\d+\.0+", text) else text


def _competition(item: Mapping[str, Any]) -> Fields:
    """AIME and AMC: problem or question, answer, and sometimes a solution."""
    question = item.get("problem") or item["question"]
    answer = _number(item["answer"])
    return {"input": question, "output": boxed(item.get("solution") or "", answer), "answer": answer}


def _math(item: Mapping[str, Any]) -> Fields:
    """MATH and MATH-500: problem, solution, level, and type or subject."""
    subject = item.get("subject") or item.get("type") or ""
    kept = {"answer": item["answer"]} if item.get("answer") else {}
    level = str(item.get("level", "")).removeprefix("Level ")
    solution = boxed(item["solution"], kept.get("answer", ""))
    return {"input": item["problem"], "output": solution, **kept, "subject": subject, "level": level}


def _gsm8k(item: Mapping[str, Any]) -> Fields:
    """GSM8K: question, and a solution that ends in `#### 18`, with calculator notes that are taken out."""
    solution, mark, answer = item["answer"].rpartition("####")
    if not mark:
        raise ValueError("the answer has no ####")
    solution = re.sub(r"<<.*?>>", "", solution).strip()
    return {
        "input": item["question"],
        "output": boxed(solution, answer.strip().replace(",", "")),
        "answer": answer.strip(),
    }


def _humaneval(item: Mapping[str, Any]) -> Fields:
    kept = {"entry_point": item["entry_point"], "test": code_tests.check(item, "all")}
    return {"instruction": CODE, "input": item["prompt"], "output": item["canonical_solution"], **kept}


def _mbpp(suite: code_tests.Suite) -> Callable[[Mapping[str, Any]], Fields]:
    """MBPP as first published, its sanitized form, or that of EvalPlus: a text (or `prompt`) and tests."""

    def convert(item: Mapping[str, Any]) -> Fields:
        entry_point = item.get("entry_point") or code_tests.entry_point(item)
        question, solution = code_tests.question(item), item.get("code") or item["canonical_solution"]
        kept = {"entry_point": entry_point, "test": code_tests.check(item, suite)}
        return {"instruction": WRITE, "input": question, "output": solution, **kept}

    return convert


def _subject(name: str) -> str:
    """`Counting & Probability` as `counting_and_probability`."""
    if not name:
        raise ValueError("has no `type` or `subject`, and no folder that names it")
    subject = _as_subject(name)
    if subject not in SUBJECTS:
        raise ValueError(did_you_mean(subject, SUBJECTS, "subject"))
    return subject


def _as_subject(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower().replace("&", "and")).strip("_")


def subject_in(file: Path) -> str:
    """The subject that a file or its folders are named after (`algebra/test.json`, `algebra/7.json`), else ""."""
    names = map(_as_subject, (file.name.partition(".")[0], file.parent.name, file.parent.parent.name))
    return next((name for name in names if name in SUBJECTS), "")


_PARTS, _ONE = ("train", "test"), ("default",)
_WHOLE = "train+test+validation+prompt"  # MBPP's four parts, told apart by task_id
BENCHMARKS = {
    "math": Benchmark(
        "MATH",
        "EleutherAI/hendrycks_math",
        SUBJECTS,
        _PARTS,
        "hendrycks_math/{split}/{subject}.json",
        _math,
        {"train": 7500, "test": 5000},
    ),
    "math500": Benchmark(
        "MATH-500", "HuggingFaceH4/MATH-500", _ONE, ("test",), "MATH-500/test.json", _math, {"test": 500}
    ),
    "gsm8k": Benchmark(
        "GSM8K",
        "openai/gsm8k",
        ("main", "socratic"),
        _PARTS,
        "gsm8k/{config}/{split}.json",
        _gsm8k,
        {"train": 7473, "test": 1319},
    ),
    "humaneval": Benchmark(
        "HumanEval",
        "openai/openai_humaneval",
        ("openai_humaneval",),
        ("test",),
        "HumanEval/test.json",
        _humaneval,
        {"test": 164},
    ),
    "aime24": Benchmark(
        "AIME 2024",
        "HuggingFaceH4/aime_2024",
        _ONE,
        ("train",),
        "AIME2024/aime/aime24.json",
        _competition,
        {"train": 30},
    ),
    "amc23": Benchmark(
        "AMC 2023", "math-ai/amc23", _ONE, ("test",), "AMC2023/amc/amc23.json", _competition, {"test": 40}
    ),
    "humaneval_plus": Benchmark(
        "HumanEval+",
        "evalplus/humanevalplus",
        _ONE,
        ("test",),
        "HumanEvalPlus/test.json",
        _humaneval,
        {"test": 164},
    ),
    "mbpp": Benchmark(
        "MBPP",
        "google-research-datasets/mbpp",
        ("full",),
        (_WHOLE,),
        "MBPP/mbpp.json",
        _mbpp("base"),
        {_WHOLE: 974},
    ),
    "mbpp_plus": Benchmark(
        "MBPP+", "evalplus/mbppplus", _ONE, ("test",), "MBPPPlus/mbpp.json", _mbpp("all"), {"test": 378}
    ),
}


def fetch(name: str, source: Path | None, to: Path, split: str | None = None) -> dict[Path, int]:
    """Write a benchmark's files, each appearing whole.

    Args:
        source: a local file in the benchmark's public format, or already in ours; None asks the hub.
        to: the data folder.
        split: of the local file (by default the one that is tested on); the only one asked of the hub.

    Returns:
        the number of items by file.

    Raises:
        ConfigError: one line: an unknown name or split, a file or hub that cannot be read, an item that lacks a field.
        MissingExtraError: the hub was asked without the `datasets` library.
    """
    benchmark = named(name)
    if split is not None and split not in benchmark.splits:
        raise ConfigError(did_you_mean(split, benchmark.splits, f"split of {benchmark.title}"))
    files: dict[Path, list[Fields]] = {}
    rows = from_hub(benchmark, split) if source is None else _local(benchmark, source, split)
    for where, config, part, value in rows:
        fields = converted(benchmark, where, value)
        try:
            file = to / benchmark.file(config, part, fields)
        except ValueError as error:
            raise ConfigError(f"{where} is no item of {benchmark.title}: {error}") from error
        files.setdefault(file, []).append(fields)
    if not files:
        raise ConfigError(f"{source or benchmark.hub}: no items")
    for file, items in files.items():
        _write(file, items)
    return {file: len(items) for file, items in files.items()}


def named(name: str) -> Benchmark:
    """The benchmark that a person means by `name`: `aime24`, `AIME 2024`, `AIME2024`, ...

    Raises:
        ConfigError: there is none, with the nearest name.
    """
    for known, benchmark in BENCHMARKS.items():
        if _bare(name) in map(_bare, (known, benchmark.title, benchmark.folder)):
            return benchmark
    raise ConfigError(did_you_mean(name, BENCHMARKS, "benchmark"))


def _bare(name: str) -> str:
    return re.sub(r"\W|_", "", name.lower().replace("+", "plus"))


def converted(benchmark: Benchmark, where: str, value: Any) -> Fields:
    """A public item, or one in our form, as one in our form.

    Raises:
        ConfigError: one line: where it stands, and what it lacks.
    """
    try:
        return _converted(benchmark, value)
    except (KeyError, ValueError, TypeError, AttributeError, SyntaxError) as error:
        reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{where} is no item of {benchmark.title}: {reason}") from error


def _converted(benchmark: Benchmark, value: Any) -> Fields:
    if not isinstance(value, dict):
        raise ValueError(value.reason if isinstance(value, Broken) else "it is not an object")
    item = {key.lower(): inner for key, inner in value.items()}
    own = next(({"id": item[key]} for key in ("id", "task_id", "unique_id") if key in item), {})
    if {"instruction", "input", "output"} <= item.keys():
        return {"subject": item["type"], **item} if "type" in item else item
    return own | {"instruction": MATHS} | benchmark.convert(item)


def _local(benchmark: Benchmark, source: Path, split: str | None) -> Iterator[tuple[str, str, str, Any]]:
    for where, fields in rows_of(benchmark, source):
        yield where, benchmark.configs[0], split or benchmark.splits[-1], fields


def rows_of(benchmark: Benchmark, file: Path) -> Iterator[tuple[str, Fields]]:
    """The items of a file in our form; those of MATH may leave their subject to the folder.

    Raises:
        ConfigError: one line: the file and line that cannot be used.
    """
    subject = subject_in(file) if benchmark.by_subject else ""
    for where, value in located(file):
        fields = converted(benchmark, where, value)
        yield where, fields | ({"subject": subject} if subject and not fields.get("subject") else {})


def from_hub(
    benchmark: Benchmark, split: str | None, otherwise: str = "--from FILE"
) -> Iterator[tuple[str, str, str, Any]]:
    """The public items as the hub has them: where each stands, its configuration, its split, and itself.

    Raises:
        ConfigError: one line: the hub does not answer; `otherwise` is what can be given instead.
        MissingExtraError: without the `datasets` library.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        hint = f"pip install 'ensemblehub[data]', or give a downloaded file with {otherwise}"
        raise MissingExtraError(f"{benchmark.title} comes from the hub with `datasets`: {hint}") from error
    for config in benchmark.configs:
        for part in (split,) if split else benchmark.splits:
            try:
                rows = list(datasets.load_dataset(benchmark.hub, config, split=part))
            except Exception as error:  # the library's own and its connections' errors have no common base
                reason = " ".join(str(error).split())[:200]
                raise ConfigError(
                    f"cannot load {benchmark.hub} from the hub ({reason}); or use {otherwise}"
                ) from error
            for number, value in enumerate(rows, 1):
                yield f"{benchmark.hub} {config} {part}: item {number}", config, part, value


def _write(file: Path, items: list[Fields]) -> None:
    part = file.with_name(f"{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(items, ensure_ascii=False, indent=2, default=str) + "\n", encoding="utf-8")
        part.replace(file)
    except (OSError, UnicodeEncodeError) as error:
        raise ConfigError(f"cannot write {file}: {getattr(error, 'strerror', None) or error}") from error
