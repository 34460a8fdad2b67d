"""OpenAI's chunks from the events of a request, and `logprobs`.

No delta is empty between the first and the last, since clients take an empty one for the end of an insight:
verdicts, choices and tokens that complete no character come with the next chunk that has text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from ensemblehub.api.job import (
    AnswerEvent,
    AnswerRecord,
    GenerationJob,
    Kind,
    is_answer,
    is_insight,
)
from ensemblehub.api.problems import Problem
from ensemblehub.api.protocol import StreamOptions
from ensemblehub.api.usage import metadata, usage, usage_so_far
from ensemblehub.schema import Alternative, Choice, Piece, Scored, ScoredToken, Token, Verdict

OBJECTS = {"chat": "chat.completion", "text": "text_completion"}
CHUNK_OBJECTS = {"chat": "chat.completion.chunk", "text": "text_completion"}
_UNKNOWN = -9999.0  # OpenAI's logprob of a token that was not among the top ones
ChunkPart = dict[str, Any]  # `choices` and the extension `ensemble`


async def chunks(
    job: GenerationJob, events: AsyncGenerator[tuple[AnswerRecord, AnswerEvent], None]
) -> AsyncGenerator[dict[str, Any], None]:
    """Turn the events of a request into chunks; with `include_usage` the last has usage and metadata.

    After a failure, what was judged before it is sent, and the error is raised again.
    """
    options = job.body.stream_options or StreamOptions()
    head = reply_head(job, CHUNK_OBJECTS) | ({"usage": None} if options.include_usage else {})
    writers = [AnswerChunks(job.kind, answer) for answer in job.answers]

    def framed(part: ChunkPart) -> dict[str, Any]:
        if options.include_usage and options.continuous_usage_stats:
            return head | part | {"usage": usage_so_far(job.answers, job.per_prompt)}
        return head | part

    try:
        async with aclosing(events):
            async for answer, event in events:
                for part in writers[answer.index].parts(event):
                    yield framed(part)
    except Problem:
        for writer in writers:
            for part in writer.end(None):
                yield framed(part)
        raise
    for writer in writers:
        for part in writer.end("length"):
            yield framed(part)
    if options.include_usage:
        told = {"metadata": [metadata(answer) for answer in job.answers]}
        yield head | {"choices": [], "usage": usage(job.answers, job.per_prompt), "ensemble": told}


def reply_head(job: GenerationJob, objects: dict[str, str]) -> dict[str, Any]:
    """The fields that every chunk and every whole reply begins with."""
    return {"id": job.id, "object": objects[job.kind], "created": job.created, "model": job.served.name}


class AnswerChunks:
    """The chunks of one answer."""

    def __init__(self, kind: Kind, answer: AnswerRecord) -> None:
        self.kind, self.answer = kind, answer
        self._begun = self._finished = False
        self._info: dict[str, Any] = {}  # of the extension `ensemble`, for the next chunk
        self._pieces: list[Piece] = []  # without text so far, for the next chunk

    def parts(self, event: AnswerEvent) -> Iterator[ChunkPart]:
        """The chunks due after an event; the first event opens the answer."""
        if not self._begun:
            self._begun = True
            yield self._opening()
        if (part := self._part(event)) is not None:
            yield part

    def end(self, finish: str | None) -> Iterator[ChunkPart]:
        """A last chunk, where information is left over or no piece ended the answer with a reason."""
        finish = None if self._finished else finish
        if self._info or finish:
            yield self._choice(self._delta(), finish) | {"ensemble": self._take_info()}

    def _opening(self) -> ChunkPart:
        """The role, and which engines take part."""
        served = self.answer.served
        engines, aggregation = served.ensemble.engines, served.ensemble.aggregation
        start = {
            "method": served.aggregation.method,
            "members": [engine.name for engine in engines],
            "roles": {role: engine.name for role, engine in aggregation.parts(engines).items()},
            "estimated_mentor_alone_flops": self.answer.estimated_alone,
        }
        content = None if self.answer.request.extra.get("tools") else ""  # a tool call has no content
        delta: dict[str, Any] = (
            {"delta": {"role": "assistant", "content": content}} if self.kind == "chat" else {"text": ""}
        )
        return self._choice(delta) | {"ensemble": {"start": start}}

    def _part(self, event: AnswerEvent) -> ChunkPart | None:
        if isinstance(event, Verdict):
            total = self.answer.ledger.total
            self._info.setdefault("verdicts", []).append(asdict(event))
            self._info |= {"flops": total.flops, "cold_flops": total.cold_flops}
        elif isinstance(event, Choice):
            self._info.setdefault("choices", []).append(asdict(event))
        elif isinstance(event, Scored):
            found = logprobs(self.kind, self.answer, event.tokens)
            echoed = self._choice(self._delta(self.answer.echoed or ""), logprobs=found)
            return echoed | {"ensemble": self._take_info()}
        elif is_insight(event) or is_answer(event):
            self._pieces.append(event)
            if event.finish or self._is_sent_at_once(event):
                pieces = [piece for piece in self._pieces if piece.purpose == event.purpose]
                self._pieces = []
                return self._written(pieces)
        return None

    def _is_sent_at_once(self, piece: Piece) -> bool:
        """Whether a client gets something of the piece before the answer ends."""
        answer = self.answer
        wanted = bool(answer.reasoning_fields) if is_insight(piece) else not answer.generation.extract_after
        return wanted and bool(piece.text or piece.tool_calls)

    def _written(self, pieces: Sequence[Piece]) -> ChunkPart:
        """One chunk of some pieces; only the last has text, except where a mark holds the answer back."""
        answer, last = self.answer, pieces[-1]
        info = self._take_info() | {
            "engine": last.engine,
            "purpose": last.purpose,
            "tokens": sum(piece.length for piece in pieces),
            "round": last.round,
        }
        if self.answer.out_of_budget:
            info["finish"] = "budget"
        if is_insight(last):
            reasoning = dict.fromkeys(answer.reasoning_fields, last.text)
            thought = {"delta": reasoning} if self.kind == "chat" else {"text": "", **reasoning}
            return self._choice(thought) | {"ensemble": info}
        generation = answer.generation
        text = generation.extracted(answer.result.text) if generation.extract_after else last.text
        delta = self._delta(text)
        if calls := [call for piece in pieces for call in piece.tool_calls]:
            delta["delta"]["tool_calls"] = calls
        tokens = [token for piece in pieces for token in piece.tokens]
        self._finished |= last.finish is not None
        return self._choice(delta, last.finish, logprobs(self.kind, answer, tokens)) | {"ensemble": info}

    def _choice(self, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> ChunkPart:
        choice = {"index": self.answer.index, **delta, "logprobs": logprobs, "finish_reason": finish}
        return {"choices": [choice]}

    def _delta(self, text: str = "") -> dict[str, Any]:
        if self.kind == "text":
            return {"text": text}
        return {"delta": {"content": text} if text else {}}

    def _take_info(self) -> dict[str, Any]:
        info, self._info = self._info, {}
        return info


def logprobs(
    kind: Kind, answer: AnswerRecord, tokens: Sequence[Token | ScoredToken]
) -> dict[str, Any] | None:
    """Logprobs of tokens in the form of chat or of text completions; None where they are not wanted."""
    if answer.alternatives is None:
        return None
    if kind == "chat":
        content = [
            _chat_token(token) | {"top_logprobs": list(map(_chat_token, token.top))} for token in tokens
        ]
        return {"content": content, "refusal": None}
    offsets = []
    for token in tokens:
        offsets.append(answer.text_offset)
        answer.text_offset += len(token.text)
    exact = all(engine.exact for engine in answer.served.ensemble.engines)
    return {
        "tokens": [_name(token, answer.as_ids) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top(token, answer.alternatives, answer.as_ids) for token in tokens],
        "text_offset": offsets,
        "entropies": [token.entropy if exact else None for token in tokens],
    }


def _chat_token(token: Token | ScoredToken | Alternative) -> dict[str, Any]:
    """A token with its own bytes: those of all tokens, joined, are those of the text."""
    logprob = _UNKNOWN if token.logprob is None else token.logprob
    own = token.text.encode() if token.part is None else token.part
    return {"token": token.text, "logprob": max(logprob, _UNKNOWN), "bytes": list(own)}


def _top(token: Token | ScoredToken, count: int, as_ids: bool) -> dict[str, float] | None:
    """The top tokens and the written one, by text or id; None where nothing is known."""
    if token.logprob is None:
        return None
    found: dict[str, float] = {}
    for alternative in token.top[:count]:
        found.setdefault(_name(alternative, as_ids), alternative.logprob)
    name = _name(token, as_ids)
    found[name] = max(token.logprob, found.get(name, token.logprob))
    return found


def _name(token: Token | ScoredToken | Alternative, as_ids: bool) -> str:
    """A token in text completions: a part of a character by its bytes, as OpenAI's API names it."""
    if as_ids and token.id is not None:
        return f"token_id:{token.id}"
    return token.text if token.part is None else "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.part)
