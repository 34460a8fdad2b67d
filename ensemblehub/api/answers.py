"""One answer of a reply as it is written, and what a client is told of it.

Knows the shapes of OpenAI's responses; knows no HTTP.  A reply that is streamed and one that is not are made from the
same events, so they say the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeGuard

from ensemblehub.api.catalog import Served
from ensemblehub.config.sections import Generation
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.generators.base import Engine
from ensemblehub.results import attribution, fold, merged
from ensemblehub.schema import (
    Alternative,
    Choice,
    Cost,
    Event,
    Piece,
    Request,
    Result,
    Scored,
    ScoredToken,
    Token,
    UsageLine,
    Verdict,
)

Kind = Literal["chat", "text"]
Written = Token | ScoredToken
_COUNTED = Token("")  # stands for a token of which only the number matters
_LOOSE = 64  # events that are kept one by one
_UNKNOWN = -9999.0  # OpenAI's logprob of a token that was not among the likeliest


@dataclass(eq=False)
class Answer:
    """One answer.

    Attributes:
        index: its place in the reply.
        prompt_tokens: length of its prompt for the first engine.
        alternatives: how many alternatives per token the client wants; None for no logprobs.
        thoughts: names of the fields in which insights are sent.
        echoed: the prompt, where it is to be repeated before the answer.
        as_ids: whether logprobs name tokens by their ids.
        generation: what is kept of the text.
    """

    index: int
    request: Request
    served: Served
    prompt_tokens: int
    generation: Generation
    alternatives: int | None = None
    thoughts: Sequence[str] = ("reasoning_content",)
    echoed: str | None = None
    as_ids: bool = False
    context_tokens: int | None = None
    ledger: UsageLedger = field(default_factory=UsageLedger)
    events: list[Event] = field(default_factory=list)
    read: Scored | None = None
    started: float = field(default_factory=time.perf_counter)
    ended: float = 0.0
    insight_tokens: int = 0
    answer_tokens: int = 0
    text_at: int = 0  # characters sent, for `text_offset`
    untold: dict[str, Any] = field(default_factory=dict)  # of the extension `ensemble`, for the next chunk
    silent: list[Piece] = field(default_factory=list)  # what had no text yet, for the next chunk
    _settled: int = 0  # events that are joined
    _read: dict[str, int | None] = field(default_factory=dict)  # tokens of the prompt by engine

    def take(self, event: Event) -> None:
        """Keep an event; of a long answer that nobody wants logprobs of, no more objects than its text needs."""
        if isinstance(event, Piece) and self.alternatives is None:
            event = replace(event, tokens=(_COUNTED,) * counted(event))
        if is_insight(event):
            self.insight_tokens += counted(event)
        elif is_answer(event):
            self.answer_tokens += counted(event)
        self.events.append(event)
        if len(self.events) - self._settled > _LOOSE:
            self.events[self._settled :] = _joined(self.events[self._settled :])
            self._settled = len(self.events) - 1  # the last piece may go on

    @property
    def ensemble(self) -> AsyncEnsemble:
        """What answers."""
        return self.served.ensemble

    @property
    def likelihood(self) -> bool:
        """Whether the log-likelihood of the prompt is wanted."""
        return self.echoed is not None and self.alternatives is not None

    @property
    def result(self) -> Result:
        """The whole of it."""
        return fold(self.events, self.ledger, (self.ended or time.perf_counter()) - self.started)

    @property
    def engine(self) -> Engine:
        """The engine that answers: the first one, until there is some text of another."""
        authors = [event.engine for event in self.events if is_answer(event)]
        name = authors[-1].partition("+")[0] if authors else ""
        return next(
            (engine for engine in self.ensemble.engines if engine.name == name), self.ensemble.engines[0]
        )

    @property
    def read_tokens(self) -> int:
        """Tokens of the prompt for the engine that answers; for the first one where it cannot tell."""
        known = self.read_by(self.engine)
        return self.prompt_tokens if known is None else known

    def read_by(self, engine: Engine) -> int | None:
        """Tokens of the prompt for an engine, counted once; None where it cannot tell."""
        if engine.name not in self._read:
            self._read[engine.name] = engine.count(self.request)
        return self._read[engine.name]

    @property
    def estimated_alone(self) -> tuple[float, float, float] | None:
        """Estimated FLOPs of the mentor alone: expected, and a 95 % interval."""
        return self.served.estimated_alone(self.request)

    @property
    def held(self) -> bool:
        """Whether its text can be known at its end only: what stands behind the last of some marks."""
        return bool(self.generation.extract_after)


def _joined(events: Iterable[Event]) -> list[Event]:
    """Neighbouring pieces of one author joined, other events where they are."""
    found, run = list[Event](), list[Piece]()
    for event in events:
        if isinstance(event, Piece):
            run.append(event)
            continue
        found += [*merged(run), event]
        run = []
    return [*found, *merged(run)]


def is_answer(event: object) -> TypeGuard[Piece]:
    """Whether a client sees this as the answer's text."""
    return isinstance(event, Piece) and event.purpose == "answer" and event.visible


