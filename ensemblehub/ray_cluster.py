"""Where Ray runs: the options that name a cluster, and the connection to it."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ensemblehub.errors import ConfigError, MissingExtraError, did_you_mean, one_line
from ensemblehub.options import FiniteRange
from ensemblehub.probes import speaks_http2, takes_connections

if TYPE_CHECKING:
    from ensemblehub.config import Config

STARTS = 3  # of Ray on this machine; one fails where the node's agents are not up within 15 seconds
ENVIRONMENT = {  # where it does not say otherwise; also of the processes of a cluster that is started here
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # 5 by default: a busy machine needs longer
}
ADDRESS = re.compile(r"local|auto|[\w.-]+:\d+")

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


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
        for name, value in ENVIRONMENT.items():
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
        with interruptible_once():
            try:
                self._start(options)
                if ray.cluster_resources().get("GPU", 0) < self.gpus:
                    click.echo(f"no node has {self.gpus:g} GPUs for a worker: waiting for one", err=True)
                yield
            finally:
                ray.shutdown()

    def _start(self, options: dict[str, Any]) -> None:
        import ray

        for left in reversed(range(STARTS if self.address == "local" else 1)):
            try:
                ray.init(**options, logging_level="ERROR", log_to_driver=False)
                return
            except Exception as error:  # Ray raises bare ones, too, where a node is slow to start
                ray.shutdown()
                if not left:
                    raise ConfigError(f"--ray {self.address}: {one_line(error)}") from error
                click.echo("Ray did not start: trying again", err=True)

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


@contextmanager
def interruptible_once() -> Iterator[None]:
    """Only the first Ctrl-C raises KeyboardInterrupt: a second one would leave processes of Ray behind."""
    given = signal.getsignal(signal.SIGINT)
    if given is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, lambda *_: None)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, given)


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
