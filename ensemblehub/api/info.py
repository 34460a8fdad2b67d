"""Routes about the server itself, and its models' tokenizers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from ensemblehub import __version__, registry
from ensemblehub.api import replies
from ensemblehub.api.admission import Admission
from ensemblehub.api.catalog import Catalog, Served
from ensemblehub.api.fields import RequestBody
from ensemblehub.api.monitoring import CONTENT_TYPE, Monitor
from ensemblehub.api.problems import Problem
from ensemblehub.api.protocol import TokenId
from ensemblehub.api.reading import beside
from ensemblehub.api.state import State
from ensemblehub.api.streaming import JSON
from ensemblehub.config import DEFAULT
from ensemblehub.ensemble_methods.raw_prompts import tokenizer_of
from ensemblehub.generators.base import Engine, Tokenizer

_MODEL = "Whose tokenizer; may be left out where all that are served have the same."


class TokenizeRequest(RequestBody):
    """`POST /tokenize`."""

    prompt: str
    add_special_tokens: bool = True
    model: str | None = Field(default=None, description=_MODEL)


class DetokenizeRequest(RequestBody):
    """`POST /detokenize`."""

    tokens: list[TokenId]
    model: str | None = Field(default=None, description=_MODEL)


def add_info_routes(
    app: FastAPI, catalog: Catalog, admission: Admission, monitor: Monitor, state: State
) -> None:
    """Register /v1/models, /v1/ensemble/config, /health, /status and /metrics."""
    created = int(time.time())

    @app.get("/v1/models", response_model=replies.ModelList, tags=["OpenAI"])
    async def models() -> Response:
        """List the ensembles and their individual models."""
        data = [_model(served, created) for served in catalog.served.values()]
        return JSON({"object": "list", "data": data})

    @app.get("/v1/models/{name:path}", response_model=replies.ModelObject, tags=["OpenAI"])
    async def model(name: str) -> Response:
        """Describe one ensemble or model."""
        return JSON(_model(catalog.find(name), created))

    @app.get("/v1/ensemble/config", response_model=replies.Configuration, tags=["ensembles"])
    async def configuration() -> Response:
        """Describe every ensemble and the options that a request may change."""
        ensembles = [_composition(served) for served in catalog.ensembles]
        members = [_member(engine) for engine in catalog.engines]
        return JSON({"version": __version__, "ensembles": ensembles, "members": members})

    unready: dict[int | str, dict[str, Any]] = {503: {"model": replies.Health}}

    @app.get("/health", response_model=replies.Health, responses=unready, tags=["server"])
    async def health() -> Response:
        """200 when requests are answered, 503 before and after."""
        return JSON({"status": state.word}, 200 if state.word == "ready" else 503)

    @app.get("/status", response_model=replies.ServerStatus, tags=["server"])
    async def status() -> Response:
        """Report the server's ensembles and current load."""
        return JSON(_status(catalog, admission, state))

    @app.get("/metrics", response_class=PlainTextResponse, responses=replies.PLAIN, tags=["server"])
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(monitor.exposition(), media_type=CONTENT_TYPE)


def _model(served: Served, created: int) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": created,
        "owned_by": "ensemblehub",
        "max_model_len": served.ensemble.context or None,
        "ensemble": {
            "kind": "model" if served.alone else "ensemble",
            "method": served.aggregation.method,
            "members": [engine.name for engine in served.ensemble.engines],
        },
    }


def _composition(served: Served) -> dict[str, Any]:
    ensemble, aggregation = served.ensemble, served.ensemble.aggregation
    return {
        "id": served.name,
        "method": served.aggregation.method,
        "selection": served.selection,
        "granularity": aggregation.granularity,
        "members": [engine.name for engine in ensemble.engines],
        "roles": {role: engine.name for role, engine in aggregation.parts(ensemble.engines).items()},
        "params": served.aggregation.params,
        "levels": [asdict(checkpoint) for checkpoint in aggregation.checkpoints],
        "bounds": {name: bound.model_dump(exclude_none=True) for name, bound in served.bounds.items()},
        "optional": [
            engine.name
            for engine in ensemble.engines
            if served.members is None or engine.name in served.members
        ],
    }