def is_insight(event: object) -> TypeGuard[Piece]:
    """Whether a client sees this as reasoning."""
    return isinstance(event, Piece) and event.purpose == "insight" and event.visible


def opening(kind: Kind, answer: Answer) -> dict[str, Any]:
    """The first choice of a stream: the role, and who takes part."""
    engines = answer.ensemble.engines
    start = {
        "method": answer.served.aggregation.method,
        "members": [engine.name for engine in engines],
        "roles": {part: engine.name for part, engine in answer.ensemble.aggregation.parts(engines).items()},
        "estimated_mentor_alone_flops": answer.estimated_alone,
    }
    said = None if answer.request.extra.get("tools") else ""  # a tool call has no content
    part = {"delta": {"role": "assistant", "content": said}} if kind == "chat" else {"text": ""}
    return choice(answer, part) | {"ensemble": {"start": start}}


def closing(kind: Kind, answer: Answer, finish: str | None) -> dict[str, Any]:
    """The last choice of a stream that does not end with a piece of the answer, with all that waits to be told."""
    return choice(answer, _delta(kind), finish) | {"ensemble": _told(answer)}


def chunk(kind: Kind, answer: Answer, event: Event | Scored) -> dict[str, Any] | None:
    """What a stream says of one event: `choices` and the extension `ensemble`; None where it says nothing yet.

    What has no text waits for the next chunk that has some: verdicts, choices, and tokens that complete no character.
    So no delta is empty but the last one; clients take an empty one for the end of an insight.
    """
    if isinstance(event, Verdict):
        answer.untold.setdefault("verdicts", []).append(asdict(event))
        answer.untold |= {"flops": answer.ledger.total.flops, "cold_flops": answer.ledger.total.cold_flops}
        return None
    if isinstance(event, Choice):
        answer.untold.setdefault("choices", []).append(asdict(event))
        return None
    if isinstance(event, Scored):
        known = logprobs(kind, answer, event.tokens)
        return choice(answer, _delta(kind, answer.echoed or ""), logprobs=known) | {"ensemble": _told(answer)}
    if not (is_insight(event) or is_answer(event)):
        return None
    answer.silent.append(event)
    if not (event.finish or _heard(answer, event)):
        return None
    pieces = [piece for piece in answer.silent if piece.purpose == event.purpose]
    answer.silent = []
    return _piece(kind, answer, pieces)


def _heard(answer: Answer, piece: Piece) -> bool:
    """Whether a client gets something of a piece at once."""
    told = bool(answer.thoughts) if is_insight(piece) else not answer.held
    return told and bool(piece.text or piece.tool_calls)


def _piece(kind: Kind, answer: Answer, pieces: Sequence[Piece]) -> dict[str, Any]:
    """One chunk of some pieces, of which only the last may have text; of a held answer, all of them."""
    last, tokens = pieces[-1], sum(map(counted, pieces))
    by = {"engine": last.engine, "purpose": last.purpose, "tokens": tokens, "round": last.round}
    said = {"ensemble": _told(answer) | by}
    if is_insight(last):
        thought = dict.fromkeys(answer.thoughts, last.text)
        return choice(answer, {"delta": thought} if kind == "chat" else {"text": "", **thought}) | said
    text = answer.generation.extracted(answer.result.text) if answer.held else last.text
    part = _delta(kind, text)
    if calls := [call for piece in pieces for call in piece.tool_calls]:
        part["delta"]["tool_calls"] = calls
    known = logprobs(kind, answer, [token for piece in pieces for token in piece.tokens])
    return choice(answer, part, last.finish, known) | said


