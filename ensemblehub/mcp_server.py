"""An MCP server: assistants ask the ensembles of a configuration, and compare and explain their answers.

Source: the Model Context Protocol, by its official Python package.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from pydantic import BaseModel, Field

from ensemblehub import __version__, configured
from ensemblehub.concurrency import together
from ensemblehub.config import DEFAULT, Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import EnsembleHubError, MissingExtraError, did_you_mean, one_line
from ensemblehub.generators.base import Engine
from ensemblehub.results import attribution, authors, collect
from ensemblehub.schema import Chat, Event, Message, Piece, Request, Result
from ensemblehub.scorers.base import Scorer
from ensemblehub.tandem.explanation import why

try:
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[mcp]'") from error

_KEPT = 64  # answers that can be explained
_PAUSE = 0.25  # seconds between reports of progress
_SHOWN = 80  # characters of the text that a report of progress ends with
_INSTRUCTIONS = """Several language models that answer together. `ask` answers a question, `compare_models` lets
several models or ensembles answer the same one, `explain` tells how an answer came about and what it cost."""


class Answer(BaseModel):
    """An answer, who wrote it and why, and what it cost."""

    id: str = Field(description="For `explain`.")
    model: str
    answer: str
    insight: str = Field(description="What a Tandem's mentor wrote for the intern; empty elsewhere.")
    finish: str = Field(description="`stop`, or `length` where the answer is cut.")
    wrote: dict[str, list[str]] = Field(description="The models that wrote the insight and the answer.")
    explanation: str
    tflops: float
    usd: float = Field(description="US dollars; 0 where no price is known.")
    seconds: float
    estimated_saving: float | None = Field(description="Share of the large model's FLOPs; null if unknown.")
    error: str | None = None


class ComparedAnswers(BaseModel):
    """The answers of several models to one question; those that failed say why in `error`."""

    answers: list[Answer]


class Explanation(BaseModel):
    """How an answer came about: verdicts, choices, who wrote which part, and every call's cost."""

    explanation: str
    verdicts: list[dict[str, Any]]
    choices: list[dict[str, Any]]
    segments: list[dict[str, Any]]
    usage: list[dict[str, Any]]


