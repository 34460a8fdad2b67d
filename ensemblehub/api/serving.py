"""`ensemblehub serve`: runs the application on a socket until it is told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import cast

from ensemblehub.config import Config
from ensemblehub.config.sections import ServerSection
from ensemblehub.errors import ConfigError, EngineError, MissingExtraError

try:
    import uvicorn

    from ensemblehub.api.app import create_app
    from ensemblehub.api.connection import Connection, connection_limit
    from ensemblehub.api.logs import log_to_stderr
    from ensemblehub.api.state import State
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[serve]'") from error

log = logging.getLogger("ensemblehub.api")
_CUT = 5.0  # seconds for a request that is cut off to say so


class Server(uvicorn.Server):
    """uvicorn's server; the first stop signal lets requests end, the second cancels them.

    uvicorn's own graceful shutdown cancels requests without waiting for what they still have to send, and
    does not free the models after a second signal.

    Attributes:
        state: updated with what the server does.
        drain: seconds that requests in flight are given to end.
    """

    state: State
    drain: float

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:  # told again
            self.force_exit = True
            signal.signal(sig, signal.SIG_DFL)  # a third one ends the process, whatever hangs
            return
        self.state.word, self.should_exit = "draining", True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals as uvicorn does, but do not raise them again: being told to stop is no failure."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, wait for requests in flight, cut off those left, free the models."""
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        end = time.monotonic() + self.drain
        while self._unfinished() and not self.force_exit and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        self.force_exit = False  # the models are freed all the same
        await self._cut()
        await super().shutdown(sockets)

    def _unfinished(self) -> bool:
        """Whether a request is at work, or a response not sent yet."""
        transports = [connection.transport for connection in self.server_state.connections]
        unsent = any(transport.get_write_buffer_size() for transport in transports if transport is not None)
        return unsent or bool(self.server_state.tasks)

    async def _cut(self) -> None:
        """Cancel every request that still runs; each says so in its response and in a line of the log."""
        if tasks := set(self.server_state.tasks):
            self.state.word = "stopped"
            log.warning("%d requests are cut off", len(tasks))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CUT)
        await asyncio.sleep(0.1)  # for what they wrote to be sent
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def serve(config: Config, keys: Sequence[str] = ()) -> None:
    """Serve until a stop signal; requests in flight then have `server.drain` seconds to end.

    Raises:
        ConfigError: an ensemble cannot work, or the address cannot be listened on.
        EngineError: the models cannot be loaded.
    """
    settings, state = config.server, State()
    host = host_of(settings, keys)
    log_to_stderr(settings)
    app = create_app(config, keys, state, failed=lambda: setattr(server, "should_exit", True))
    listening = listen(host, settings.port)
    server = Server(
        uvicorn.Config(
            app,
            http=cast(type[asyncio.Protocol], partial(Connection, settings, connection_limit(settings))),
            ws="none",  # nothing is served over one, and it would take over the connection with its bounds
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=1,
        )
    )
    server.state, server.drain = state, settings.drain
    host, port = listening.getsockname()[:2]
    names = ", ".join(["ensemble", *config.ensembles])
    log.info("serving %s at http://%s:%s (the page), /v1 (OpenAI), /docs", names, _bracketed(host), port)
    with listening:
        server.run(sockets=[listening])
    if state.word == "failed":
        raise EngineError(f"the models cannot be loaded: {state.reason}")


def host_of(settings: ServerSection, keys: Sequence[str]) -> str:
    """The address to listen on: loopback where there are no keys."""
    return settings.host if keys else _loopback(settings.host)


def keys_of(settings: ServerSection, given: Sequence[str], file: Path | None) -> list[str]:
    """Return all API keys: those given, those of a file (one per line), and the environment's.

    Raises:
        ConfigError: the file cannot be read or holds none, or a key is empty.
    """
    keys = list(given)
    for path in (settings.api_key_file, file):
        if path is not None:
            keys += _read(path)
    keys += [os.environ[settings.api_key_env]] if os.environ.get(settings.api_key_env) else []
    if not all(key.strip() for key in keys):
        raise ConfigError("an API key is empty")
    return list(dict.fromkeys(key.strip() for key in keys))


def _read(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"API keys: {path}: {getattr(error, 'strerror', None) or error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"API keys: {path}: there is none in it")
    return keys


def _loopback(host: str) -> str:
    """The host, if it is loopback; else 127.0.0.1, with a warning."""
    if host == "localhost":
        return host
    try:
        if ipaddress.ip_address(host).is_loopback:
            return host
    except ValueError:
        pass  # a name, whose address may be anything
    log.warning("without an API key only loopback is served: 127.0.0.1 instead of %s (see --api-key)", host)
    return "127.0.0.1"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the address is taken, not this machine's, or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(f"cannot listen on {_bracketed(host)}:{port}: {error.strerror or error}") from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
