"""Ray Data: the items of a command are answered by a pool of actors, on this machine or a cluster.

Each actor opens the command's `Job` once and answers several items at a time.  Only the driver writes; it
drops items that have a row before the data set is made, so the same command continues after the loss of a
worker, a node or the driver.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from ensemblehub.errors import EngineError, error_text
from ensemblehub.ray_cluster import Cluster

if TYPE_CHECKING:
    from ensemblehub.config import Config

TRIES = 3  # workers that may die over one block
BLOCKS = 10_000  # of a data set, at most: one item each where there are no more
LOST = f"no worker brought it back in {TRIES} tries: each died over it, or was killed for its memory"

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Job(Protocol[T_contra, R_co]):
    """What a worker does with an item: a dataclass that can be pickled."""

    @property
    def config(self) -> Config:
        """The configuration whose models answer."""

    def opened(self) -> AbstractAsyncContextManager[Callable[[T_contra], Awaitable[R_co]]]:
        """Load the models; yields the function that answers an item."""


@dataclass(frozen=True)
class ItemFailure:
    """Stands for the row of an item that failed.

    Attributes:
        everywhere: The models could not be loaded, so that the others would fail, too.
    """

    reason: str
    everywhere: bool = False


def placed(config: Config, servers: Mapping[str, str]) -> Config:
    """The configuration with these servers of its models."""
    specs = [
        spec.model_copy(update={"base_url": servers[spec.name]} if spec.name in servers else {})
        for spec in config.model_specs
    ]
    return config.model_copy(update={"model_specs": specs})


def enter(folder: str) -> None:
    """Work in the driver's folder, where this node has it: configurations name relative paths."""
    with suppress(OSError):
        os.chdir(folder)


class Turns:
    """Counts actors, so that they spread over servers; an actor of its own."""

    def __init__(self) -> None:
        self._next = -1

    def next(self) -> int:
        """The next number, from 0."""
        self._next += 1
        return self._next


class RayWorker:
    """The class of the pool's actors: bytes of items in, bytes of rows out.

    An actor whose models are all behind APIs leaves a server that takes no connections for another one.
    """

    def __init__(
        self, folder: str, job: Job[Any, Any], cluster: Cluster, turns: Any, concurrency: int
    ) -> None:
        enter(folder)
        self._servers: dict[str, str] = {}
        if turns is not None:
            import ray

            self._servers = cluster.servers_of(ray.get(turns.next.remote()))
        self._cluster, self._job, self._stack = cluster, job, AsyncExitStack()
        self._movable = all(spec.engine == "openai" for spec in job.config.model_specs)
        self._opened: dict[tuple[str, ...], asyncio.Future[Callable[[Any], Awaitable[Any]]]] = {}
        self._at_once = asyncio.Semaphore(concurrency)

    async def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        return {"row": await asyncio.gather(*map(self._row, block["item"]))}

    async def _row(self, packed: bytes) -> bytes:
        number, item = pickle.loads(packed)
        async with self._at_once:
            return pickle.dumps((number, await self._answered(item)))

    async def _answered(self, item: Any) -> Any:
        if self._movable:
            self._servers = await self._cluster.reachable(self._servers)
        servers = tuple(self._servers.values())
        if servers not in self._opened:
            job = replace(cast(Any, self._job), config=placed(self._job.config, self._servers))
            opened = self._stack.enter_async_context(job.opened())
            self._opened[servers] = asyncio.ensure_future(opened)
        try:
            answer = await self._opened[servers]
        except Exception as error:
            return ItemFailure(f"the models cannot be loaded: {error_text(error)}", everywhere=True)
        try:
            return await answer(item)
        except Exception as error:  # no item may cost the others
            return ItemFailure(error_text(error))


def answers(
    job: Job[T, R], items: Iterable[T], cluster: Cluster, concurrency: int
) -> Iterator[tuple[T, R | ItemFailure]]:
    """Answer every item on a cluster; yields each once, in the order of completion.

    Args:
        concurrency: Maximum number of items that an actor answers at a time.

    Raises:
        ConfigError: There is no such cluster, or a server is of no model.
        EngineError: The models cannot be loaded.
    """
    cluster.check(job.config)
    pending = dict(enumerate(items))
    if not pending:
        return
    with cluster.connected():
        packed = [{"item": pickle.dumps(numbered)} for numbered in pending.items()]
        for number, row in _rows(job, packed, cluster, concurrency):
            if isinstance(row, ItemFailure) and row.everywhere:
                raise EngineError(row.reason)
            if number in pending:  # a block may be answered twice where a node is lost
                yield pending.pop(number), row
        for item in pending.values():
            yield item, ItemFailure(LOST)


def _rows(
    job: Job[Any, Any], items: list[dict[str, bytes]], cluster: Cluster, concurrency: int
) -> Iterator[tuple[int, Any]]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext, from_items

    logging.getLogger("ray.data").setLevel("CRITICAL")  # failures become rows
    warnings.filterwarnings("ignore", message=".*ray_remote_args_fn")  # retries have no other option
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # items of a lost block become failures
    turns = ray.remote(num_cpus=0)(Turns).remote() if cluster.servers else None
    low, high = cluster.workers
    source = from_items(items, override_num_blocks=min(len(items), BLOCKS))
    answered = source.map_batches(
        RayWorker,
        fn_constructor_args=(os.getcwd(), job, cluster, turns, concurrency),
        batch_size=None,
        compute=ActorPoolStrategy(
            min_size=low,
            max_size=high,
            max_concurrent_calls_per_actor=concurrency,
            max_tasks_in_flight_per_actor=concurrency + 1,
        ),
        num_cpus=1,
        num_gpus=cluster.gpus,
        ray_remote_args_fn=lambda: {"max_task_retries": TRIES - 1},
    )
    for block in answered.iter_batches(batch_size=None, prefetch_batches=0):
        yield from map(pickle.loads, block["row"])


def unfailed(answered: Iterable[tuple[T, R | ItemFailure]]) -> Iterator[R]:
    """The rows of what did not fail.

    Raises:
        EngineError: Items failed; raised after all others are there.
    """
    failures = 0
    first = ""
    for _, row in answered:
        if isinstance(row, ItemFailure):
            failures += 1
            first = first or row.reason
        else:
            yield row
    if failures:
        raise EngineError(f"{failures} questions failed, the first with: {first}")
