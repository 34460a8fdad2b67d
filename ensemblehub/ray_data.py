"""Ray Data: the items of a command are answered by a pool of actors, on this machine or a cluster.

Each actor opens the command's `Job` once and answers several items at a time.  Only the driver writes; it
drops items that have a row before the data set is made, so the same command continues after the loss of a
worker, a node or the driver.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import pickle
import re
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import click

from ensemblehub.errors import ConfigError, EngineError, MissingExtraError, did_you_mean, error_text, one_line
from ensemblehub.options import FiniteRange
from ensemblehub.probes import speaks_http2, takes_connections

if TYPE_CHECKING:
    from ensemblehub.config import Config

TRIES = 3  # workers that may die over one block
STARTS = 3  # of Ray on this machine; one fails where the node's agents are not up within 15 seconds
BLOCKS = 10_000  # of a data set, at most: one item each where there are no more
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}  # also of workers
ADDRESS = re.compile(r"local|auto|[\w.-]+:\d+")
LOST = f"no worker brought it back in {TRIES} tries: each died over it, or was killed for its memory"

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
CommandT = TypeVar("CommandT", bound=Callable[..., Any])


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


@dataclass(frozen=True)
class Cluster:
    """Where Ray runs and what a pool has.

    Attributes:
        address: `local` starts Ray on this machine, `auto` finds the cluster of this node, or `HOST:PORT`.
        workers: Minimum and maximum number of actors.
        gpus: GPUs for each actor.
        servers: URLs by model; each actor uses one of each model's.
    """

    address: str = "local"
    workers: tuple[int, int] = (1, 1)
    gpus: float = 0.0
    servers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect to Ray, or start it.

        Raises:
            MissingExtraError: Ray is not installed.
            ConfigError: There is no cluster at the address, or Ray does not start.
        """
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{error.name} is not installed: pip install 'ensemblehub[ray]'"
            ) from error
        options: dict[str, Any] = {"address": self.address}
        if self.address == "local":
            cpus = max(os.cpu_count() or 1, self.workers[1] + 1)  # each actor claims one
            options |= {"num_cpus": cpus, "include_dashboard": False}
        if ":" in self.address:
            self._check_address()
        for left in reversed(range(STARTS if self.address == "local" else 1)):
            try:
                ray.init(**options, logging_level="ERROR", log_to_driver=False)
                break
            except Exception as error:  # Ray raises bare ones, too, where a node is slow to start
                ray.shutdown()
                if not left:
                    raise ConfigError(f"--ray {self.address}: {one_line(error)}") from error
                click.echo("Ray did not start: trying again", err=True)
        try:
            if ray.cluster_resources().get("GPU", 0) < self.gpus:
                click.echo(f"no node has {self.gpus:g} GPUs for a worker: waiting for one", err=True)
            yield
        finally:
            ray.shutdown()

    def _check_address(self) -> None:
        """Check that a cluster may answer at the address; Ray itself tries for minutes, then ends the process.

        Raises:
            ConfigError: Nothing answers there, or something that does not speak gRPC, as heads of clusters do.
        """
        url = f"ray://{self.address}"
        if not asyncio.run(takes_connections(url)):
            raise ConfigError(f"--ray {self.address}: no cluster answers there")
        if os.environ.get("RAY_USE_TLS", "0") == "0" and not asyncio.run(speaks_http2(url)):
            raise ConfigError(
                f"--ray {self.address}: what answers there is no head of a cluster, whose port is 6379 "
                "unless `ray start --port` named another"
            )

    def check(self, config: Config) -> None:
        """Check that servers are those of models behind an API.

        Raises:
            ConfigError: They are not.
        """
        specs = {spec.name: spec for spec in config.model_specs}
        for name in self.servers:
            if name not in specs:
                raise ConfigError(f"--server: {did_you_mean(name, specs, 'model')}")
            if specs[name].engine != "openai" or "://" in str(specs[name].options.get("path")):
                raise ConfigError(f"--server: {name} is no model of the engine openai with a base_url")

    def servers_of(self, number: int) -> dict[str, str]:
        """One server of each model, for the actor with this number."""
        return {name: urls[number % len(urls)] for name, urls in self.servers.items()}

    async def reachable(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """The chosen servers; in place of one that takes no connection, the next of its model that does."""

        async def found(name: str, url: str) -> str:
            urls = self.servers[name]
            first = urls.index(url)
            for each in (*urls[first:], *urls[:first]):
                if await takes_connections(each):
                    return each
            return url

        urls = await asyncio.gather(*(found(name, url) for name, url in chosen.items()))
        return dict(zip(chosen, urls, strict=True))


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


def _bounds(text: str) -> tuple[int, int]:
    """Read `N` or `MIN-MAX`."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise click.UsageError(f"--workers: expected N or MIN-MAX, such as 4 or 2-8, not {text!r}")
    return low, high


def ray_options(what: str, pool: bool = True) -> Callable[[CommandT], CommandT]:
    """Add `--ray` and `--workers`, and those of a pool; the command gets a `Cluster` or None.

    Args:
        what: The start of the help of `--ray`.
        pool: Add `--worker_gpus` and `--server`.
    """
    options = [
        click.option(
            "--ray",
            is_flag=False,
            flag_value="local",
            metavar="[ADDRESS]",
            help=f"{what}: local (Ray is started here), auto or HOST:PORT.",
        ),
        click.option(
            "--workers", metavar="N", help="With --ray: number of workers, or MIN-MAX [default: 1]."
        ),
    ]
    if pool:
        options += [
            click.option(
                "--worker_gpus",
                type=FiniteRange(min=0),
                metavar="N",
                help="With --ray: GPUs per worker.",
            ),
            click.option(
                "--server",
                multiple=True,
                metavar="MODEL=URL",
                help="With --ray: a server of a model behind an API; repeatable. Each worker uses one of each "
                "model's.",
            ),
        ]

    def decorate(command: CommandT) -> CommandT:
        @functools.wraps(command)
        def given(
            ray: str | None,
            workers: str | None,
            worker_gpus: float | None = None,
            server: tuple[str, ...] = (),
            **rest: Any,
        ) -> Any:
            if ray is None and (workers or worker_gpus or server):
                raise click.UsageError("--workers, --worker_gpus and --server go with --ray")
            if ray is not None and rest.get("shard"):
                raise click.UsageError("--shard is one process of several; --ray starts its workers itself")
            cluster = None if ray is None else _cluster(ray, workers or "1", worker_gpus or 0.0, server)
            return command(cluster=cluster, **rest)

        for option in reversed(options):
            given = option(given)
        return cast(CommandT, given)

    return decorate


def _cluster(address: str, workers: str, gpus: float, servers: tuple[str, ...]) -> Cluster:
    if not ADDRESS.fullmatch(address):
        raise click.UsageError(f"--ray: expected local, auto or HOST:PORT, not {address!r}")
    urls: dict[str, tuple[str, ...]] = {}
    for text in servers:
        name, _, url = text.partition("=")
        if not re.match(r"https?://[^/]", url):
            raise click.UsageError(
                f"--server: expected MODEL=URL, such as far=http://host:8000/v1, not {text!r}"
            )
        urls[name] = (*urls.get(name, ()), url)
    return Cluster(address, _bounds(workers), gpus, urls)
