"""`Ensemble`: the methods of `AsyncEnsemble` for scripts, threads and notebooks.

An event loop runs in a thread of its own, so a loop that already runs in the caller's thread (a notebook's)
does not matter.  Ctrl-C, and closing a stream, stop the models.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, TypeVar, overload

from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble, Model
from ensemblehub.ensemble_methods.base import Aggregation, Selection
from ensemblehub.questions import Conversation, Question
from ensemblehub.schema import Event, Piece, Request, Result

T = TypeVar("T")
OnEvent = Callable[[Event], object]


class Ensemble:
    """Language models that answer together; see `AsyncEnsemble` for the arguments.

    Use it in a `with` block, or call `close`; without either, models are freed when the program ends.
    """

    def __init__(
        self,
        models: Sequence[Model],
        selection: str | Selection = "all",
        aggregation: str | Aggregation = "single",
        *,
        scorers: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._start(AsyncEnsemble(models, selection, aggregation, scorers=scorers))

    @classmethod
    def from_config(cls, config: Config | str | Path) -> Ensemble:
        """Build the ensemble of a configuration, or of a YAML file; loads no weights."""
        return cls._around(AsyncEnsemble.from_config(config))

    @classmethod
    def tandem(cls, mentor: Model, intern: Model, **options: Any) -> Ensemble:
        """A mentor that writes insights, and an intern that answers; see `AsyncEnsemble.tandem`."""
        return cls._around(AsyncEnsemble.tandem(mentor, intern, **options))

    @classmethod
    def _around(cls, ensemble: AsyncEnsemble) -> Ensemble:
        made = cls.__new__(cls)
        made._start(ensemble)
        return made

    def _start(self, ensemble: AsyncEnsemble) -> None:
        self._ensemble = ensemble
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_serve, args=(self._loop,), name="ensemblehub", daemon=True).start()
        self._finalizer = weakref.finalize(self, _shut_down, self._loop, ensemble)

    def load(self) -> None:
        """Load the weights of every model; without it they are loaded when first needed."""
        self._run(self._ensemble.load())

    def close(self) -> None:
        """Free every model; the ensemble cannot be used afterwards."""
        freeing = self._finalizer()
        if freeing is not None:
            freeing.result()

    def __enter__(self) -> Ensemble:
        self.load()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def generate(self, question: Question, *, on_event: OnEvent | None = None, **sampling: Any) -> Result: ...

    @overload
    def generate(
        self, question: Sequence[str | Request], *, on_event: OnEvent | None = None, **sampling: Any
    ) -> list[Result]: ...

    def generate(self, question: Any, *, on_event: OnEvent | None = None, **sampling: Any) -> Any:
        """Answer a question, or a list of questions together; see `AsyncEnsemble.generate`."""
        return self._run(self._ensemble.generate(question, on_event=on_event, **sampling))

    def chat(self, messages: Conversation, *, on_event: OnEvent | None = None, **sampling: Any) -> Result:
        """Continue a conversation: messages in the form of OpenAI's API, as for `generate`."""
        return self._run(self._ensemble.chat(messages, on_event=on_event, **sampling))

    def stream(self, question: Question, **sampling: Any) -> Generator[Event, None, None]:
        """Answer as a stream of events; closing the stream stops every model.

        The models pause when the caller does not read on, where their engine can.
        """
        waiting: asyncio.Queue[Event | None] = asyncio.Queue(maxsize=1)

        async def write() -> None:
            try:
                async with aclosing(self._ensemble.stream(question, **sampling)) as events:
                    async for event in events:
                        await waiting.put(event)
            except Exception:
                await waiting.put(None)
                raise
            await waiting.put(None)

        writer = self._submit(write())
        try:
            while (event := self._run(waiting.get())) is not None:
                yield event
            writer.result()
        finally:
            self._cancel(writer)

    def stream_text(self, question: Question, **sampling: Any) -> Generator[str, None, None]:
        """Answer as a stream of text: the visible pieces of the answer alone."""
        with closing(self.stream(question, **sampling)) as events:
            for event in events:
                if isinstance(event, Piece) and event.answer_text:
                    yield event.answer_text

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._loop.is_closed() or not self._finalizer.alive:
            work.close()
            raise RuntimeError("this ensemble is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine; an interrupted caller cancels and awaits it."""
        future = self._submit(work)
        try:
            return future.result()
        except BaseException:
            self._cancel(future)
            raise

    def _cancel(self, future: Future[Any]) -> None:
        """Cancel the coroutine behind a future, and wait until its models have stopped."""
        if future.done():
            return
        future.cancel()

        async def others_ended() -> None:
            this = asyncio.current_task()
            cancelled = [task for task in asyncio.all_tasks() if task is not this and task.cancelling()]
            await asyncio.gather(*cancelled, return_exceptions=True)

        try:
            asyncio.run_coroutine_threadsafe(others_ended(), self._loop).result()
        except CancelledError:
            return


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _free(ensemble: AsyncEnsemble) -> None:
    """Free the models, and cancel what is left, such as streams that nobody reads to their end."""
    try:
        await ensemble.close()
    finally:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _shut_down(loop: asyncio.AbstractEventLoop, ensemble: AsyncEnsemble) -> Future[None]:
    """Free the models and end the loop's thread; called once.

    Waits in the main thread alone, where a program ends: garbage may be collected in a model's own thread.
    """
    freeing = asyncio.run_coroutine_threadsafe(_free(ensemble), loop)
    freeing.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
    if threading.current_thread() is threading.main_thread():
        freeing.result()
    return freeing
