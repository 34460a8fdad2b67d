"""`create_app`: the application and its routes for generation.

One request: `Guard` (keys, size of the body, the queue) -> `JSONRoute` (the body, validated) ->
`Answering.prepare` (checked and queued) -> `Answering.stream` (events of the engines) -> `chunks` ->
`EventStream`.  Without `stream: true` the events are only awaited, and `completion` makes the reply.
`/v1/messages` and `/v1/responses` become chats, and `BlockWire` turns their chunks into the other API's events.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblehub import __version__
from ensemblehub.config import Config
from ensemblehub.config.sections import Budget, ServerSection
from ensemblehub.errors import EnsembleHubError, MissingExtraError, did_you_mean, one_line

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.routing import APIRoute
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware
    from starlette.responses import Response

    from ensemblehub.api.admission import Admission
    from ensemblehub.api.answering import Answering
    from ensemblehub.api.blocks import BlockWire
    from ensemblehub.api.budget import may_cost
    from ensemblehub.api.catalog import Catalog
    from ensemblehub.api.chunks import chunks
    from ensemblehub.api.completion import completion
    from ensemblehub.api.guard import Guard
    from ensemblehub.api.info import add_info_routes, add_tokenizer_routes
    from ensemblehub.api.job import GenerationJob
    from ensemblehub.api.key_budgets import KeyBudgets
    from ensemblehub.api.message_events import AnthropicError, CountedTokens, MessageReply, MessageWire
    from ensemblehub.api.messages import CountRequest, MessagesRequest
    from ensemblehub.api.monitoring import Monitor
    from ensemblehub.api.pages import add_board_routes, add_page_routes
    from ensemblehub.api.preview import Preview
    from ensemblehub.api.problems import Problem, problem_of, problem_of_fields
    from ensemblehub.api.protocol import ChatRequest, CompletionRequest, GenerationRequest
    from ensemblehub.api.reading import LARGE, JSONRoute, beside
    from ensemblehub.api.replies import ERRORS, STREAMED, ChatCompletion, TextCompletion
    from ensemblehub.api.request_log import RequestLog
    from ensemblehub.api.response_events import DeletedResponse, InputTokens, ResponseObject, ResponseWire
    from ensemblehub.api.responses import ResponsesRequest, in_its_names
    from ensemblehub.api.state import State
    from ensemblehub.api.streaming import JSON, Disconnected, EventStream, Framing, while_connected
    from ensemblehub.api.usage import HEADERS, headers
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[serve]'") from error

log = logging.getLogger(__name__)


def create_app(
    config: Config | str | Path,
    keys: Sequence[str] = (),
    state: State | None = None,
    failed: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The server's ASGI application; models are loaded once it has started.

    Args:
        keys: API keys; without one only loopback is served.
        state: updated with what the server does.
        failed: called when the models cannot be loaded; `state.reason` says why.

    Raises:
        ConfigError: an ensemble cannot work; raised before any weights load.
    """
    config = config if isinstance(config, Config) else Config.read(Path(config))
    settings, state = config.server, state or State()
    catalog = Catalog(config)
    admission = Admission(settings.max_running, settings.max_queued, settings.max_queued_tokens)
    monitor = Monitor(admission, state, catalog.watches, catalog.engines)
    budgets = _key_budgets(settings, catalog)
    app = FastAPI(
        title="ensemblehub",
        version=__version__,
        lifespan=lambda _: _loaded(catalog, state, failed, budgets),
        docs_url=None,
        redoc_url=None,
        description="An OpenAI-compatible API over ensembles of language models.",
        responses=ERRORS,
        generate_unique_id_function=lambda route: route.name,
    )
    app.router.route_class = JSONRoute
    replies = Replies(Answering(catalog, settings, admission, monitor, RequestLog(config), budgets))
    add_generation_routes(app, replies)
    add_translated_routes(app, replies)
    add_info_routes(app, catalog, admission, monitor, state)
    add_tokenizer_routes(app, catalog)
    add_page_routes(app)
    add_board_routes(app, settings.board)
    add_error_handlers(app)
    app.add_middleware(
        Guard,
        keys=keys,
        max_body_bytes=settings.max_body_bytes,
        state=state,
        admission=admission,
        monitor=monitor,
        budgets=budgets,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", *HEADERS],
        )
    return app


