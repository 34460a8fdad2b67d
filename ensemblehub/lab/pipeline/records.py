"""Collected splits on disk: a row for every question, its runs, and the intern's readings as arrays."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from ensemblehub.artifacts import content_of, parsed, write_atomically
from ensemblehub.errors import ArtifactError
from ensemblehub.generators.openai.options import thinking_in
from ensemblehub.journal import encoded
from ensemblehub.schema import Finish, ModelInfo
from ensemblehub.tandem.insights import LEVEL_0

FEATURES = 16  # numbers by which a reading is judged
OLD_TASKS = re.compile(rb'("(?:task|id)": ?")studio_(?=math|code)')


def with_current_names(content: bytes) -> bytes:
    """Lines of JSON in which the built-in tasks have their present names; older data says `studio_math`."""
    return OLD_TASKS.sub(rb"\1builtin_", content)


@dataclass(frozen=True)
class Run:
    """One way of answering one question: fixed levels, the mentor alone, the intern alone.

    Attributes:
        correct: the answer is right.
        finish: "length" marks a truncated answer.
        mentor_read, mentor_tokens: tokens the mentor read and wrote (0 where it took no part).
        intern_read, intern_tokens: the same for the intern.
        seconds: engine time.
        leak: the insight states the asked value.
        cut: characters of the row's insight that the intern was shown; None in older data and for the mentor
            alone.
        logprob: of the mentor alone, the mean log-probability of its tokens; None in older data and where the
            engine gives none.
    """

    __pydantic_config__: ClassVar[Any] = {"allow_inf_nan": False}

    correct: bool
    finish: Finish | None
    mentor_read: int
    mentor_tokens: int
    intern_read: int
    intern_tokens: int
    seconds: float
    leak: bool
    text: str
    cut: int | None = None
    logprob: float | None = None

    def flops(self, mentor: ModelInfo, intern: ModelInfo) -> float:
        """Full ledger of this run by itself: prompts read, tokens written, attention over the context."""
        return _flops(mentor, self.mentor_read, self.mentor_tokens) + _flops(
            intern, self.intern_read, self.intern_tokens
        )

    def reading_flops(self, mentor: ModelInfo, intern: ModelInfo) -> float:
        """The part spent before the intern writes: the mentor's insight, and reading it."""
        return _flops(mentor, self.mentor_read, self.mentor_tokens) + intern.flops(0, self.intern_read)


def _flops(info: ModelInfo, read: int, written: int) -> float:
    return info.flops(0, read) + info.flops(read, read + max(0, written - 1))


@dataclass(frozen=True)
class DraftScore:
    """What a criterion says of the intern's answer without an insight, and what asking it cost.

    Attributes:
        probability: that the draft is right; 0 for one that was cut off.
        flops: of the criterion's calls.
        mentor_read, mentor_tokens, intern_read, intern_tokens: tokens read and written for it.
        question_flops: the part of `flops` for reading the question, which an insight's judge then need not
            read again.
    """

    __pydantic_config__: ClassVar[Any] = {"allow_inf_nan": False}

    probability: float
    flops: float
    mentor_read: int
    mentor_tokens: int
    intern_read: int
    intern_tokens: int
    question_flops: float = 0.0


@dataclass(frozen=True)
class Row:
    """Everything collected on one question.

    Attributes:
        steps, level: needed steps and difficulty.
        runs: by method: "mentor", "mentor_concise", and one per effort level, `LEVEL_0` first.
        closing: template tokens after the insight, which every checkpoint reads again.
        question: hash of the question's words; empty in older data.
        thinking_switch: False where the mentor's template has no switch for thinking: `mentor_concise` is
            then the run `mentor`, which is made once.
        draft: of the run `LEVEL_0`, where a `draft` was configured.
        shared: leading tokens that the mentor's prompts with and without thinking are known to share; 0 in
            older data.
    """

    id: str
    subject: str
    level: int
    steps: int
    insight: str
    closing: int
    runs: dict[str, Run]
    question: str = ""
    thinking_switch: bool = True
    draft: DraftScore | None = None
    shared: int = 0

    @property
    def key(self) -> str:
        """What tells the question from others: the hash of its words, its id where that is not known."""
        return self.question or self.id


