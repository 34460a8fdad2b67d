"""Replies of `/v1/messages`: Anthropic's events, and its message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from ensemblehub.api.blocks import Block, BlockWire, WireEvent
from ensemblehub.api.problems import Problem
from ensemblehub.api.replies import AnswerMetadata, CostDetails, ReplyObject
from ensemblehub.generators.text.stops import StoppedBy

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageUsage(ReplyObject):
    """Tokens as Anthropic counts them: `input_tokens` are those that were not cached."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    cost: float | None = Field(default=None, description="US dollars; null where no price is known.")
    cost_details: CostDetails | None = None


class ReplyBlock(ReplyObject):
    """A block of the answer: `thinking` (a Tandem's insight), `text`, or a call of a tool."""

    type: Literal["thinking", "text", "tool_use"]
    text: str | None = None
    citations: None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class MessageReply(ReplyObject):
    """Anthropic's message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ReplyBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsage
    ensemble: AnswerMetadata | None = None


class CountedTokens(ReplyObject):
    """The length of a prompt."""

    input_tokens: int


class AnthropicErrorDetail(ReplyObject):
    """The kind of an error and its message."""

    type: str
    message: str
    code: str | None = None


class AnthropicError(ReplyObject):
    """Anthropic's error object."""

    type: Literal["error"]
    error: AnthropicErrorDetail


class MessageWire(BlockWire):
    """Anthropic's events."""

    keep_alive = b'event: ping\ndata: {"type": "ping"}\n\n'

    def failure(self, problem: Problem) -> WireEvent:
        return problem.anthropic_body

    def opening(self) -> Iterator[WireEvent]:
        counts = {"input_tokens": self.answer.prompt_tokens, "output_tokens": 0}
        counts |= {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
        yield {"type": "message_start", "message": self._message([], counts)}

    def opened(self, block: Block) -> Iterator[WireEvent]:
        empty = Block(block.kind, block.index, call=block.call, name=block.name)
        yield {"type": "content_block_start", "index": block.index, "content_block": _content(empty)}

    def added(self, block: Block, text: str, logprobs: list[dict[str, Any]]) -> Iterator[WireEvent]:
        delta = {"type": "text_delta", "text": text}
        if block.kind == "reasoning":
            delta = {"type": "thinking_delta", "thinking": text}
        elif block.kind == "tool":
            delta = {"type": "input_json_delta", "partial_json": text}
        yield {"type": "content_block_delta", "index": block.index, "delta": delta}

    def closed(self, block: Block) -> Iterator[WireEvent]:
        if block.kind == "reasoning":
            delta = {"type": "signature_delta", "signature": ""}
            yield {"type": "content_block_delta", "index": block.index, "delta": delta}
        yield {"type": "content_block_stop", "index": block.index}

    def ending(self) -> Iterator[WireEvent]:
        yield {
            "type": "message_delta",
            "delta": self._stop(),
            "usage": self._usage(),
            "ensemble": self.metadata,
        }
        yield {"type": "message_stop"}

    def reply(self) -> dict[str, Any]:
        message = self._message([_content(block) for block in self.blocks], self._usage())
        return message | self._stop() | {"ensemble": self.metadata}

    def _stop(self) -> dict[str, str | None]:
        """Why the answer ended, and the client's stop string that did it, where the engine tells."""
        finish = self.finish or "length"
        if isinstance(finish, StoppedBy) and finish.string in self.job.body.stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": finish.string}
        return {"stop_reason": _STOP_REASONS[finish], "stop_sequence": None}

    def _message(self, content: list[dict[str, Any]], counts: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": f"msg_{self.id}",
            "type": "message",
            "role": "assistant",
            "model": self.job.served.name,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": counts,
        }

    def _usage(self) -> dict[str, Any]:
        found = self.usage
        cached = found["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": found["prompt_tokens"] - cached,
            "output_tokens": found["completion_tokens"],
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "cost": found["cost"],
            "cost_details": found["cost_details"],
        }


def _content(block: Block) -> dict[str, Any]:
    """A block of a message; arguments of a tool that are no JSON object are an error of the model's."""
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": block.text, "citations": None}
    return {"type": "tool_use", "id": block.call, "name": block.name, "input": _arguments(block)}


def _arguments(block: Block) -> dict[str, Any]:
    """A tool's arguments.

    Raises:
        Problem: they are no JSON object.
    """
    try:
        found = json.loads(block.text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        text = f"the model called {block.name!r} with arguments that are no JSON object"
        raise Problem(502, text, "engine_error")
    return found