def _key_budgets(settings: ServerSection, catalog: Catalog) -> KeyBudgets | None:
    """What keys may still spend, if that is limited; a budget in dollars that limits nothing is said."""
    for field, budget in (("key_budget", settings.key_budget), ("request_budget", settings.request_budget)):
        if budget.usd is not None and not any(map(may_cost, catalog.engines)):
            log.warning("server.%s.usd: no model here has a price, so it limits nothing", field)
    limited = settings.key_budget != Budget()
    return KeyBudgets(settings.key_budget_file, settings.key_budget) if limited else None


@asynccontextmanager
async def _loaded(
    catalog: Catalog, state: State, failed: Callable[[], None], budgets: KeyBudgets | None
) -> AsyncIterator[None]:
    """The application's lifespan: models load while it already answers `/health`."""

    async def load() -> None:
        try:
            await catalog.load()
            gc.collect()
            gc.freeze()  # no later collection scans the loaded models while streams wait
            state.word = "ready"
        except Exception as error:
            state.word, state.reason = "failed", one_line(error)
            if not isinstance(error, EnsembleHubError):
                log.exception("the models cannot be loaded")
            failed()

    loading = asyncio.create_task(load())
    try:
        yield
    finally:
        loading.cancel()
        with suppress(asyncio.CancelledError):
            await loading
        await catalog.close()
        if budgets:
            budgets.close()


@dataclass(frozen=True)
class Replies:
    """Replies to requests that generate, streamed or whole."""

    answering: Answering

    async def begin(self, request: Request, body: GenerationRequest) -> GenerationJob:
        """Check and admit a request; its middleware finds the job in `request.state`."""
        try:
            given = request.state
            job = await self.answering.prepare(body, given.request_id, given.reservation, given.owner)
        except EnsembleHubError as error:
            raise problem_of(error, body.prompt_field) from error
        request.state.job = job
        return job

    async def reply(self, request: Request, body: GenerationRequest) -> Response:
        """Answer in the form of the route's own API."""
        job = await self.begin(request, body)
        if body.stream:
            return self.streamed(job, chunks(job, self.answering.stream(job)), Framing())
        return await self.whole(request, job, self.answering.stream(job), lambda: completion(job))

    def streamed(
        self, job: GenerationJob, events: AsyncGenerator[dict[str, Any], None], framing: Framing
    ) -> Response:
        """The reply as server-sent events."""
        return EventStream(events, self.answering.settings.keep_alive, framing, headers(job))

    async def whole(
        self,
        request: Request,
        job: GenerationJob,
        events: AsyncGenerator[Any, None],
        made: Callable[[], dict[str, Any]],
    ) -> Response:
        """The reply, made once all events are read; they stop when the client leaves."""

        async def read() -> None:
            async with aclosing(events):
                async for _ in events:
                    pass

        try:
            await while_connected(request.receive, read())
        except Disconnected:
            return Response(status_code=499)
        return JSON(made(), headers=headers(job))

    async def translated(
        self,
        request: Request,
        body: MessagesRequest | ResponsesRequest,
        wire: Callable[[GenerationJob], BlockWire],
    ) -> Response:
        """Answer a request of another API as a chat, in the form that `wire` gives."""
        large = len(await request.body()) >= LARGE
        source = (self.answering, request.state.owner)
        chat = await beside(body.chat, *source) if large else body.chat(*source)
        framed = wire(await self.begin(request, chat))
        events = framed.events(self.answering.stream(framed.job))
        if body.stream:
            return self.streamed(framed.job, events, framed)
        return await self.whole(request, framed.job, events, framed.reply)