@dataclass(frozen=True)
class Collected:
    """A collected split.

    Attributes:
        header: pair, prompts, levels, model infos (`cards`), task, split.
        features: float32, (questions, levels, 16).
        sequences: per question, per level: float16 (2, tokens), perplexity and entropy.
    """

    header: dict[str, Any]
    rows: list[Row]
    features: NDArray[np.float32]
    sequences: list[list[NDArray[np.float16]]] = field(repr=False)

    @property
    def levels(self) -> dict[str, int]:
        """Mentor token budget by level, `LEVEL_0` first."""
        return cast(dict[str, int], self.header["levels"])

    @property
    def drafts(self) -> list[DraftScore]:
        """What the criterion said of every draft; empty where none was configured."""
        return [row.draft for row in self.rows if row.draft]

    @property
    def thinking(self) -> bool | None:
        """`enable_thinking` of the mentor's engine at the time of collecting; None is its template's default."""
        engines, mentor = self.header.get("engines", {}), self.header.get("mentor")
        options: dict[str, Any] = next((own for own in engines.values() if own.get("model") == mentor), {})
        own, body = options.get("enable_thinking"), options.get("extra_body")
        mode = thinking_in(body) if own is None and isinstance(body, dict) else own
        return mode if isinstance(mode, bool) else None

    def info(self, role: str) -> ModelInfo:
        """Return the `ModelInfo` of `mentor` or `intern` at the time of collecting."""
        return ModelInfo(**{**self.header["cards"][role], "price": None})

    def check_sizes(self) -> None:
        """Check that its costs can be counted in FLOPs.

        Raises:
            ArtifactError: the size of a model was unknown when it was collected.
        """
        for role in ("mentor", "intern"):
            if not self.info(role).active:
                raise ArtifactError(
                    f"costs are counted in FLOPs, and the size of the model {self.header[role]!r} was unknown when "
                    f"{self.header['split']} was collected: set its `parameters` and collect again (--force)"
                )

    def part(self, indices: list[int]) -> Collected:
        """The same for some of the questions."""
        rows = [self.rows[index] for index in indices]
        sequences = [self.sequences[index] for index in indices]
        return Collected(self.header, rows, self.features[indices], sequences)

    def save(self, folder: Path, split: str) -> None:
        """Write `SPLIT.npz`, then `SPLIT.jsonl.gz`, which holds the other's hash and completes the split.

        Whatever ends the process between any two steps leaves a split that is whole or has no
        `SPLIT.jsonl.gz`. When this returns, both files survive a power cut.
        """
        rows, arrays = folder / f"{split}.jsonl.gz", _packed(self.features, self.sequences)
        header = self.header | {"arrays": hashlib.sha256(arrays).hexdigest()}
        lines = [encoded(header), *(encoded(asdict(row)) for row in self.rows)]
        rows.unlink(missing_ok=True)  # the old rows would not belong to the new arrays
        write_atomically(folder / f"{split}.npz", arrays)
        write_atomically(rows, gzip.compress(b"".join(lines), mtime=0))

    @classmethod
    def load(cls, folder: Path, split: str) -> Collected:
        """Read a collected split.

        Raises:
            ArtifactError: it is missing, damaged or of another split; names the command that makes it.
        """
        path, command = folder / f"{split}.jsonl.gz", f"ensemblehub collect --split {split}"
        absent, remedy = f"run `{command}`", f"run `{command} --force`"
        first, *lines = _unzipped(path, content_of(path, absent), remedy)
        known = parsed(Header, first, f"{path}:1", remedy)
        rows = [parsed(Row, line, f"{path}:{number}", remedy) for number, line in enumerate(lines, 2)]
        raw = content_of(folder / f"{split}.npz", absent)
        header = json.loads(first)
        digest = header.pop("arrays", None)
        if digest not in (None, hashlib.sha256(raw).hexdigest()):
            raise ArtifactError(f"{folder}/{split}.npz does not belong to {path}: {remedy}")
        try:
            _check_rows(known, rows, split)
            features, sequences = _unpacked(raw, len(rows), len(known.levels))
        except Exception as error:  # zipfile, zlib and numpy raise what they like on damaged bytes
            raise ArtifactError(
                f"{folder}/{split} is damaged ({' '.join(str(error).split())}): {remedy}"
            ) from error
        return cls(header, rows, features, sequences)