def _member(engine: Engine) -> dict[str, Any]:
    return {
        "id": engine.name,
        "parameters": engine.info.parameters,
        "token_flops": engine.info.token_flops,
        "context": engine.info.context,
        "can": sorted(engine.capabilities),
    }


def _status(catalog: Catalog, admission: Admission, state: State) -> dict[str, Any]:
    return {
        "status": state.word,
        "version": __version__,
        "available_methods": {
            "model_selection": sorted(registry.SELECTIONS),
            "output_aggregation": sorted(registry.AGGREGATIONS),
            "scorers": sorted(registry.SCORERS),
        },
        "model_count": len(catalog.engines),
        "reward_count": len(catalog.config.reward_specs),
        "ensembles": [served.name for served in catalog.ensembles],
        "running": admission.running,
        "queued": admission.queued,
        "queued_tokens": admission.queued_tokens,
    }


def add_tokenizer_routes(app: FastAPI, catalog: Catalog) -> None:
    """Register /tokenize, /detokenize and /tokenizer_info, as vLLM offers them.

    Their tokenizer is that of a model, or of the engine that reads an ensemble's raw prompts.
    """

    async def reader(name: str | None, identity: Callable[[Tokenizer], Any] = _fingerprint) -> Engine:
        """The engine that reads the prompts of `name`; without a name all tokenizers have to be the same."""
        if name is None and await asyncio.to_thread(_differ, catalog.engines, identity):
            names = ", ".join(catalog.served)
            text = f"the models here have different tokenizers: name one in `model` ({names})"
            raise Problem(400, text, "model_required", "model")
        return catalog.find(DEFAULT if name is None else name).reader

    @app.post("/tokenize", response_model=replies.Tokenized, tags=["tokenizer"])
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a raw prompt."""
        engine = await reader(body.model)
        ids = await beside(tokenizer_of(engine).encode, body.prompt, body.add_special_tokens)
        length = engine.info.context
        return JSON({"tokens": ids, "count": len(ids), "max_model_len": length, "model": engine.name})

    @app.post("/detokenize", response_model=replies.Detokenized, tags=["tokenizer"])
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        engine = await reader(body.model)
        unknown = next((index for index in body.tokens if index >= engine.info.vocabulary), None)
        if unknown is not None:
            raise Problem(400, f"{engine.name}: there is no token id {unknown}", "invalid_value", "tokens")
        return JSON({"prompt": await beside(tokenizer_of(engine).decode, body.tokens), "model": engine.name})

    @app.get("/tokenizer_info", response_model=dict[str, Any], tags=["tokenizer"])
    async def tokenizer_info(model: str | None = None) -> Response:
        """The tokenizer's configuration: end of text, chat template, ...

        Without `model`, what is the same for all that are served here.
        """
        settings = tokenizer_of(await reader(model, _fingerprint_and_ends)).settings()
        others = [] if model is not None else [tokenizer_of(engine).settings() for engine in catalog.engines]
        shared = {
            key: value for key, value in settings.items() if all(other.get(key) == value for other in others)
        }
        return JSON(shared)


def _differ(engines: list[Engine], identity: Callable[[Tokenizer], Any]) -> bool:
    """Whether the engines' tokenizers differ in what `identity` tells of them."""
    tokenizers = [engine.tokenizer for engine in engines]
    found = (None if tokenizer is None else identity(tokenizer) for tokenizer in tokenizers)
    return len({json.dumps(value, default=str) for value in found}) > 1


def _fingerprint(tokenizer: Tokenizer) -> str:
    return tokenizer.fingerprint


def _fingerprint_and_ends(tokenizer: Tokenizer) -> tuple[str, dict[str, Any]]:
    """How it tokenizes, and its tokens for the start and the end of a text."""
    ends = {key: value for key, value in tokenizer.settings().items() if key.endswith("_token")}
    return tokenizer.fingerprint, ends