class Tools:
    """The tools over one set of engines.

    Args:
        config: its ensembles, and each of its models alone, are asked by name.

    Raises:
        ConfigError: an ensemble cannot work; raised before weights are loaded.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.engines = [configured.engine_of(config, spec) for spec in config.model_specs]
        self.ensembles = {
            name: AsyncEnsemble.from_config(config.named(name), self.engines)
            for name in (DEFAULT, *config.ensembles)
        }
        self.methods = {name: config.named(name) for name in self.ensembles}
        for engine in self.engines:
            alone = AsyncEnsemble([engine])
            alone.configure(config)
            self.ensembles[engine.name] = alone
        self._answers: OrderedDict[str, tuple[str, Result]] = OrderedDict()
        self._places = asyncio.Semaphore(config.server.max_running)
        self._loading: asyncio.Task[list[None]] | None = None

    @asynccontextmanager
    async def loaded(self, _: Any) -> AsyncIterator[None]:
        """Load the models while the server already lists its tools, and free them at the end."""
        scorers = [
            scorer for ensemble in self.ensembles.values() for scorer in ensemble.aggregation.scorers.scorers
        ]
        parts: list[Engine | Scorer] = [*self.engines, *scorers]
        self._loading = asyncio.ensure_future(together(part.load() for part in parts))
        try:
            yield
        finally:
            self._loading.cancel()
            with suppress(asyncio.CancelledError, EnsembleHubError):  # a failure was told to whoever asked
                await self._loading
            await together(part.close() for part in parts)

    async def ask(
        self,
        question: str,
        ctx: Context,
        model: str = DEFAULT,
        system: str = "",
        max_tokens: int | None = None,
    ) -> Answer:
        """Answer a question with an ensemble of language models, or with one of its models."""
        try:
            return await self._answer(question, model, system, max_tokens, _Progress(ctx))
        except EnsembleHubError as error:
            raise ToolError(one_line(error)) from error

    async def compare_models(
        self,
        question: str,
        ctx: Context,
        models: list[str] | None = None,
        system: str = "",
        max_tokens: int | None = None,
    ) -> ComparedAnswers:
        """Answer one question with several models or ensembles at once; without `models`, with all."""
        progress, names = _Progress(ctx), models or list(self.ensembles)
        for name in names:
            self._find(name)

        async def answer(name: str) -> Answer:
            try:
                return await self._answer(question, name, system, max_tokens, progress)
            except EnsembleHubError as error:
                return _failed(name, error)

        return ComparedAnswers(answers=await together(answer(name) for name in dict.fromkeys(names)))

    async def explain(self, id: str) -> Explanation:
        """Tell how an earlier answer came about: verdicts, choices, who wrote what, and every call's cost."""
        if id not in self._answers:
            raise ToolError(
                f"no answer {id!r} is remembered: `ask` gives an id, and the last {_KEPT} are kept"
            )
        sentence, result = self._answers[id]
        told = result.to_dict()
        return Explanation(
            explanation=sentence,
            verdicts=told["verdicts"],
            choices=told["choices"],
            segments=attribution(result)["segments"],
            usage=told["usage"]["lines"],
        )

    def _find(self, name: str) -> AsyncEnsemble:
        if name not in self.ensembles:
            raise ToolError(did_you_mean(name, self.ensembles, "model"))
        return self.ensembles[name]

    async def _answer(
        self, question: str, name: str, system: str, max_tokens: int | None, progress: _Progress
    ) -> Answer:
        ensemble, most = self._find(name), self.config.server.max_output_tokens
        if not question.strip():
            raise ToolError("the question is empty")
        if max_tokens is not None and not 0 < max_tokens <= most:
            raise ToolError(f"max_tokens is from 1 to {most} here")
        said = [Message("system", system)] if system else []
        chat = Chat((*said, Message("user", question)))
        request = ensemble.request(
            Request(chat, ensemble.sampling), **({"max_tokens": max_tokens} if max_tokens else {})
        )
        if self._loading is not None and not self._loading.done():
            await progress.report("the models are loading")
            await asyncio.shield(self._loading)
        async with self._places:
            started, ledger = time.perf_counter(), UsageLedger()
            result = await collect(progress.watched(ensemble.stream(request, ledger)), ledger)
        return self._told(name, request, result, time.perf_counter() - started)

    def _told(self, name: str, request: Request, result: Result, seconds: float) -> Answer:
        ensemble, own = self.ensembles[name], self.methods.get(name)
        alone = ensemble.aggregation.estimated_alone(request, ensemble.engines)
        methods = (own.selection.method, own.aggregation.method) if own else ("all", "single")
        sentence, key = why(result, alone, *methods), uuid.uuid4().hex
        self._answers[key] = (sentence, result)
        while len(self._answers) > _KEPT:
            self._answers.popitem(last=False)
        return Answer(
            id=key,
            model=name,
            answer=ensemble.generation.extracted(result.text),
            insight=result.insight,
            finish=str(result.finish or "length"),
            wrote=authors(result),
            explanation=sentence,
            tflops=result.cost.flops / 1e12,
            usd=result.cost.usd,
            seconds=seconds,
            estimated_saving=1 - result.cost.cold_flops / alone[0] if alone and alone[0] else None,
        )


class _Progress:
    """Reports of progress to the client that called a tool: tokens so far, and the end of what is written."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._tokens = 0
        self._next = 0.0

    async def report(self, message: str) -> None:
        """Tell the client, where it asked for progress."""
        await self._ctx.report_progress(self._tokens, None, message)

    async def watched(self, stream: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """The events as they come, with a report from time to time."""
        text = ""
        async with aclosing(stream) as events:
            async for event in events:
                if isinstance(event, Piece):
                    self._tokens += event.length
                    text = (text + event.text)[-_SHOWN:]
                    if time.monotonic() >= self._next:
                        self._next = time.monotonic() + _PAUSE
                        await self.report(f"{event.engine} ({event.purpose}): {' '.join(text.split())}")
                yield event


def _failed(name: str, error: EnsembleHubError) -> Answer:
    """The entry of a model that failed."""
    return Answer(
        id="",
        model=name,
        answer="",
        insight="",
        finish="error",
        wrote={},
        explanation="",
        tflops=0.0,
        usd=0.0,
        seconds=0.0,
        estimated_saving=None,
        error=one_line(error),
    )


def server(config: Config) -> MCPServer:
    """The server of a configuration.

    Raises:
        ConfigError: an ensemble cannot work.
    """
    tools = Tools(config)
    made = MCPServer(
        "ensemblehub",
        instructions=_INSTRUCTIONS,
        version=__version__,
        lifespan=tools.loaded,
        log_level="WARNING",
    )
    for tool in (tools.ask, tools.compare_models, tools.explain):
        made.add_tool(tool)
    return made


def serve(config: Config, port: int | None = None) -> None:
    """Serve on standard input and output, or streamable HTTP on a port of loopback, until the client leaves.

    Raises:
        ConfigError: an ensemble cannot work.
    """
    made = server(config)
    if port is None:
        made.run("stdio")
    else:
        made.run("streamable-http", host="127.0.0.1", port=port)
