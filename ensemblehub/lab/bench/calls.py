"""Model calls that are made once and serve every cell of a bench (`--reuse`)."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ensemblehub.artifacts import hash_of
from ensemblehub.cost import Cost, ModelInfo, UsageMeter
from ensemblehub.errors import ArtifactError
from ensemblehub.generators.base import Decoder, Engine
from ensemblehub.generators.wrapped import WrappedEngine
from ensemblehub.schema import Piece, Request, Scored


@dataclass(frozen=True)
class Call:
    """A finished call: what the model wrote or predicted, and what the engine recorded for it.

    Attributes:
        usage: arguments of `UsageMeter.record`.
    """

    usage: dict[str, Any]
    pieces: tuple[Piece, ...] = ()
    scored: Scored | None = None

    def until(self, tokens: int) -> dict[str, Any]:
        """The usage of a stream that is closed after so many tokens; time in proportion."""
        usage, written = dict(self.usage), self.usage.get("completion_tokens", 0)
        share = tokens / max(1, written)
        usage |= {"completion_tokens": tokens, "discarded_tokens": 0}
        usage["seconds"] = usage.get("seconds", 0.0) * share
        if usage.get("ids") is not None:
            usage["ids"] = usage["ids"][: len(usage["ids"]) - written + tokens]
        if usage.get("usd") is not None:
            usage |= {"usd": usage["usd"] * share, "estimated": True}
        if usage.get("flops") is not None:
            usage |= {"flops": [value * share for value in usage["flops"]], "estimated": True}
        return usage


_PARTS = TypeAdapter(
    tuple[dict[str, Any], tuple[Piece, ...], Scored | None],
    config={"ser_json_bytes": "base64", "val_json_bytes": "base64"},
)


class Calls:
    """The finished calls of a bench, in an SQLite file.

    Args:
        force: forget those of before.

    Raises:
        ArtifactError: the file cannot be opened, or holds something else.
    """

    def __init__(self, path: Path, force: bool = False) -> None:
        self.path = path
        try:
            if force:
                path.unlink(missing_ok=True)
            self._file = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA synchronous = OFF")  # a call that a power cut takes is made again
            self._file.execute("CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, call BLOB NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise ArtifactError(f"{path}: {error}; delete it to make its calls again") from error

    def get(self, key: str) -> Call | None:
        """The call with this key.

        Raises:
            ArtifactError: the file is damaged.
        """
        try:
            row = self._file.execute("SELECT call FROM calls WHERE key = ?", (key,)).fetchone()
            return Call(*_PARTS.validate_json(zlib.decompress(row[0]))) if row else None
        except (sqlite3.Error, zlib.error, ValueError) as error:
            raise ArtifactError(
                f"{self.path} is damaged: {error}; delete it to make its calls again"
            ) from error

    def put(self, key: str, call: Call) -> None:
        """Keep a call.

        Raises:
            ArtifactError: it cannot be written.
        """
        try:
            data = zlib.compress(_PARTS.dump_json((call.usage, call.pieces, call.scored)))
            self._file.execute("INSERT OR REPLACE INTO calls VALUES (?, ?)", (key, data))
        except sqlite3.Error as error:
            raise ArtifactError(f"cannot write {self.path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True)
class _Recorder(UsageMeter):
    """A meter that also keeps what the engine records.

    Attributes:
        reads: whether the predictions of all tokens are returned.
    """

    reads: bool = False
    usages: list[dict[str, Any]] = field(default_factory=list)

    def record(self, engine: str, info: ModelInfo, **usage: Any) -> Cost:
        if usage.get("ids") is not None:
            ids = usage["ids"] = list(usage["ids"])
            known = self.ledger.computed(engine, ids[: usage["prompt_tokens"]], self.reads)
            usage["reading"] = self.reads
            usage["cached_tokens"] = known if self.reads else min(known, usage["prompt_tokens"] - 1)
        self.usages.append(usage)
        return super().record(engine, info, **usage)


class ReusedEngine(WrappedEngine):
    """An engine whose finished calls are kept, and answer the same request the next time.

    A request is the same where prompt, sampling and the model with its options are equal, and it is greedy or
    has a seed.  Its cost is recorded as if it were made, with a cache that only the same question has filled;
    a stream that is closed early has cost what was taken.  Next-token distributions (`decoder`) are always
    computed.

    Args:
        identity: what decides the answers of this engine besides the request.
    """

    def __init__(self, engine: Engine, identity: Any, calls: Calls) -> None:
        super().__init__(engine)
        self._identity, self._calls = identity, calls

    async def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        key = self._key("stream", request)
        known = self._calls.get(key) if key else None
        recorder, taken = _Recorder(meter.ledger, meter.purpose), list[Piece]()
        stream = self._again(known, recorder) if known else self._engine.stream(request, recorder)
        try:
            async with aclosing(stream) as pieces:
                async for piece in pieces:
                    taken.append(piece)
                    yield piece
        finally:
            if key and not known and taken and taken[-1].finish and recorder.usages:
                self._calls.put(key, Call(recorder.usages[-1], tuple(taken)))

    async def _again(self, call: Call, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        tokens, is_whole = 0, False
        try:
            for piece in call.pieces:
                tokens, is_whole = tokens + piece.length, bool(piece.finish)
                yield replace(piece, purpose=meter.purpose)
        finally:
            meter.record(self.name, self.info, **(call.usage if is_whole else call.until(tokens)))

    async def score(self, request: Request, meter: UsageMeter) -> Scored:
        key = self._key("score", request)
        known = self._calls.get(key) if key else None
        recorder = _Recorder(meter.ledger, meter.purpose, reads=True)
        if known and known.scored:
            recorder.record(self.name, self.info, **known.usage)
            return known.scored
        scored = await self._engine.score(request, recorder)
        if key and recorder.usages:
            self._calls.put(key, Call(recorder.usages[-1], scored=scored))
        return scored

    def decoder(self, request: Request, meter: UsageMeter) -> Decoder:
        return self._engine.decoder(request, meter)

    def _key(self, kind: str, request: Request) -> str | None:
        """What a call is known by; None where the same request may be answered in another way."""
        sampling = request.sampling
        if sampling.temperature == 0:
            sampling = replace(sampling, seed=None)
        elif sampling.seed is None:
            return None
        return hash_of([kind, self._identity, asdict(replace(request, id="", sampling=sampling))])