def _told(answer: Answer) -> dict[str, Any]:
    untold, answer.untold = answer.untold, {}
    return untold


def choice(
    answer: Answer, part: Mapping[str, Any], finish: str | None = None, logprobs: Any = None
) -> dict[str, Any]:
    """A list of one choice."""
    return {"choices": [{"index": answer.index, **part, "logprobs": logprobs, "finish_reason": finish}]}


def _delta(kind: Kind, text: str = "") -> dict[str, Any]:
    if kind == "text":
        return {"text": text}
    return {"delta": {"content": text} if text else {}}


def whole(kind: Kind, answer: Answer) -> dict[str, Any]:
    """A choice of a reply that is not streamed."""
    result = answer.result
    text, insight = answer.generation.extracted(result.text), result.insight
    tokens = [token for piece in result.pieces if is_answer(piece) for token in piece.tokens]
    chosen = next((one.chosen for one in reversed(result.choices) if one.about == "models"), None)
    metadata = {
        "selected_models": list(chosen) if chosen else [engine.name for engine in answer.ensemble.engines],
        "method": answer.served.aggregation.method,
        "attribution": attribution(result),
        "verdicts": [asdict(verdict) for verdict in result.verdicts],
        "choices": [asdict(one) for one in result.choices],
    }
    thought = dict.fromkeys(answer.thoughts, insight) if insight else {}
    read = answer.read.tokens if answer.read else ()
    body: dict[str, Any] = {"text": (answer.echoed or "") + text, **thought}
    if kind == "chat":
        calls = [call for piece in result.pieces for call in piece.tool_calls]
        called = {"tool_calls": tool_calls(calls)} if calls else {}
        content = text or (None if calls else "")
        body = {"message": {"role": "assistant", "content": content, "refusal": None, **thought, **called}}
    known = logprobs(kind, answer, [*read, *tokens])
    return {
        "index": answer.index,
        **body,
        "logprobs": known,
        "finish_reason": result.finish or "length",
        "metadata": metadata,
    }


def logprobs(kind: Kind, answer: Answer, tokens: Sequence[Written]) -> dict[str, Any] | None:
    """Logprobs of tokens in the form of chat or of text completions; None where they are not wanted."""
    if answer.alternatives is None:
        return None
    if kind == "chat":
        return {"content": [_entry(token) for token in tokens], "refusal": None}
    offsets = []
    for token in tokens:
        offsets.append(answer.text_at)
        answer.text_at += len(token.text)
    exact = all(engine.exact for engine in answer.ensemble.engines)
    return {
        "tokens": [_named(token, answer.as_ids) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_likeliest(token, answer.alternatives, answer.as_ids) for token in tokens],
        "text_offset": offsets,
        "entropies": [token.entropy if exact else None for token in tokens],
    }


def _entry(token: Written) -> dict[str, Any]:
    return _shown(token) | {"top_logprobs": [_shown(one) for one in token.top]}


def _shown(token: Written | Alternative) -> dict[str, Any]:
    """A token with its own bytes: those of all tokens, joined, are those of the text."""
    logprob = _UNKNOWN if token.logprob is None else token.logprob
    own = token.text.encode() if token.part is None else token.part
    return {"token": token.text, "logprob": max(logprob, _UNKNOWN), "bytes": list(own)}


def _likeliest(token: Written, count: int, as_ids: bool) -> dict[str, float] | None:
    """The likeliest tokens and the one that stands there, by text or id; None where nothing is known."""
    if token.logprob is None:
        return None
    found: dict[str, float] = {}
    for one in token.top[:count]:
        found.setdefault(_named(one, as_ids), one.logprob)
    name = _named(token, as_ids)
    found[name] = max(token.logprob, found.get(name, token.logprob))
    return found


def _named(token: Written | Alternative, as_ids: bool) -> str:
    """A token in text completions: a part of a character by its bytes, as OpenAI's API names it."""
    if as_ids and token.id is not None:
        return f"token_id:{token.id}"
    return token.text if token.part is None else "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.part)


def tool_calls(parts: Iterable[Any]) -> list[dict[str, Any]]:
    """Whole tool calls from their parts: names come once, arguments bit by bit."""
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        call = calls.setdefault(part.get("index", 0), {"id": "", "type": "function", "function": {}})
        call["id"] = call["id"] or part.get("id") or ""
        for key, value in (part.get("function") or {}).items():
            call["function"][key] = call["function"].get(key, "") + (value or "")
    return [calls[index] for index in sorted(calls)]


