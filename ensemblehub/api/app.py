"""`create_app`: the routes of the server.

Everything that is asked goes through `Answering`; this module knows paths and bodies.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from ensemblehub import __version__
from ensemblehub.config import Config
from ensemblehub.errors import EnsembleHubError, MissingExtraError, did_you_mean

try:
    import fastapi_offline
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.openapi.docs import get_swagger_ui_html
    from fastapi.routing import APIRoute
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware
    from starlette.responses import FileResponse, Response
    from starlette.staticfiles import StaticFiles

    from ensemblehub.api.about import telling, tokenizing
    from ensemblehub.api.admission import Admission
    from ensemblehub.api.answering import Answering
    from ensemblehub.api.answers import Answer, chunk, closing, opening, usage, usage_so_far, whole
    from ensemblehub.api.catalog import Catalog
    from ensemblehub.api.guard import Guard
    from ensemblehub.api.job import Job
    from ensemblehub.api.journal import Journal
    from ensemblehub.api.monitoring import Monitor
    from ensemblehub.api.problems import Problem, problem_of, problem_of_fields
    from ensemblehub.api.protocol import (
        ChatRequest,
        CompletionRequest,
        Generate,
        StreamOptions,
    )
    from ensemblehub.api.reading import JSONRoute
    from ensemblehub.api.replies import ERRORS, STREAMED, ChatCompletion, TextCompletion
    from ensemblehub.api.state import State
    from ensemblehub.api.streaming import DONE, JSON, Disconnected, Emit, EventStream, event, while_connected
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[serve]'") from error

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
_PAGE_PARTS = {file.name for file in PAGE.iterdir() if file.suffix != ".html"}
_DOCS = Path(fastapi_offline.__file__).parent / "static"
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
OBJECTS = {"chat": ("chat.completion", "chat.completion.chunk"), "text": ("text_completion", "text_completion")}


def create_app(
    config: Config | str | Path,
    keys: Sequence[str] = (),
    state: State | None = None,
    failed: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The server's ASGI application; models are loaded once it has started.

    Args:
        keys: API keys; without one only loopback is served.
        state: told of what the server does.
        failed: called when the models cannot be loaded; `state.reason` says why.

    Raises:
        ConfigError: an ensemble cannot work; raised before any weights load.
    """
    config = config if isinstance(config, Config) else Config.read(Path(config))
    settings, state = config.server, state or State()
    catalog = Catalog(config)
    admission = Admission(settings.max_running, settings.max_queued, settings.max_queued_tokens)
    monitor = Monitor(admission, state)
    answering = Answering(catalog, settings, admission, monitor)

    async def load() -> None:
        try:
            await catalog.load()
            gc.collect()
            gc.freeze()  # what is loaded stays, and no collection need look at it again while streams wait
            state.word = "ready"
        except Exception as error:
            state.word, state.reason = "failed", " ".join(str(error).split())
            if not isinstance(error, EnsembleHubError):
                log.exception("the models cannot be loaded")
            failed()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load())
        try:
            yield
        finally:
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading
            await catalog.close()

    app = FastAPI(
        title="ensemblehub", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="An OpenAI-compatible API over ensembles of language models.",
        responses=ERRORS, generate_unique_id_function=lambda route: route.name,
    )  # fmt: skip
    app.router.route_class = JSONRoute
    _generating(app, answering, Journal.of(config))
    telling(app, catalog, admission, monitor, state)
    tokenizing(app, catalog)
    _showing(app)
    _failing(app)
    app.add_middleware(
        Guard, keys=keys, max_body_bytes=settings.max_body_bytes, state=state, admission=admission, monitor=monitor
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )  # fmt: skip
    return app


