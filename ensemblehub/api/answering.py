"""From a request to its answers: checked, admitted, written within a deadline, measured.

Knows the catalog, the queue and the limits; knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ensemblehub.api.admission import Admission, Entry
from ensemblehub.api.answers import Answer, Kind, is_answer, is_insight
from ensemblehub.api.catalog import Catalog, Served
from ensemblehub.api.job import Job
from ensemblehub.api.lengths import lengths
from ensemblehub.api.monitoring import Monitor
from ensemblehub.api.problems import Problem, problem_of, public
from ensemblehub.api.protocol import ChatRequest, CompletionRequest, Generate
from ensemblehub.config.sections import Generation, ServerSection
from ensemblehub.ensemble_methods.output_aggregation.single import Single
from ensemblehub.ensemble_methods.raw_prompts import tokenizer_of
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Choice, Event, Prompt, Request, Scored, Text, TokenIds

log = logging.getLogger(__name__)
Told = tuple[Answer, Event | Scored]
Tell = Callable[[Answer, Event | Scored], Awaitable[None]]


class Answering:
    """Answers requests, each within the limits and on the record."""

    def __init__(
        self, catalog: Catalog, settings: ServerSection, admission: Admission, monitor: Monitor
    ) -> None:
        self.catalog, self.settings, self.admission, self.monitor = catalog, settings, admission, monitor

    async def prepare(self, body: Generate, request_id: str, entry: Entry) -> Job:
        """Check a request against what is served and what is allowed; nothing is spent yet.

        Args:
            entry: what the request takes of the queue; its answers are in it afterwards.

        Raises:
            Problem: it cannot be honoured, or there is no room for it.
        """
        served = self.catalog.chosen(body.model, body.ensemble, body.reasoning_effort)
        kind: Kind = "chat" if isinstance(body, ChatRequest) else "text"
        most = min(served.ensemble.sampling.max_tokens, self.settings.max_output_tokens)
        sampling = body.sampling(replace(served.ensemble.sampling, max_tokens=most))
        if body.limit is not None:  # what is asked for is not cut
            sampling = replace(sampling, fit_context=False)
        prompts, count = body.prompts(), body.n or 1
        marks = served.ensemble.generation.extract_after if body.marks is None else body.marks
        generation = Generation(extract_after=[mark for mark in marks if mark])
        self._bounded(body, sampling.max_tokens, len(prompts) * count)
        self._honoured(body, served, bool(generation.extract_after))
        entry.admit(len(prompts) * count)
        answers: list[Answer] = []
        passed_on = _passed_on(body, served)
        requests = [
            Request(prompt, sampling, prefix, request_id, extra=passed_on) for prompt, prefix in prompts
        ]
        limits = (self.settings.max_prompt_tokens, sampling.max_tokens)
        counts = await lengths(served.reader, requests, *limits)
        names = () if body.include_reasoning is False else self.settings.reasoning_fields
        for request, tokens in zip(requests, counts, strict=True):
            for number in range(count):
                asked = request.seeded("choice", number) if number else request
                answer = Answer(len(answers), asked, served, tokens, generation, body.alternatives, names)
                answers.append(answer)
        if isinstance(body, CompletionRequest):
            for answer in answers:
                answer.as_ids = bool(body.return_tokens_as_token_ids)
        if isinstance(body, CompletionRequest) and body.echo:
            for answer in answers:
                answer.echoed = _text(answer.request.prompt, served.reader)
                answer.context_tokens = body.ensemble.context_tokens if body.ensemble else None
        name = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"
        entry.enter([answer.prompt_tokens for answer in answers])
        return Job(kind, body, served, answers, count, name, entry, shown=self.settings.log_prompts)

    def _bounded(self, body: Generate, max_tokens: int, answers: int) -> None:
        limits = self.settings
        if max_tokens > limits.max_output_tokens:
            name = "max_tokens" if body.max_tokens == max_tokens else "max_completion_tokens"
            raise Problem(400, f"{name} is at most {limits.max_output_tokens} here", "out_of_bounds", name)
        if len(body.stops) > limits.max_stop:
            raise Problem(
                400, f"at most {limits.max_stop} stop strings are taken here", "out_of_bounds", "stop"
            )
        if answers > limits.max_answers:
            text = f"at most {limits.max_answers} answers (prompts times n) are given at a time here, not {answers}"
            raise Problem(400, text, "out_of_bounds", "n")

    def _honoured(self, body: Generate, served: Served, extracting: bool) -> None:
        """Refuse what these engines cannot do."""
        engines, name = served.ensemble.engines, served.name
        if body.alternatives is not None:
            _require(engines, "logprobs", name, "logprobs")
            if extracting:
                raise Problem(
                    400,
                    "logprobs of a part of the answer are not given: set extract_after to []",
                    None,
                    "logprobs",
                )
        if isinstance(body, ChatRequest):
            if body.continue_final_message:
                _require(engines, "prefix", name, "continue_final_message")
            if body.calls_tools:
                _alone(served, "tools")
            if "response_format" in body.passed_on:
                _alone(served, "response_format")

    async def write(self, job: Job, tell: Tell) -> None:
        """Write all answers, telling of each event as it comes; being cancelled stops every engine.

        Raises:
            Problem: what went wrong, as a client is told it.
        """
        limits = self.settings
        try:
            first = min(limits.first_token_timeout, limits.timeout)
            async with asyncio.timeout(first) as limit, aclosing(self._events(job)) as events:
                async for answer, event in events:
                    if job.first is None and (
                        is_answer(event) or is_insight(event) or isinstance(event, Scored)
                    ):
                        job.first = time.perf_counter() - job.started
                        limit.reschedule(asyncio.get_running_loop().time() + limits.timeout - job.first)
                    await tell(answer, event)
        except asyncio.CancelledError:
            job.outcome = "disconnected"
            raise
        except TimeoutError as error:
            what = (
                f"no token within {first:g} s" if job.first is None else f"no end within {limits.timeout:g} s"
            )
            job.outcome = "timeout"
            raise Problem(504, what, "timeout") from error
        except Exception as error:
            problem = problem_of(error, job.body.prompt_field)
            job.outcome = problem.code or "error"
            raise problem from error
        finally:
            self.monitor.finished(job)

    async def _events(self, job: Job) -> AsyncGenerator[Told, None]:
        if len(job.answers) == 1:
            async with aclosing(self._one(job, job.answers[0])) as events:
                async for event in events:
                    yield job.answers[0], event
            return
        async with aclosing(_merged([(answer, self._one(job, answer)) for answer in job.answers])) as merged:
            async for told in merged:
                yield told

    async def _one(self, job: Job, answer: Answer) -> AsyncGenerator[Event | Scored, None]:
        """One answer, from when there is a place for it."""
        ensemble, ask = answer.ensemble, answer.request
        async with job.entry.place():
            answer.started = time.perf_counter()
            try:
                if answer.echoed is not None and not answer.likelihood:
                    yield Scored(())  # the prompt, without its log-likelihood
                stream: AsyncGenerator[Event | Scored, None] = ensemble.stream(ask, answer.ledger)
                if answer.likelihood:
                    stream = ensemble.log_likelihood(ask, answer.ledger, answer.context_tokens)
                elif ask.sampling.max_tokens == 0:
                    return
                async with aclosing(stream) as events:
                    async for event in events:
                        if isinstance(event, Scored):
                            answer.read = event
                            yield event
                            continue
                        if isinstance(event, Choice):  # the reason may be an error of an engine
                            event = replace(event, reason=public(event.reason))
                        answer.take(event)
                        yield event
            finally:
                answer.ended = time.perf_counter()


async def _merged(
    streams: Sequence[tuple[Answer, AsyncGenerator[Event | Scored, None]]],
) -> AsyncGenerator[Told, None]:
    """The events of several streams as they come; the first failure ends the others."""
    queue: asyncio.Queue[tuple[Answer, Event | Scored | Exception | None]] = asyncio.Queue(2 * len(streams))

    async def feed(answer: Answer, stream: AsyncGenerator[Event | Scored, None]) -> None:
        try:
            async with aclosing(stream) as events:
                async for event in events:
                    await queue.put((answer, event))
            await queue.put((answer, None))
        except Exception as error:  # raised where the events are read
            await queue.put((answer, error))

    tasks = [asyncio.create_task(feed(*one)) for one in streams]
    left = len(tasks)
    try:
        while left:
            answer, event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                left -= 1
            else:
                yield answer, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _require(engines: Sequence[Engine], capability: Capability, name: str, param: str) -> None:
    for engine in engines:
        if capability not in engine.capabilities:
            raise Problem(
                400,
                f"{name!r} cannot honour {param}: {engine.name} lacks {capability!r}",
                "unsupported",
                param,
            )


def _passed_on(body: Generate, served: Served) -> dict[str, Any]:
    """Fields for the engine's own server; tools that may not be called only where the engine knows tools."""
    if not isinstance(body, ChatRequest):
        return {}
    aggregation = served.ensemble.aggregation
    engine = aggregation.chosen(served.ensemble.engines) if isinstance(aggregation, Single) else None
    if body.tool_choice == "none" and not (engine and "tools" in engine.capabilities):
        return {name: value for name, value in body.passed_on.items() if name == "response_format"}
    return body.passed_on


def _alone(served: Served, capability: Capability) -> None:
    """Refuse what only one model by itself can honour, and only one that says so."""
    aggregation = served.ensemble.aggregation
    if not isinstance(aggregation, Single):
        text = f"{served.name!r} answers with several models; {capability} goes with one that offers it"
        raise Problem(400, text, "unsupported", capability)
    _require([aggregation.chosen(served.ensemble.engines)], capability, served.name, capability)


def _text(prompt: Prompt, engine: Engine) -> str:
    """A raw prompt in words."""
    if isinstance(prompt, TokenIds):
        return tokenizer_of(engine).decode(prompt.ids)
    return prompt.text if isinstance(prompt, Text) else ""