def counted(piece: Piece) -> int:
    """Tokens of a piece; one where its engine tells none."""
    return max(len(piece.tokens), bool(piece.text))


def usage(answers: Sequence[Answer], per_prompt: int) -> dict[str, Any]:
    """What a reply has used, in OpenAI's form, with dollars in `cost` and every call in `cost_details`.

    Args:
        per_prompt: answers to each prompt; a prompt counts once.
    """
    prompts = [_prompt(answer) for answer in answers[::per_prompt]]
    cached = sum(known for _, known in prompts)
    insight = sum(answer.insight_tokens for answer in answers)
    return {
        **_tokens(sum(read for read, _ in prompts), insight + sum(map(_answered, answers))),
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": insight},
        "cost": dollars(answers),
        "cost_details": cost(answers),
    }


def usage_so_far(answers: Sequence[Answer], per_prompt: int) -> dict[str, int]:
    """What a stream has used up to now."""
    read = sum(answer.read_tokens for answer in answers[::per_prompt])
    return _tokens(read, sum(answer.insight_tokens + answer.answer_tokens for answer in answers))


def _tokens(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _prompt(answer: Answer) -> tuple[int, int]:
    """Tokens of the client's prompt for the engine that answers, and how many of them it had computed before."""
    engine = answer.engine
    calls = [call.cost for call in answer.ledger.calls if call.engine == engine.name]
    first = calls[0] if calls else Cost()
    known = answer.read_by(engine)
    read = first.prompt_tokens if known is None else known
    return read, min(read, first.cached_tokens)


def _answered(answer: Answer) -> int:
    """Tokens of the answer; those of tool calls are known from the bill, since no text shows them."""
    if not any(isinstance(event, Piece) and event.tool_calls for event in answer.events):
        return answer.answer_tokens
    billed = [call.cost for call in answer.ledger.calls if call.purpose == "answer"]
    return max(answer.answer_tokens, sum(one.completion_tokens - one.discarded_tokens for one in billed))


def dollars(answers: Sequence[Answer]) -> float | None:
    """What the answers cost in US dollars; None where no price is known."""
    spent = sum(call.cost.usd for answer in answers for call in answer.ledger.calls)
    priced = any(engine.info.price for answer in answers for engine in answer.ensemble.engines)
    return spent if spent or priced else None


def cost(answers: Sequence[Answer]) -> dict[str, Any]:
    """Every call of every engine, and what the mentor alone would have cost, where that can be estimated.

    The two are compared cold: `cold_flops` is what these calls cost, and the estimate what the mentor costs, where no
    cache holds anything of an earlier request.
    """
    ledger = UsageLedger([call for answer in answers for call in answer.ledger.calls])
    total, alone = ledger.total, estimated(answers)
    return {
        "flops": total.flops,
        "cold_flops": total.cold_flops,
        "usd": total.usd,
        "seconds": total.seconds,
        "estimated": total.estimated,
        "spent": [_line(line) for line in ledger.usage.lines],
        "estimated_mentor_alone_flops": alone,
        "estimated_saving": 1 - total.cold_flops / alone[0] if alone and alone[0] else None,
    }


def estimated(answers: Iterable[Answer]) -> list[float] | None:
    """Estimated FLOPs of the mentor alone for all answers: expected, and the ends of the 95 % intervals added up."""
    found = [answer.estimated_alone for answer in answers]
    known = [one for one in found if one is not None]
    return (
        [sum(values) for values in zip(*known, strict=True)] if known and len(known) == len(found) else None
    )


def _line(line: UsageLine) -> dict[str, Any]:
    one = line.cost
    return {
        "engine": line.engine,
        "purpose": line.purpose,
        "calls": one.calls,
        "prompt_tokens": one.prompt_tokens,
        "cached_tokens": one.cached_tokens,
        "completion_tokens": one.completion_tokens,
        "discarded_tokens": one.discarded_tokens,
        "flops": one.flops,
        "prefill_flops": one.prefill_flops,
        "decode_flops": one.decode_flops,
        "usd": one.usd,
        "seconds": one.seconds,
        "estimated": one.estimated,
    }