@dataclass(frozen=True)
class Header:
    """The first line of a collected split, as far as it is read again."""

    levels: dict[str, int]
    cards: dict[str, ModelInfo]
    task: str = ""
    split: str = ""
    mentor: str = ""
    intern: str = ""
    prompts: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    draft: tuple[str, str] | None = None
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)


def _unzipped(path: Path, content: bytes, remedy: str) -> list[bytes]:
    """The lines of a gzipped file."""
    try:
        text = with_current_names(gzip.decompress(content))
        lines = text.split(b"\n")  # not splitlines: U+2028 stands in texts
    except Exception as error:  # gzip and zlib raise what they like on damaged bytes
        raise ArtifactError(f"{path} is damaged ({error}): {remedy}") from error
    if lines[-1] or len(lines) < 2:
        raise ArtifactError(f"{path} is damaged (its last line is cut off): {remedy}")
    return lines[:-1]


def _check_rows(header: Header, rows: list[Row], split: str) -> None:
    """A `ValueError` says what does not fit."""
    if header.split not in ("", split):
        raise ValueError(f"its questions are those of {header.split!r}")
    if not {"mentor", "intern"} <= header.cards.keys() or LEVEL_0 not in header.levels:
        raise ValueError(f"its header lacks the models or the level {LEVEL_0!r}")
    if not all(math.isfinite(info.flops(0, 1)) for info in header.cards.values()):
        raise ValueError("its header has model figures that are not finite")
    if len({row.id for row in rows}) < len(rows):
        raise ValueError("a question stands in it twice")
    for row in rows:
        if header.draft and row.draft is None:
            raise ValueError(f"{row.id} has no score of its draft")
        if lacking := [name for name in (*header.levels, "mentor") if name not in row.runs]:
            raise ValueError(f"{row.id} has no run {lacking[0]!r}")


def _packed(features: NDArray[np.float32], sequences: list[list[NDArray[np.float16]]]) -> bytes:
    """A collected split's arrays as a compressed file of numpy."""
    flat, file = [sequence for question in sequences for sequence in question], io.BytesIO()
    lengths = np.array([sequence.shape[1] for sequence in flat], np.int32)
    whole = np.concatenate(flat, axis=1) if flat else np.zeros((2, 0), np.float16)
    np.savez_compressed(file, allow_pickle=False, features=features, lengths=lengths, sequences=whole)
    return file.getvalue()


def _unpacked(
    content: bytes, n: int, levels: int
) -> tuple[NDArray[np.float32], list[list[NDArray[np.float16]]]]:
    """The inverse of `_packed` for `n` questions; a `ValueError` where the arrays do not fit them."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        features, flat, lengths = (arrays[name] for name in ("features", "sequences", "lengths"))
    if features.shape != (n, levels, FEATURES) and (n or features.size):
        raise ValueError(f"features of shape {features.shape} for {n} questions at {levels} levels")
    if lengths.shape != (n * levels,) or (lengths < 1).any() or flat.shape != (2, int(lengths.sum())):
        raise ValueError(f"sequences of shape {flat.shape} do not fit {n} questions at {levels} levels")
    if features.dtype != np.float32 or flat.dtype != np.float16 or lengths.dtype.kind != "i":
        raise ValueError(f"numbers of types {features.dtype}, {flat.dtype} and {lengths.dtype}")
    if not (np.isfinite(features).all() and np.isfinite(flat).all()):
        raise ValueError("numbers that are not finite")
    parts = np.split(flat, np.cumsum(lengths)[:-1], axis=1) if n else []
    sequences = [parts[start : start + levels] for start in range(0, len(parts), levels)]
    return features.reshape(n, levels, FEATURES), sequences