def add_generation_routes(app: FastAPI, replies: Replies) -> None:
    """Register the routes that answer: chats and raw prompts."""

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMED, tags=["OpenAI"])
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation, or several at once."""
        return await replies.reply(request, body)

    @app.post("/v1/completions", response_model=TextCompletion, responses=STREAMED, tags=["OpenAI"])
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue raw prompts; with `echo` and `logprobs`, their log-likelihoods."""
        return await replies.reply(request, body)

    @app.post("/v1/ensemble/preview", response_model=Preview, tags=["ensembles"])
    async def preview(request: Request, body: ChatRequest) -> Response:
        """Who would answer a chat, in which role and at what estimated cost; nothing is generated."""
        return JSON(await replies.answering.preview(body, request.state.request_id, request.state.owner))


def add_translated_routes(app: FastAPI, replies: Replies) -> None:
    """Register the routes of other APIs, whose requests are translated to chats."""

    @app.post("/v1/responses", response_model=ResponseObject, responses=STREAMED, tags=["OpenAI"])
    async def responses(request: Request, body: ResponsesRequest) -> Response:
        """Answer in the form of OpenAI's Responses API."""
        try:
            return await replies.translated(
                request, body, lambda job: ResponseWire(job, body, replies.answering)
            )
        except Problem as problem:
            raise in_its_names(problem) from problem

    @app.post("/v1/responses/input_tokens", response_model=InputTokens, tags=["OpenAI"])
    async def response_tokens(request: Request, body: ResponsesRequest) -> Response:
        """Count the tokens of a prompt; nothing is generated."""
        chat = body.chat(replies.answering, request.state.owner)
        tokens = await replies.answering.count(chat)
        return JSON({"object": "response.input_tokens", "input_tokens": tokens})

    stored = replies.answering.stored

    @app.get("/v1/responses/{response_id}", response_model=ResponseObject, tags=["OpenAI"])
    async def stored_response(request: Request, response_id: str, stream: bool = False) -> Response:
        """A stored response of the key that asks; it is not streamed again."""
        if stream:
            raise Problem(
                400, "a stored response is not streamed again: leave out stream", "unsupported", "stream"
            )
        return JSON(stored.response(request.state.owner, response_id))

    @app.delete("/v1/responses/{response_id}", response_model=DeletedResponse, tags=["OpenAI"])
    async def delete_response(request: Request, response_id: str) -> Response:
        """Delete a stored response of the key that asks."""
        stored.forget(request.state.owner, response_id)
        return JSON({"id": response_id, "object": "response", "deleted": True})

    refused: dict[int | str, dict[str, Any]] = {status: {"model": AnthropicError} for status in ERRORS}

    @app.post(
        "/v1/messages", response_model=MessageReply, responses={**refused, **STREAMED}, tags=["Anthropic"]
    )
    async def messages(request: Request, body: MessagesRequest) -> Response:
        """Answer a conversation in the form of Anthropic's Messages API."""
        return await replies.translated(request, body, MessageWire)

    @app.post(
        "/v1/messages/count_tokens", response_model=CountedTokens, responses=refused, tags=["Anthropic"]
    )
    async def message_tokens(body: CountRequest) -> Response:
        """Count the tokens of a conversation; nothing is generated."""
        return JSON({"input_tokens": await replies.answering.count(body.chat(replies.answering))})


def add_error_handlers(app: FastAPI) -> None:
    """Return every error as OpenAI's error object."""

    async def failed(request: Request, error: Exception) -> Response:
        return problem_of(error).response(request.url.path)

    for kind in (EnsembleHubError, Exception):
        app.add_exception_handler(kind, failed)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        problem = problem_of(error) if isinstance(error, Problem) else _misdirected(request, error)
        return problem.response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return problem_of_fields(error, []).response(
            request.url.path
        )  # of a query; bodies are validated by `JSONRoute`


def _misdirected(request: Request, error: HTTPException) -> Problem:
    """The error for a request to no route: names the nearest one, or the methods of the route it asked."""
    path, routes = request.url.path[:80], request.app.routes
    if error.status_code == 404:
        known = {route.path for route in routes if isinstance(route, APIRoute) and route.include_in_schema}
        return Problem(404, did_you_mean(path, known, "path"), "not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        text = f"{request.method} is not offered at {path}: use {allowed}"
        return Problem(405, text, "method_not_allowed", headers=error.headers)
    return problem_of(error)
