"""Routes that tell what is served and how the server is, and what its tokenizers do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from starlette.responses import PlainTextResponse, Response

from ensemblehub import __version__, registry
from ensemblehub.api import replies
from ensemblehub.api.admission import Admission
from ensemblehub.api.catalog import Catalog, Served
from ensemblehub.api.monitoring import CONTENT_TYPE, Monitor
from ensemblehub.api.problems import Problem
from ensemblehub.api.protocol import DetokenizeRequest, TokenizeRequest
from ensemblehub.api.reading import beside
from ensemblehub.api.state import State
from ensemblehub.api.streaming import JSON
from ensemblehub.config import DEFAULT
from ensemblehub.ensemble_methods.raw_prompts import tokenizer_of
from ensemblehub.generators.base import Engine, Tokenizer


def telling(app: FastAPI, catalog: Catalog, admission: Admission, monitor: Monitor, state: State) -> None:
    """What is served, and how the server is."""
    created = int(time.time())

    def info(served: Served) -> dict[str, Any]:
        kind = "model" if served.alone else "ensemble"
        about = {"kind": kind, "method": served.aggregation.method, "members": _members(served)}
        return {
            "id": served.name,
            "object": "model",
            "created": created,
            "owned_by": "ensemblehub",
            "max_model_len": served.ensemble.context or None,
            "ensemble": about,
        }

    @app.get("/v1/models", response_model=replies.ModelList, tags=["OpenAI"])
    async def models() -> Response:
        """The ensembles, and each of their models alone."""
        return JSON({"object": "list", "data": [info(served) for served in catalog.served.values()]})

    @app.get("/v1/models/{name:path}", response_model=replies.Model, tags=["OpenAI"])
    async def model(name: str) -> Response:
        """One of them."""
        return JSON(info(catalog.find(name)))

    @app.get("/v1/ensemble/config", response_model=replies.Configuration, tags=["ensembles"])
    async def configuration() -> Response:
        """How each ensemble is made up, and what a request may change."""
        ensembles = [_described(served) for served in catalog.ensembles]
        return JSON(
            {"version": __version__, "ensembles": ensembles, "members": [_member(e) for e in catalog.engines]}
        )

    @app.get(
        "/health", response_model=replies.Health, responses={503: {"model": replies.Health}}, tags=["server"]
    )
    async def health() -> Response:
        """200 when requests are answered, 503 before and after."""
        return JSON({"status": state.word}, 200 if state.word == "ready" else 503)

    @app.get("/status", response_model=replies.ServerStatus, tags=["server"])
    async def status() -> Response:
        """What the server is made of and does now."""
        methods = {
            "model_selection": sorted(registry.SELECTIONS),
            "output_aggregation": sorted(registry.AGGREGATIONS),
            "scorers": sorted(registry.SCORERS),
        }
        return JSON(
            {
                "status": state.word,
                "version": __version__,
                "available_methods": methods,
                "model_count": len(catalog.engines),
                "reward_count": len(catalog.config.reward_specs),
                "ensembles": [served.name for served in catalog.ensembles],
                "running": admission.running,
                "queued": admission.queued,
                "queued_tokens": admission.queued_tokens,
            }
        )

    @app.get("/metrics", response_class=PlainTextResponse, responses=replies.PLAIN, tags=["server"])
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(monitor.exposition(), media_type=CONTENT_TYPE)


def _members(served: Served) -> list[str]:
    return [engine.name for engine in served.ensemble.engines]


def _described(served: Served) -> dict[str, Any]:
    ensemble, spec = served.ensemble, served.aggregation
    aggregation = ensemble.aggregation
    levels = [asdict(checkpoint) for checkpoint in aggregation.checkpoints]
    return {
        "id": served.name,
        "method": spec.method,
        "selection": served.selection,
        "granularity": aggregation.granularity,
        "members": _members(served),
        "roles": {part: engine.name for part, engine in aggregation.parts(ensemble.engines).items()},
        "params": spec.params,
        "levels": levels,
        "bounds": {name: bound.model_dump(exclude_none=True) for name, bound in served.bounds.items()},
    }


def _member(engine: Engine) -> dict[str, Any]:
    info = engine.info
    return {
        "id": engine.name,
        "parameters": info.parameters,
        "token_flops": info.token_flops,
        "context": info.context,
        "can": sorted(engine.capabilities),
    }


def tokenizing(app: FastAPI, catalog: Catalog) -> None:
    """The tokenizer of a model, or of the one that reads an ensemble's prompts, as vLLM offers it."""

    def reader(name: str | None, about: Callable[[Tokenizer], Any]) -> Engine:
        """The engine that reads the prompts of `name`; without a name, where all tokenizers say the same."""
        if name is None and len({json.dumps(_said(one, about), default=str) for one in catalog.engines}) > 1:
            text = f"the models here have different tokenizers: name one in `model` ({', '.join(catalog.served)})"
            raise Problem(400, text, "model_required", "model")
        return catalog.find(DEFAULT if name is None else name).reader

    @app.post("/tokenize", response_model=replies.Tokenized, tags=["tokenizer"])
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a raw prompt."""
        engine = await asyncio.to_thread(reader, body.model, _cutting)
        tokenizer = tokenizer_of(engine)
        ids = await beside(tokenizer.encode, body.prompt, body.add_special_tokens)
        return JSON(
            {"tokens": ids, "count": len(ids), "max_model_len": engine.info.context, "model": engine.name}
        )

    @app.post("/detokenize", response_model=replies.Detokenized, tags=["tokenizer"])
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        engine = await asyncio.to_thread(reader, body.model, _cutting)
        unknown = next((index for index in body.tokens if index >= engine.info.vocabulary), None)
        if unknown is not None:
            raise Problem(400, f"{engine.name}: there is no token id {unknown}", "invalid_value", "tokens")
        return JSON({"prompt": await beside(tokenizer_of(engine).decode, body.tokens), "model": engine.name})

    @app.get("/tokenizer_info", response_model=dict[str, Any], tags=["tokenizer"])
    async def tokenizer_info(model: str | None = None) -> Response:
        """What the tokenizer's configuration says: end of text, chat template, ...

        Without `model`, what is the same for all that are served here.
        """
        engine = await asyncio.to_thread(reader, model, _ends)
        own = tokenizer_of(engine).settings()
        others = [] if model is not None else [tokenizer_of(one).settings() for one in catalog.engines]
        return JSON(
            {key: value for key, value in own.items() if all(one.get(key) == value for one in others)}
        )


def _cutting(tokenizer: Tokenizer) -> str:
    return tokenizer.fingerprint


def _ends(tokenizer: Tokenizer) -> tuple[str, dict[str, Any]]:
    """How it cuts, and its tokens for the start and the end of a text."""
    return _cutting(tokenizer), {
        key: one for key, one in tokenizer.settings().items() if key.endswith("_token")
    }


def _said(engine: Engine, about: Callable[[Tokenizer], Any]) -> Any:
    return None if engine.tokenizer is None else about(engine.tokenizer)
