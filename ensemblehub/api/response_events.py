"""Replies of `/v1/responses`: OpenAI's typed events, and its response."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from ensemblehub.api.answering import Answering
from ensemblehub.api.blocks import Block, BlockWire, WireEvent
from ensemblehub.api.job import GenerationJob
from ensemblehub.api.problems import Problem
from ensemblehub.api.replies import AnswerMetadata, CostDetails, ReplyObject
from ensemblehub.api.responses import NamedTool, ResponsesRequest, flat

_PREFIXES = {"reasoning": "rs", "text": "msg", "tool": "fc"}
_PARTS = {"reasoning": "reasoning_text", "text": "output_text"}


class ResponseUsageObject(ReplyObject):
    """Tokens of input and output, and their cost."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int
    cost: float | None = Field(description="US dollars; null where no price is known.")
    cost_details: CostDetails


class OutputItem(ReplyObject):
    """A part of the answer: `reasoning` (a Tandem's insight), `message`, or `function_call`."""

    id: str
    type: Literal["reasoning", "message", "function_call"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] | None = None
    summary: list[Any] | None = None
    content: list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    namespace: str | None = None


class ResponseObject(ReplyObject):
    """OpenAI's response."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[OutputItem]
    usage: ResponseUsageObject | None
    error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    previous_response_id: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    reasoning: dict[str, Any]
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: Any
    parallel_tool_calls: bool
    truncation: Literal["disabled"]
    background: Literal[False]
    store: bool
    metadata: Any
    ensemble: AnswerMetadata | None = None


class DeletedResponse(ReplyObject):
    """A response that is no longer stored."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputTokens(ReplyObject):
    """The length of a prompt."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class ResponseWire(BlockWire):
    """OpenAI's typed events, numbered."""

    def __init__(self, job: GenerationJob, body: ResponsesRequest, answering: Answering) -> None:
        super().__init__(job)
        self.body = body
        self.answering = answering
        self.stored = stored = answering.stored
        self.keeps = bool(stored.count) and body.store is not False
        self._turns = body.turns(stored, job.owner) if self.keeps else []
        self._names = {flat(space, tool.name): (space, tool.name) for space, tool in body.functions}
        self._number = -1

    def failure(self, problem: Problem) -> WireEvent:
        error = {"code": "server_error", "message": problem.detail}
        return self._event("response.failed", response=self._response("failed", error=error))

    def opening(self) -> Iterator[WireEvent]:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response("in_progress"))

    def opened(self, block: Block) -> Iterator[WireEvent]:
        item = self._item(Block(block.kind, block.index, call=block.call, name=block.name), "in_progress")
        if block.kind != "tool":
            item["content"] = []
        yield self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind != "tool":
            part = _part(Block(block.kind, block.index))
            yield self._event("response.content_part.added", **self._place(block), part=part)

    def added(self, block: Block, text: str, logprobs: list[dict[str, Any]]) -> Iterator[WireEvent]:
        if block.kind == "tool":
            name, more = "response.function_call_arguments.delta", {}
        else:
            name = f"response.{_PARTS[block.kind]}.delta"
            more = {"logprobs": logprobs} if block.kind == "text" else {}
        yield self._event(name, **self._place(block), delta=text, **more)

    def closed(self, block: Block) -> Iterator[WireEvent]:
        place, item = self._place(block), self._item(block, self._status(block))
        if block.kind == "tool":
            done = {"name": item["name"], "arguments": block.text}
            yield self._event("response.function_call_arguments.done", **place, **done)
        else:
            more = {"logprobs": block.logprobs} if block.kind == "text" else {}
            name = f"response.{_PARTS[block.kind]}.done"
            yield self._event(name, **place, text=block.text, **more)
            yield self._event("response.content_part.done", **place, part=_part(block))
        yield self._event("response.output_item.done", output_index=block.index, item=item)

    def ending(self) -> Iterator[WireEvent]:
        response = self.reply()
        if self.keeps:
            self.stored.keep(self.job.owner, response, self._conversation())
            self.answering.pin(self.job, response["id"])
        yield self._event(f"response.{response['status']}", response=response)

    def reply(self) -> dict[str, Any]:
        return self._response("incomplete" if self.finish == "length" else "completed")

    def _event(self, kind: str, **fields: Any) -> WireEvent:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}

    def _place(self, block: Block) -> dict[str, Any]:
        place = {"item_id": self._name(block), "output_index": block.index}
        return place if block.kind == "tool" else {**place, "content_index": 0}

    def _name(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self.id}_{block.index}"

    def _status(self, block: Block) -> str:
        """Only the last block can be cut off."""
        return "incomplete" if self.finish == "length" and block is self.blocks[-1] else "completed"

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        item = {"id": self._name(block), "status": status}
        if block.kind == "tool":
            space, name = self._names.get(block.name, (None, block.name))
            call = {"call_id": block.call, "name": name, "arguments": block.text}
            return {**item, "type": "function_call", **call, **({"namespace": space} if space else {})}
        if block.kind == "reasoning":
            return {**item, "type": "reasoning", "summary": [], "content": [_part(block)]}
        return {**item, "type": "message", "role": "assistant", "content": [_part(block)]}

    def _response(self, status: str, error: dict[str, str] | None = None) -> dict[str, Any]:
        over = status in ("completed", "incomplete")
        sampling = self.answer.request.sampling
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.job.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "model": self.job.served.name,
            "output": [self._item(block, self._status(block)) for block in self.blocks],
            "usage": self._usage() if over else None,
            "error": error,
            "incomplete_details": cut,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "store": self.keeps,
            "ensemble": self.metadata if over else None,
            **_repeated(self.body),
        }

    def _usage(self) -> dict[str, Any]:
        found = self.usage
        cached = found["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": found["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": found["completion_tokens"],
            "output_tokens_details": found["completion_tokens_details"],
            "total_tokens": found["total_tokens"],
            "cost": found["cost"],
            "cost_details": found["cost_details"],
        }

    def _conversation(self) -> list[dict[str, Any]]:
        """The conversation with the answer, without the instructions, which are each request's own."""
        text = "".join(block.text for block in self.blocks if block.kind == "text")
        calls = [
            {"id": block.call, "type": "function", "function": {"name": block.name, "arguments": block.text}}
            for block in self.blocks
            if block.kind == "tool"
        ]
        said = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
        return [*self._turns, said]


def _part(block: Block) -> dict[str, Any]:
    """The only part of an item."""
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": block.logprobs}


def _repeated(body: ResponsesRequest) -> dict[str, Any]:
    """What a response repeats of its request."""
    form = body.text.format if body.text else None
    choice = body.tool_choice
    return {
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "max_output_tokens": body.max_output_tokens,
        "top_logprobs": body.top_logprobs or 0,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
        "tools": [
            {
                **({"parameters": None, "strict": None} if tool.type == "function" else {}),
                **tool.model_dump(exclude_none=True),
            }
            for tool in body.tools or ()
        ],
        "tool_choice": choice.model_dump() if isinstance(choice, NamedTool) else choice or "auto",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "truncation": "disabled",
        "background": False,
        "metadata": body.metadata or {},
    }
