"""The records of a request for generation: its answers, their events and their usage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, TypeGuard

from ensemblehub.api.admission import Reservation
from ensemblehub.api.budget import Spending
from ensemblehub.api.catalog import Served
from ensemblehub.api.protocol import GenerationRequest
from ensemblehub.config.sections import Generation
from ensemblehub.cost import UsageLedger
from ensemblehub.generators.base import Engine
from ensemblehub.results import fold, merged
from ensemblehub.schema import Chat, Event, Piece, Request, Result, Sampling, Scored, Token

Kind = Literal["chat", "text"]
AnswerEvent = Event | Scored
_COUNTED = Token("")  # stands for a token of which only the number matters
_UNMERGED = 64  # latest events that are kept as they came


@dataclass(eq=False)
class AnswerRecord:
    """An answer of a reply: its request, the events so far and the usage.

    Attributes:
        index: its place in the reply.
        prompt_tokens: length of its prompt for the engine that reads raw prompts.
        generation: what is kept of the text.
        alternatives: alternatives per token that the client wants; None for no logprobs.
        reasoning_fields: names of the fields in which insights are sent.
        echoed: the prompt, where it is repeated before the answer.
        as_ids: whether logprobs name tokens by their ids.
        scored: the tokens of an echoed prompt.
        spending: what the request may spend; None without a limit.
        out_of_budget: whether the answer was ended by that limit.
    """

    index: int
    request: Request
    served: Served
    prompt_tokens: int
    generation: Generation
    alternatives: int | None = None
    reasoning_fields: Sequence[str] = ("reasoning_content",)
    echoed: str | None = None
    as_ids: bool = False
    context_tokens: int | None = None
    ledger: UsageLedger = field(default_factory=UsageLedger)
    events: list[Event] = field(default_factory=list)
    scored: Scored | None = None
    spending: Spending | None = None
    out_of_budget: bool = False
    started: float = field(default_factory=time.perf_counter)
    ended: float = 0.0
    insight_tokens: int = 0
    answer_tokens: int = 0
    text_offset: int = 0  # characters of which logprobs were given
    _merged: int = 0  # leading events that are merged
    _result: Result | None = None  # once the answer has ended
    _prompt_tokens: dict[str, int | None] = field(default_factory=dict)  # by engine

    def add(self, event: AnswerEvent) -> None:
        """Keep an event; without logprobs, tokens are only counted and pieces of one author are merged."""
        if isinstance(event, Scored):
            self.scored = event
            return
        if isinstance(event, Piece) and self.alternatives is None:
            event = replace(event, tokens=(_COUNTED,) * event.length)
        if is_insight(event):
            self.insight_tokens += event.length
        elif is_answer(event):
            self.answer_tokens += event.length
        self.events.append(event)
        if len(self.events) - self._merged > _UNMERGED:
            self.events[self._merged :] = _with_pieces_merged(self.events[self._merged :])
            self._merged = len(self.events) - 1  # the last piece may go on

    @property
    def wants_likelihood(self) -> bool:
        """Whether the request asks for the log-likelihood of the prompt."""
        return self.echoed is not None and self.alternatives is not None

    @property
    def as_configured(self) -> bool:
        """Whether the request changes nothing that decides the answer; a certificate holds for no other."""
        request, ensemble, prompt = self.request, self.served.ensemble, self.request.prompt
        decides = partial(_deciding, together=ensemble.aggregation.bounds_together)
        return (
            self.served.base is None
            and decides(request.sampling) == decides(ensemble.sampling)
            and self.generation.extract_after == [mark for mark in ensemble.generation.extract_after if mark]
            and not request.extra
            and not (isinstance(prompt, Chat) and prompt.thinking is not None)
            and not self.wants_likelihood
            and not self.out_of_budget
        )

    @property
    def result(self) -> Result:
        """The answer so far; once it has ended it is folded no more."""
        if self._result is None:
            result = fold(self.events, self.ledger, (self.ended or time.perf_counter()) - self.started)
            if not self.ended:
                return result
            self._result = result
        return self._result

    @cached_property
    def estimated_alone(self) -> tuple[float, float, float] | None:
        """The estimated FLOPs of the mentor alone: mean and 95 % interval; None if unknown."""
        return self.served.estimated_alone(self.request)

    @property
    def engine(self) -> Engine:
        """The engine that wrote last; the first one while there is no text."""
        engines = self.served.ensemble.engines
        authors = [event.engine for event in self.events if is_answer(event)]
        name = authors[-1].partition("+")[0] if authors else ""
        return next((engine for engine in engines if engine.name == name), engines[0])

    def prompt_tokens_for(self, engine: Engine) -> int | None:
        """Return the number of prompt tokens for an engine (cached), or None if it cannot count."""
        if engine.name not in self._prompt_tokens:
            self._prompt_tokens[engine.name] = engine.count(self.request)
        return self._prompt_tokens[engine.name]


def _deciding(sampling: Sampling, together: bool) -> Sampling:
    """The sampling without what leaves a complete answer as it is.

    Args:
        together: whether `max_completion_tokens` bounds more than the answer, which `max_tokens` bounds already.
    """
    return replace(
        sampling,
        seed=sampling.seed if sampling.temperature else None,
        top_logprobs=0,
        fit_context=True,  # where it is not, what does not fit is refused
        max_completion_tokens=sampling.max_completion_tokens if together else None,
    )


def _with_pieces_merged(events: Iterable[Event]) -> list[Event]:
    """The events with neighbouring pieces of one author merged."""
    found, pieces = list[Event](), list[Piece]()
    for event in events:
        if isinstance(event, Piece):
            pieces.append(event)
            continue
        found += [*merged(pieces), event]
        pieces = []
    return [*found, *merged(pieces)]


def is_answer(event: object) -> TypeGuard[Piece]:
    """Return whether clients receive the piece as answer text."""
    return isinstance(event, Piece) and event.purpose == "answer" and event.visible


def is_insight(event: object) -> TypeGuard[Piece]:
    """Return whether clients receive the piece as reasoning."""
    return isinstance(event, Piece) and event.purpose == "insight" and event.visible


@dataclass
class GenerationJob:
    """A generation request and its answers in progress.

    Attributes:
        per_prompt: answers to each prompt.
        reservation: its answers' places in the queue.
        first_token_seconds: None while there is no token.
        owner: whose key asked; empty without keys.
        outcome: `ok`, an error's code, `disconnected`, or `stopped` with the server.
        log_text: whether a log may hold what was asked and answered.
    """

    kind: Kind
    body: GenerationRequest
    served: Served
    answers: list[AnswerRecord]
    per_prompt: int
    id: str
    reservation: Reservation
    created: int = field(default_factory=lambda: int(time.time()))
    started: float = field(default_factory=time.perf_counter)
    first_token_seconds: float | None = None
    owner: str = ""
    outcome: str = "ok"
    log_text: bool = False

    def summary(self) -> dict[str, Any]:
        """Details for a log line; no word of prompt or answer unless `log_text`."""
        first = self.first_token_seconds
        details = {
            "model": self.served.name,
            "outcome": self.outcome,
            "answers": len(self.answers),
            "prompt_tokens": sum(answer.prompt_tokens for answer in self.answers[:: self.per_prompt]),
            "written_tokens": sum(answer.ledger.total.completion_tokens for answer in self.answers),
            "first_token_seconds": None if first is None else round(first, 6),
        }
        if self.log_text:
            details["request"] = self.body.model_dump(exclude_none=True)
            details["answers"] = [answer.result.text for answer in self.answers]
        return details