def _generating(app: FastAPI, answering: Answering, journal: Journal) -> None:
    """The two routes that write text."""

    async def reply(request: Request, body: Generate) -> Response:
        try:
            job = await answering.prepare(body, request.state.request_id, request.state.entry)
        except EnsembleHubError as error:
            raise problem_of(error, body.prompt_field) from error
        request.state.job = job
        if body.stream:
            return EventStream(lambda emit: _streamed(job, answering, emit, journal), answering.settings.keep_alive)
        try:
            await while_connected(request.receive, answering.write(job, _silent))
        except Disconnected:
            return Response(status_code=499)
        return JSON(journal.kept(job, _whole(job)))

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMED, tags=["OpenAI"])
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation, or several at once."""
        return await reply(request, body)

    @app.post("/v1/completions", response_model=TextCompletion, responses=STREAMED, tags=["OpenAI"])
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Go on with raw prompts; with `echo` and `logprobs`, their log-likelihoods."""
        return await reply(request, body)


async def _silent(_: Answer, __: object) -> None:
    """Nothing is told before the end."""


def _head(job: Job, streamed: bool) -> dict[str, Any]:
    return {"id": job.id, "object": OBJECTS[job.kind][streamed], "created": job.created, "model": job.served.name}


def _whole(job: Job) -> dict[str, Any]:
    choices = [whole(job.kind, answer) for answer in job.answers]
    return {**_head(job, False), "choices": choices, "usage": usage(job.answers, job.per_prompt)}


async def _streamed(job: Job, answering: Answering, emit: Emit, journal: Journal) -> None:
    """Write a job's stream: each answer's opening, its chunks, and at the end the bill."""
    head = _head(job, True)
    options = job.body.stream_options or StreamOptions()
    wants_usage = bool(options.include_usage)
    head |= {"usage": None} if wants_usage else {}
    begun: set[int] = set()
    ended: set[int] = set()

    async def tell(answer: Answer, what: Any) -> None:
        data, about = b"", head
        if wants_usage and options.continuous_usage_stats:
            about = head | {"usage": usage_so_far(job.answers, job.per_prompt)}
        if answer.index not in begun:
            begun.add(answer.index)
            data = event(about | opening(job.kind, answer))
        said = chunk(job.kind, answer, what)
        if said is not None:
            data += event(about | said)
            if said["choices"][0]["finish_reason"]:
                ended.add(answer.index)
        if data:
            await emit(data)

    async def close(finish: str | None) -> None:
        for answer in job.answers:
            if answer.untold or (finish and answer.index not in ended):  # an echoed prompt has no end of its own
                await emit(event(head | closing(job.kind, answer, None if answer.index in ended else finish)))

    try:
        await answering.write(job, tell)
    except Problem:
        await close(None)  # what was judged before it is told, too
        raise
    await close("length")
    journal.kept(job, None)
    bill = event(head | {"choices": [], "usage": usage(job.answers, job.per_prompt)}) if wants_usage else b""
    await emit(bill + DONE)


def _showing(app: FastAPI) -> None:
    """The page, and the documentation of the API; neither asks anything of the outside."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers=_PAGE_HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in _PAGE_PARTS:
            raise Problem(404, "there is no such page")
        return FileResponse(PAGE / name, headers=_PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json", title="ensemblehub", swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css", swagger_favicon_url="/docs/favicon.png",
        )  # fmt: skip

    app.mount("/docs", StaticFiles(directory=_DOCS))


def _failing(app: FastAPI) -> None:
    """Errors as OpenAI's error objects."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return (problem_of(error) if isinstance(error, Problem) else _misdirected(request, error)).response()

    @app.exception_handler(EnsembleHubError)
    async def failed(_: Request, error: EnsembleHubError) -> Response:
        return problem_of(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return problem_of_fields(error, []).response()  # of a query; bodies are checked where they are read

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        return problem_of(error).response()


def _misdirected(request: Request, error: HTTPException) -> Problem:
    """What a request to no route is told: the nearest one, or the methods of the one it asked."""
    path, routes = request.url.path[:80], request.app.routes
    if error.status_code == 404:
        known = {route.path for route in routes if isinstance(route, APIRoute) and route.include_in_schema}
        return Problem(404, did_you_mean(path, known, "path"), "not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        text = f"{request.method} is not offered at {path}: use {allowed}"
        return Problem(405, text, "method_not_allowed", headers=error.headers)
    return problem_of(error)
