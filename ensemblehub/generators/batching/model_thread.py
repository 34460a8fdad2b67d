"""A thread of its own for a model: loads it, computes with it, and ends when it is told to."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from ensemblehub.errors import EngineError

ModelT = TypeVar("ModelT")


class ModelThread(ABC, Generic[ModelT]):
    """Loads a model on its thread and works with it there.

    Attributes:
        loaded: done when the model is there, or has failed to load.
    """

    def __init__(self, name: str, load: Callable[[], ModelT]) -> None:
        self.name = name
        self.loaded: Future[ModelT] = Future()
        self._load = load
        self._closed = ""  # why nothing is accepted any more
        self._lock = threading.Lock()  # nothing arrives once it is closed
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=f"ensemblehub-{name}", daemon=True)

    @abstractmethod
    def _work(self) -> None:
        """Compute until it is time to end; runs on the thread, with the model in `self._model`."""

    def _run(self) -> None:
        try:
            self._model = self._load()
        except BaseException as error:
            self.loaded.set_exception(error)
        else:
            self.loaded.set_result(self._model)
            self._work()
        finally:
            self._ended.set_result(None)

    def _close(self, why: str) -> None:
        with self._lock:
            self._closed = self._closed or why

    def _closed_error(self) -> EngineError:
        return EngineError(f"{self.name} {self._closed}", self.name)

    async def _wait_for_end(self) -> None:
        """Wait for the end of the thread, without starting another one."""
        await asyncio.shield(asyncio.wrap_future(self._ended))
        self._thread.join()
