"""Answering a request: checked and admitted by `prepare`, then written by `stream` within its deadlines."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ensemblehub.api.admission import Admission, Reservation
from ensemblehub.api.budget import BudgetSpentError, Spending, may_cost
from ensemblehub.api.catalog import Catalog, Served
from ensemblehub.api.job import AnswerEvent, AnswerRecord, GenerationJob, Kind, is_answer, is_insight
from ensemblehub.api.key_budgets import KeyBudgets
from ensemblehub.api.lengths import prompt_lengths
from ensemblehub.api.monitoring import Monitor
from ensemblehub.api.preview import PreviewedRequest, Previews
from ensemblehub.api.problems import Problem, problem_of, public
from ensemblehub.api.protocol import ChatRequest, CompletionRequest, GenerationRequest
from ensemblehub.api.request_log import RequestLog
from ensemblehub.api.stored import PinnedMembers, StoredResponses
from ensemblehub.api.usage import members
from ensemblehub.config.sections import Budget, Generation, ServerSection
from ensemblehub.cost import Cost, UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.raw_prompts import tokenizer_of
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Choice, Piece, Prompt, Request, Sampling, Scored, Text, TokenIds

JobEvent = tuple[AnswerRecord, AnswerEvent]


class Answering:
    """Answers requests within the limits of a server, and counts them."""

    def __init__(
        self,
        catalog: Catalog,
        settings: ServerSection,
        admission: Admission,
        monitor: Monitor,
        request_log: RequestLog,
        key_budgets: KeyBudgets | None = None,
    ) -> None:
        self.catalog = catalog
        self.settings = settings
        self.admission = admission
        self.monitor = monitor
        self.request_log = request_log
        self.previews = Previews()
        self.pins = PinnedMembers(settings.conversations)
        self.key_budgets = key_budgets
        self.stored = StoredResponses(settings.stored_responses, settings.stored_bytes)

    async def prepare(
        self, body: GenerationRequest, request_id: str, reservation: Reservation, owner: str = ""
    ) -> GenerationJob:
        """Check a request against what is served and allowed, and queue its answers; no model runs yet.

        Raises:
            Problem: it cannot be honoured, or the queue is full.
        """
        asked = self.check(body, request_id, owner)
        spending = self._spending(body, owner)
        served, count = asked.served, asked.per_prompt
        reservation.admit(len(asked.requests) * count)
        lengths = await self._lengths(served.reader, asked)
        answers = [
            AnswerRecord(
                index=place * count + number,
                request=request.seeded("choice", number) if number else request,
                served=served,
                prompt_tokens=tokens,
                generation=asked.generation,
                alternatives=body.alternatives,
                reasoning_fields=() if body.include_reasoning is False else self.settings.reasoning_fields,
                spending=spending,
                ledger=spending.ledger() if spending else UsageLedger(),
                **_completion_options(body, request.prompt, served),
            )
            for place, (request, tokens) in enumerate(zip(asked.requests, lengths, strict=True))
            for number in range(count)
        ]
        reservation.queue([answer.prompt_tokens for answer in answers])
        kind: Kind = "chat" if isinstance(body, ChatRequest) else "text"
        name = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"
        log_text = self.settings.log_prompts
        return GenerationJob(
            kind, body, served, answers, count, name, reservation, owner=owner, log_text=log_text
        )

    def check(self, body: GenerationRequest, request_id: str, owner: str = "") -> PreviewedRequest:
        """Check a request against what is served and allowed; nothing is counted or queued.

        Raises:
            Problem: it cannot be honoured.
        """
        served = self.catalog.chosen(body.model, body.ensemble, body.reasoning_effort)
        if body.ensemble and body.ensemble.conversation and not self.settings.conversations:
            text = "conversations are not remembered here"
            raise Problem(400, text, "unsupported", "ensemble.conversation")
        if body.conversation:
            served = self.catalog.pinned(served, self.pins.find((owner, served.name, body.conversation)))
            _check_required(body, served)
        _check_prices(body, served)
        sampling = self._sampling(body, served)
        prompts, count = body.prompts(), body.n or 1
        marks = served.ensemble.generation.extract_after if body.marks is None else body.marks
        generation = Generation(extract_after=[mark for mark in marks if mark])
        self._check_bounds(body, sampling.max_tokens, len(prompts) * count)
        _check_capabilities(body, served, bool(generation.extract_after))
        extra = _passed_on(body, served)
        requests = [Request(prompt, sampling, prefix, request_id, extra=extra) for prompt, prefix in prompts]
        return PreviewedRequest(served, requests, count, generation)

    async def count(self, body: ChatRequest) -> int:
        """The length of a prompt, in tokens of the engine that reads the ensemble's prompts.

        Raises:
            Problem: it cannot be counted, or would be refused.
        """
        served = self.catalog.chosen(body.model, body.ensemble, body.reasoning_effort)
        _check_capabilities(body, served, extracting=False)
        reader = served.reader
        ((prompt, prefix),) = body.prompts()
        request = Request(prompt, prefix=prefix, extra=body.passed_on)
        (tokens,) = await prompt_lengths(reader, [request], self.settings.max_prompt_tokens, 0)
        if not tokens:
            text = f"{reader.name} has no tokenizer, so its prompts cannot be counted"
            raise Problem(400, text, "unsupported")
        return tokens

    async def _lengths(self, engine: Engine, asked: PreviewedRequest) -> list[int]:
        written = asked.requests[0].sampling.max_tokens
        return await prompt_lengths(engine, asked.requests, self.settings.max_prompt_tokens, written)

    def _spending(self, body: GenerationRequest, owner: str) -> Spending | None:
        """What a request may spend; None without a limit.

        Raises:
            Problem: it asks for more than the operator allows.
        """
        most, wanted = self.settings.request_budget, (body.ensemble and body.ensemble.budget) or Budget()
        for name, limit in most:
            asked = getattr(wanted, name)
            if limit is not None and asked is not None and asked > limit:
                at = f"ensemble.budget.{name}"
                raise Problem(400, f"{name} is at most {limit:g} here", "out_of_bounds", at)
        spending = Spending(most.within(wanted))
        if keys := self.key_budgets:
            spending = Spending(most.within(wanted), keys.left(owner), lambda: keys.too_little(owner))
        return None if spending.limit == Budget() else spending

    async def preview(self, body: GenerationRequest, request_id: str, owner: str) -> dict[str, Any]:
        """Who would answer a request, and at what estimated cost.

        Raises:
            Problem: it cannot be honoured.
        """
        asked = self.check(body, request_id, owner)
        if spending := self._spending(body, owner):
            asked = asked._replace(budget=spending.limit)
        engines = asked.served.ensemble.engines
        lengths = {engine.name: await self._lengths(engine, asked) for engine in engines}
        for read, request in zip(lengths[asked.served.reader.name], asked.requests, strict=True):
            asked.served.reader.fits(read or None, request.sampling.required)
        return self.previews.preview(asked, lengths)

    def _sampling(self, body: GenerationRequest, served: Served) -> Sampling:
        defaults = served.ensemble.sampling
        most = min(defaults.max_tokens, self.settings.max_output_tokens)
        sampling = body.sampling(replace(defaults, max_tokens=most))
        return (
            replace(sampling, fit_context=False) if body.exact_limit and body.limit is not None else sampling
        )

    def _check_bounds(self, body: GenerationRequest, max_tokens: int, answers: int) -> None:
        limits = self.settings
        if max_tokens > limits.max_output_tokens:
            name = "max_tokens" if body.max_tokens == max_tokens else "max_completion_tokens"
            raise Problem(400, f"{name} is at most {limits.max_output_tokens} here", "out_of_bounds", name)
        if len(body.stops) > limits.max_stop:
            text = f"at most {limits.max_stop} stop strings are taken here"
            raise Problem(400, text, "out_of_bounds", "stop")
        if answers > limits.max_answers:
            text = f"at most {limits.max_answers} answers (prompts times n) are given at a time here"
            raise Problem(400, f"{text}, not {answers}", "out_of_bounds", "n")

    async def stream(self, job: GenerationJob) -> AsyncGenerator[JobEvent, None]:
        """Write all answers and yield their events; closing or cancelling the generator stops every engine.

        Raises:
            Problem: an engine failed, or a deadline passed.
        """
        limits = self.settings
        now = asyncio.get_running_loop().time
        seconds = min(limits.first_token_timeout, limits.timeout)
        deadline = now() + seconds
        try:
            async with aclosing(self._events(job)) as events:
                while True:
                    async with asyncio.timeout_at(deadline):  # never open across a `yield`
                        told = await anext(events, None)
                    if told is None:
                        break
                    if job.first_token_seconds is None and _is_output(told[1]):
                        job.first_token_seconds = time.perf_counter() - job.started
                        seconds = limits.timeout
                        deadline = now() + seconds - job.first_token_seconds
                    yield told
            self.request_log.write(job)
            for answer in job.answers:
                if not answer.out_of_budget:
                    self.previews.add(answer)
            if job.body.conversation:
                self.pin(job, job.body.conversation)
        except (asyncio.CancelledError, GeneratorExit):
            job.outcome = "disconnected"
            raise
        except TimeoutError as error:
            job.outcome = "timeout"
            what = "no token" if job.first_token_seconds is None else "no end"
            raise Problem(504, f"{what} within {seconds:g} s", "timeout") from error
        except Exception as error:
            problem = problem_of(error, job.body.prompt_field)
            job.outcome = problem.code or "error"
            raise problem from error
        finally:
            self.monitor.finished(job)
            if self.key_budgets:
                total = sum((answer.ledger.total for answer in job.answers), Cost())
                self.key_budgets.add(job.owner, total)

    def pin(self, job: GenerationJob, conversation: str) -> None:
        """Answer later turns of a conversation by the members of this one."""
        answer = job.answers[0]
        self.pins.keep((job.owner, job.served.name, conversation), members(answer, answer.result))

    def _events(self, job: GenerationJob) -> AsyncGenerator[JobEvent, None]:
        streams = [_answer_events(job, answer) for answer in job.answers]
        return streams[0] if len(streams) == 1 else _merge(streams)


async def _answer_events(job: GenerationJob, answer: AnswerRecord) -> AsyncGenerator[JobEvent, None]:
    """The events of one answer, once it has a place among those that run."""
    request, ensemble = answer.request, answer.served.ensemble
    ensemble = answer.spending.watched(ensemble) if answer.spending else ensemble
    async with job.reservation.place():
        answer.started = time.perf_counter()
        try:
            if answer.wants_likelihood:
                stream = ensemble.log_likelihood(request, answer.ledger, answer.context_tokens)
            else:
                stream = _stream(answer, ensemble)
            async with aclosing(stream) as events:
                async for event in events:
                    if isinstance(event, Choice):  # its reason may be an error of an engine
                        event = replace(event, reason=public(event.reason))
                    answer.add(event)
                    yield answer, event
        finally:
            answer.ended = time.perf_counter()


async def _stream(answer: AnswerRecord, ensemble: AsyncEnsemble) -> AsyncGenerator[AnswerEvent, None]:
    """The answer, behind its prompt where that is echoed without logprobs; it ends where the budget does."""
    if answer.echoed is not None:
        yield Scored(())
    if answer.request.sampling.max_tokens:
        try:
            async with aclosing(ensemble.stream(answer.request, answer.ledger)) as events:
                async for event in events:
                    yield event
        except (BudgetSpentError, ExceptionGroup):
            if answer.spending is None or not answer.spending.reached:
                raise
            if not any(is_answer(event) and (event.text or event.tool_calls) for event in answer.events):
                answer.spending.refuse()
            answer.out_of_budget = True
            yield Piece("", answer.engine.name, "answer", finish="length")


async def _merge(streams: Sequence[AsyncGenerator[JobEvent, None]]) -> AsyncGenerator[JobEvent, None]:
    """The events of several streams as they come; the first failure ends the others."""
    queue: asyncio.Queue[JobEvent | Exception | None] = asyncio.Queue(2 * len(streams))

    async def feed(stream: AsyncGenerator[JobEvent, None]) -> None:
        try:
            async with aclosing(stream) as events:
                async for event in events:
                    await queue.put(event)
            await queue.put(None)
        except Exception as error:  # raised where the events are read
            await queue.put(error)

    tasks = [asyncio.create_task(feed(stream)) for stream in streams]
    open_streams = len(tasks)
    try:
        while open_streams:
            event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                open_streams -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_output(event: AnswerEvent) -> bool:
    """Whether the first-token deadline is met."""
    return is_answer(event) or is_insight(event) or isinstance(event, Scored)


def _check_required(body: GenerationRequest, served: Served) -> None:
    """Refuse to require a member that the conversation began without."""
    names = [engine.name for engine in served.ensemble.engines]
    for name in body.ensemble.require if body.ensemble else ():
        if name not in names:
            text = f"the conversation began without {name!r}, and goes on with {', '.join(names)}"
            raise Problem(400, text, "unsupported", "ensemble.require")


def _check_prices(body: GenerationRequest, served: Served) -> None:
    """Refuse a limit in dollars where nothing has a price."""
    limit = body.ensemble and body.ensemble.budget and body.ensemble.budget.usd
    if limit and not any(map(may_cost, served.ensemble.engines)):
        text = f"no model of {served.name!r} has a price: limit `tflops` or `tokens`"
        raise Problem(400, text, "unsupported", "ensemble.budget.usd")


def _check_capabilities(body: GenerationRequest, served: Served, extracting: bool) -> None:
    """Refuse what these engines cannot do."""
    engines, name = served.ensemble.engines, served.name
    if body.alternatives is not None:
        _require(engines, "logprobs", name, "logprobs")
        if extracting:
            text = "logprobs of a part of the answer are not given: set extract_after to []"
            raise Problem(400, text, None, "logprobs")
    if isinstance(body, ChatRequest):
        if body.continue_final_message:
            _require(engines, "prefix", name, "continue_final_message")
        if body.calls_tools:
            _require_whole(served, "tools")
        if "response_format" in body.passed_on:
            _require_whole(served, "response_format")


def _require(engines: Sequence[Engine], capability: Capability, name: str, param: str) -> None:
    for engine in engines:
        if capability not in engine.capabilities:
            text = f"{name!r} cannot honour {param}: {engine.name} lacks {capability!r}"
            options = {"tools": ("tool_parser", "tools")}.get(capability, (capability,))
            if declaring := [option for option in options if hasattr(engine.options, option)]:
                text += f", which its option `{declaring[0]}` declares"
            raise Problem(400, text, "unsupported", param)


def _require_whole(served: Served, capability: Capability) -> None:
    """Refuse what only models that write the whole answer can honour, and only those that say so."""
    engines = served.answerers(capability)
    if not engines:
        text = f"{served.name!r} answers with several models; {capability} goes with one that writes it whole"
        raise Problem(400, text, "unsupported", capability)
    _require(engines, capability, served.name, capability)


def _passed_on(body: GenerationRequest, served: Served) -> dict[str, Any]:
    """Fields for the engine's own server; tools that may not be called only where the engine knows tools."""
    if not isinstance(body, ChatRequest):
        return {}
    engines = served.answerers("tools")
    knows = bool(engines) and all("tools" in engine.capabilities for engine in engines)
    if body.tool_choice == "none" and not knows:
        return {name: value for name, value in body.passed_on.items() if name == "response_format"}
    return body.passed_on


def _completion_options(body: GenerationRequest, prompt: Prompt, served: Served) -> dict[str, Any]:
    """What only `/v1/completions` may ask of an answer."""
    if not isinstance(body, CompletionRequest):
        return {}
    options: dict[str, Any] = {"as_ids": bool(body.return_tokens_as_token_ids)}
    if body.echo:
        options["echoed"] = _text(prompt, served.reader)
        options["context_tokens"] = body.ensemble.context_tokens if body.ensemble else None
    return options


def _text(prompt: Prompt, engine: Engine) -> str:
    """A raw prompt in words."""
    if isinstance(prompt, TokenIds):
        return tokenizer_of(engine).decode(prompt.ids)
    return prompt.text if isinstance(prompt, Text) else ""
