"""The blocks of an answer, for APIs that send it as a list of them: reasoning, text, calls of tools.

`/v1/responses` and `/v1/messages` are written from the chunks of chat completions: a `BlockWire` opens, fills and
closes blocks, and its subclasses say how each step looks on the wire.  A reply that is not streamed is the
same stream, folded.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import orjson

from ensemblehub.api.chunks import chunks
from ensemblehub.api.job import AnswerEvent, AnswerRecord, GenerationJob
from ensemblehub.api.problems import Problem
from ensemblehub.api.streaming import Framing
from ensemblehub.api.usage import metadata, usage

WireEvent = dict[str, Any]


@dataclass
class Block:
    """A part of an answer.

    Attributes:
        text: what was written so far; of a tool call, its arguments as JSON.
        call: id of a tool call.
        name: the tool.
    """

    kind: Literal["reasoning", "text", "tool"]
    index: int
    text: str = ""
    call: str = ""
    name: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class BlockWire(Framing, ABC):
    """The events of one answer in the form of another API.

    Attributes:
        id: what the ids of the reply and its parts end with.
        blocks: those begun so far.
        finish: why the answer ended; None until then.
    """

    end = b""

    def __init__(self, job: GenerationJob) -> None:
        self.job = job
        (self.answer,) = job.answers
        self.id = job.id.partition("-")[2]
        self.blocks: list[Block] = []
        self.finish: str | None = None
        self._open: Block | None = None
        self._calls: dict[int, Block] = {}

    def frame(self, event: WireEvent) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))

    @abstractmethod
    def opening(self) -> Iterable[WireEvent]:
        """Before the first block."""

    @abstractmethod
    def opened(self, block: Block) -> Iterable[WireEvent]:
        """At the start of a block."""

    @abstractmethod
    def added(self, block: Block, text: str, logprobs: list[dict[str, Any]]) -> Iterable[WireEvent]:
        """At a new text of a block."""

    @abstractmethod
    def closed(self, block: Block) -> Iterable[WireEvent]:
        """At the end of a block."""

    @abstractmethod
    def ending(self) -> Iterable[WireEvent]:
        """After the last block."""

    @abstractmethod
    def reply(self) -> dict[str, Any]:
        """The whole reply, once all events were read."""

    async def events(
        self, events: AsyncGenerator[tuple[AnswerRecord, AnswerEvent], None]
    ) -> AsyncGenerator[WireEvent, None]:
        """Turn the events of a request into those of this API.

        Raises:
            Problem: an engine failed, or a deadline passed.
        """
        begun = False
        async with aclosing(chunks(self.job, events)) as parts:
            async for part in parts:
                if not begun:
                    begun = True
                    for event in self.opening():
                        yield event
                for choice in part["choices"]:
                    for event in self._choice(choice):
                        yield event
        for event in (*self._close(), *self.ending()):
            yield event

    def _choice(self, choice: Mapping[str, Any]) -> Iterator[WireEvent]:
        delta = choice["delta"]
        self.finish = choice["finish_reason"] or self.finish
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            yield from self._write("reasoning", thought)
        logprobs = (choice["logprobs"] or {}).get("content", [])
        if text := delta.get("content"):
            yield from self._write("text", text, logprobs)
        for call in delta.get("tool_calls") or ():
            yield from self._call(call)

    def _write(
        self, kind: Literal["reasoning", "text"], text: str, logprobs: list[dict[str, Any]] | None = None
    ) -> Iterator[WireEvent]:
        block = self._open
        if block is None or block.kind != kind:
            block = Block(kind, len(self.blocks))
            yield from self._begin(block)
        yield from self._add(block, text, logprobs or [])

    def _call(self, part: Mapping[str, Any]) -> Iterator[WireEvent]:
        """A part of a tool call: names come once, arguments bit by bit, one call after another."""
        function, index = part.get("function") or {}, part.get("index", 0)
        if index not in self._calls:
            call = part.get("id") or f"call_{uuid.uuid4().hex}"
            self._calls[index] = Block("tool", len(self.blocks), call=call, name=function.get("name") or "")
            yield from self._begin(self._calls[index])
        block = self._calls[index]
        if arguments := function.get("arguments"):
            if block is not self._open:
                raise Problem(502, "the model's tool calls came in parts that are mixed up", "engine_error")
            yield from self._add(block, arguments, [])

    def _begin(self, block: Block) -> Iterator[WireEvent]:
        yield from self._close()
        self.blocks.append(block)
        self._open = block
        yield from self.opened(block)

    def _add(self, block: Block, text: str, logprobs: list[dict[str, Any]]) -> Iterator[WireEvent]:
        block.text += text
        block.logprobs += logprobs
        yield from self.added(block, text, logprobs)

    def _close(self) -> Iterator[WireEvent]:
        block, self._open = self._open, None
        if block is not None:
            yield from self.closed(block)

    @cached_property
    def usage(self) -> dict[str, Any]:
        """The usage, as in chat completions, once all events were read."""
        return usage(self.job.answers, self.job.per_prompt)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Who took part, who wrote what, verdicts and choices, once all events were read."""
        return metadata(self.answer)
