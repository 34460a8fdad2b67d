"""A reply that is not streamed, made from the same events as the chunks of a streamed one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ensemblehub.api.chunks import OBJECTS, logprobs, reply_head
from ensemblehub.api.job import AnswerRecord, GenerationJob, Kind, is_answer
from ensemblehub.api.usage import metadata, usage


def completion(job: GenerationJob) -> dict[str, Any]:
    """OpenAI's `chat.completion` or `text_completion` object."""
    choices = [_choice(job.kind, answer) for answer in job.answers]
    return {**reply_head(job, OBJECTS), "choices": choices, "usage": usage(job.answers, job.per_prompt)}


def _choice(kind: Kind, answer: AnswerRecord) -> dict[str, Any]:
    result = answer.result
    text = answer.generation.extracted(result.text)
    reasoning = dict.fromkeys(answer.reasoning_fields, result.insight) if result.insight else {}
    body: dict[str, Any] = {"text": (answer.echoed or "") + text, **reasoning}
    if kind == "chat":
        calls = tool_calls(call for piece in result.pieces for call in piece.tool_calls)
        content = text or (None if calls else "")
        message = {"role": "assistant", "content": content, "refusal": None, **reasoning}
        body = {"message": message | ({"tool_calls": calls} if calls else {})}
    scored = answer.scored.tokens if answer.scored else ()
    written = [token for piece in result.pieces if is_answer(piece) for token in piece.tokens]
    return {
        "index": answer.index,
        **body,
        "logprobs": logprobs(kind, answer, [*scored, *written]),
        "finish_reason": result.finish or "length",
        "metadata": metadata(answer),
    }


def tool_calls(parts: Iterable[Any]) -> list[dict[str, Any]]:
    """Whole tool calls from their streamed parts: names come once, arguments bit by bit."""
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        call = calls.setdefault(part.get("index", 0), {"id": "", "type": "function", "function": {}})
        call["id"] = call["id"] or part.get("id") or ""
        for key, value in (part.get("function") or {}).items():
            call["function"][key] = call["function"].get(key, "") + (value or "")
    return [calls[index] for index in sorted(calls)]
