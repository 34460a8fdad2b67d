"""Prometheus metrics of a server; each request is counted once, when it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from ensemblehub.api.admission import Admission
from ensemblehub.api.certified import CertificateWatch
from ensemblehub.api.job import AnswerRecord, GenerationJob
from ensemblehub.api.state import State
from ensemblehub.api.usage import estimated_mentor_alone
from ensemblehub.generators.base import Engine
from ensemblehub.generators.swap import SwappedEngine
from ensemblehub.schema import Piece, UsageLine, Verdict

__all__ = ["CONTENT_TYPE", "Monitor"]
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_KINDS = ("prompt", "cached", "completion", "discarded")
disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the text


class SwapCollector(Collector):
    """How often each model that takes turns was loaded."""

    def __init__(self, engines: Sequence[SwappedEngine]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """The counter, one sample for each model."""
        text = "Times a model was loaded in its turn (`swap: true`)"
        loads = CounterMetricFamily("ensemblehub_model_loads", text, labels=["engine"])
        for engine in self._engines:
            loads.add_metric([engine.name], engine.loads)
        yield loads


class Monitor:
    """The metrics of one server."""

    def __init__(
        self,
        admission: Admission,
        state: State,
        watches: Sequence[CertificateWatch] = (),
        engines: Sequence[Engine] = (),
    ) -> None:
        self._state = state
        self.registry = CollectorRegistry()
        swapped = [engine for engine in engines if isinstance(engine, SwappedEngine)]
        if swapped:
            self.registry.register(SwapCollector(swapped))
        counter = partial(Counter, namespace="ensemblehub", registry=self.registry)
        gauge = partial(Gauge, namespace="ensemblehub", registry=self.registry)
        histogram = partial(
            Histogram, namespace="ensemblehub", registry=self.registry, labelnames=["model"], buckets=_SECONDS
        )
        call = ("engine", "purpose")
        self.requests = counter("requests", "Requests by their outcome", ["model", "endpoint", "outcome"])
        self.errors = counter("errors", "Responses with an error, by HTTP status", ["status"])
        self.tokens = counter("tokens", "Tokens read, cached, written and discarded", [*call, "kind"])
        self.flops = counter("flops", "Floating-point operations", call)
        self.dollars = counter("dollars", "US dollars", call)
        self.verdicts = counter("verdicts", "The judge's verdicts", ["model", "level", "sufficient"])
        self.alone = counter(
            "estimated_mentor_alone_flops", "Estimated FLOPs, had the mentor answered alone", ["model"]
        )
        self.saving = gauge(
            "estimated_saving_flops",
            "Estimated FLOPs saved against the mentor alone, in all; both without caches of earlier requests",
            ["model"],
        )
        self.first_token = histogram("time_to_first_token_seconds", "Until the first token")
        self.per_token = histogram("time_per_token_seconds", "Per token after the first")
        self.whole = histogram("request_seconds", "Whole requests")
        gauge("running", "Answers being written").set_function(lambda: admission.running)
        gauge("queued", "Answers waiting for a place").set_function(lambda: admission.queued)
        gauge("queued_tokens", "Prompt tokens waiting for a place").set_function(
            lambda: admission.queued_tokens
        )
        self.uncertified = counter(
            "uncertified_answers",
            "Answers that an ensemble's certificate does not hold for, or no longer",
            ["model"],
        )
        self.alarms = counter("drift_alarms", "Alarms of drift from the calibration questions", ["model"])
        holds = gauge("certificate_holds", "1 while an ensemble's certificate holds", ["model"])
        evidence = gauge("drift_evidence", "Capital won against no drift", ["model", "score"])
        for watch in watches:
            holds.labels(watch.name).set_function(partial(getattr, watch, "holds"))
            for score, test in watch.tests.items():
                evidence.labels(watch.name, score).set_function(partial(getattr, test, "evidence"))
        gauge("tasks", "Tasks of the event loop").set_function(lambda: len(asyncio.all_tasks()))

    def finished(self, job: GenerationJob) -> None:
        """Count a request that is over, however it ended."""
        model, seconds = job.served.name, time.perf_counter() - job.started
        if job.outcome == "disconnected" and self._state.word == "stopped":
            job.outcome = "stopped"
        self.requests.labels(model, job.body.endpoint, job.outcome).inc()
        self.whole.labels(model).observe(seconds)
        events = [event for answer in job.answers for event in answer.events]
        for event in events:
            if isinstance(event, Verdict):
                self.verdicts.labels(model, event.level, str(event.sufficient).lower()).inc()
        for answer in job.answers:
            for line in answer.ledger.usage.lines:
                self._add_usage(line)
            if job.outcome == "ok" and (watch := job.served.watch):
                self._watch(watch, answer, again=answer.index % job.per_prompt > 0)
        written = sum(len(event.tokens) for event in events if isinstance(event, Piece))
        if job.first_token_seconds is not None:
            self.first_token.labels(model).observe(job.first_token_seconds)
            if written > 1:
                self.per_token.labels(model).observe((seconds - job.first_token_seconds) / (written - 1))
        whole = [answer for answer in job.answers if not answer.out_of_budget]
        if job.outcome == "ok" and (alone := estimated_mentor_alone(whole)):
            cold = sum(answer.ledger.total.cold_flops for answer in whole)
            self.alone.labels(model).inc(alone[0])
            self.saving.labels(model).inc(alone[0] - cold)

    def _watch(self, watch: CertificateWatch, answer: AnswerRecord, again: bool) -> None:
        """Count an answer of a certified ensemble; one with changed options says nothing about drift.

        Args:
            again: whether it is one more answer to the same prompt, which says nothing new.
        """
        if not watch.holds or not answer.as_configured:
            self.uncertified.labels(watch.name).inc()
        if answer.as_configured and not again:
            verdicts = [event for event in answer.events if isinstance(event, Verdict)]
            self.alarms.labels(watch.name).inc(watch.add(verdicts))

    def _add_usage(self, line: UsageLine) -> None:
        cost, labels = line.cost, (line.engine, line.purpose)
        for kind in _KINDS:
            self.tokens.labels(*labels, kind).inc(getattr(cost, f"{kind}_tokens"))
        self.flops.labels(*labels).inc(cost.flops)
        self.dollars.labels(*labels).inc(cost.usd)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
