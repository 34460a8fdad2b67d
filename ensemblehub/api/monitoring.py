"""Prometheus metrics of a server, each request counted once, when it is over."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ensemblehub.api.admission import Admission
from ensemblehub.api.answers import estimated
from ensemblehub.api.job import Job
from ensemblehub.api.state import State
from ensemblehub.schema import Piece, UsageLine, Verdict

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CONTENT_TYPE = CONTENT_TYPE_LATEST
disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the text and say nothing that is asked


class Monitor:
    """What a server has done."""

    def __init__(self, admission: Admission, state: State) -> None:
        self._state = state
        registry = self.registry = CollectorRegistry()
        kinds = ("engine", "purpose")
        self.requests = Counter(
            "ensemblehub_requests",
            "Requests by their outcome",
            ["model", "endpoint", "outcome"],
            registry=registry,
        )
        self.refused = Counter(
            "ensemblehub_errors", "Responses with an error, by HTTP status", ["status"], registry=registry
        )
        self.tokens = Counter(
            "ensemblehub_tokens",
            "Tokens read, cached, written and discarded",
            [*kinds, "kind"],
            registry=registry,
        )
        self.flops = Counter("ensemblehub_flops", "Floating-point operations", kinds, registry=registry)
        self.dollars = Counter("ensemblehub_dollars", "US dollars", kinds, registry=registry)
        self.alone = Counter(
            "ensemblehub_estimated_mentor_alone_flops",
            "Estimated FLOPs, had the mentor answered alone",
            ["model"],
            registry=registry,
        )
        self.saving = Gauge(
            "ensemblehub_estimated_saving_flops",
            "Estimated FLOPs saved against the mentor alone, in all; both without what earlier requests left in caches",
            ["model"],
            registry=registry,
        )
        self.first = Histogram(
            "ensemblehub_time_to_first_token_seconds",
            "Until the first token",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.pace = Histogram(
            "ensemblehub_time_per_token_seconds",
            "Per token after the first",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "ensemblehub_request_seconds", "Whole requests", ["model"], buckets=_SECONDS, registry=registry
        )
        self.verdicts = Counter(
            "ensemblehub_verdicts",
            "The judge's verdicts",
            ["model", "level", "sufficient"],
            registry=registry,
        )
        for name, help_, value in (
            ("running", "Answers being written", lambda: admission.running),
            ("queued", "Answers waiting for a place", lambda: admission.queued),
            ("queued_tokens", "Prompt tokens waiting for a place", lambda: admission.queued_tokens),
            ("tasks", "Tasks of the event loop", lambda: len(asyncio.all_tasks())),
        ):
            Gauge(f"ensemblehub_{name}", help_, registry=registry).set_function(value)

    def finished(self, job: Job) -> None:
        """Count a request that is over, however it ended."""
        model, seconds = job.served.name, time.perf_counter() - job.started
        if job.outcome == "disconnected" and self._state.word == "stopped":
            job.outcome = "stopped"
        self.requests.labels(model, job.kind, job.outcome).inc()
        self.whole.labels(model).observe(seconds)
        written = 0
        for answer in job.answers:
            for event in answer.events:
                if isinstance(event, Verdict):
                    self.verdicts.labels(model, event.level, str(event.sufficient).lower()).inc()
                elif isinstance(event, Piece):
                    written += len(event.tokens)
            self._spent(answer.ledger.usage.lines)
        if job.first is not None:
            self.first.labels(model).observe(job.first)
            if written > 1:
                self.pace.labels(model).observe((seconds - job.first) / (written - 1))
        if job.outcome == "ok" and (alone := estimated(job.answers)):
            self.alone.labels(model).inc(alone[0])
            self.saving.labels(model).inc(
                alone[0] - sum(answer.ledger.total.cold_flops for answer in job.answers)
            )

    def _spent(self, spent: tuple[UsageLine, ...]) -> None:
        for line in spent:
            one, labels = line.cost, (line.engine, line.purpose)
            for kind in ("prompt", "cached", "completion", "discarded"):
                self.tokens.labels(*labels, kind).inc(getattr(one, f"{kind}_tokens"))
            self.flops.labels(*labels).inc(one.flops)
            self.dollars.labels(*labels).inc(one.usd)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
