"""`ensemblehub serve`: an application on a socket, its keys, its logs and its end."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

from ensemblehub.config import Config
from ensemblehub.config.sections import ServerSection
from ensemblehub.errors import ConfigError, EngineError, MissingExtraError

try:
    import uvicorn

    from ensemblehub.api.app import create_app
    from ensemblehub.api.connection import Connection, Limits
    from ensemblehub.api.state import State
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[serve]'") from error

log = logging.getLogger("ensemblehub.api")
_CUT = 5.0  # seconds for a request that is cut off to say so


class Server(uvicorn.Server):
    """A server that lets requests end when it is told to stop, and cuts them off when told again.

    Attributes:
        state: told of what the server does.
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
        """As uvicorn's, but being told to stop is no failure: the signal is not raised again at the end."""
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, wait for requests in flight, cut off what is left, free the models."""
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
        transports = [one.transport for one in self.server_state.connections if one.transport is not None]
        return bool(self.server_state.tasks) or any(one.get_write_buffer_size() for one in transports)

    async def _cut(self) -> None:
        """End every request that still runs; each says so in its response and in a line of the log."""
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
    """Serve until told to stop; what is in flight then has `server.drain` seconds to end.

    Raises:
        ConfigError: an ensemble cannot work, or the address cannot be listened on.
        EngineError: the models cannot be loaded.
    """
    settings, state = config.server, State()
    host = settings.host if keys else _loopback(settings.host)
    log_to_stderr(settings)
    app = create_app(config, keys, state, failed=lambda: setattr(server, "should_exit", True))
    listening = listen(host, settings.port)
    server = Server(
        uvicorn.Config(
            app,
            http=cast(type[asyncio.Protocol], partial(Connection, Limits.of(settings))),
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


def keys_of(settings: ServerSection, given: Sequence[str], file: Path | None) -> list[str]:
    """All API keys: given ones, those of a file, one a line, and that of the environment.

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


class Lines(logging.Formatter):
    """A line per record, with the details of a request behind it.

    What came from outside can neither begin a line nor look like a detail: what does not print is escaped, a value with
    a space, a quote or `=` in it stands in quotes, and a traceback is indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        details = {key: value for key, value in getattr(record, "details", {}).items() if value is not None}
        said = [
            f"{key}={_value(value)}"
            for key, value in details.items()
            if key not in ("method", "path", "status")
        ]
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = " ".join([f"{stamp} {record.levelname.lower()}: {printable(record.getMessage())}", *said])
        if not record.exc_info:
            return text
        trace = self.formatException(record.exc_info).split("\n")
        return "\n".join([text, *(f"    {printable(line)}" for line in trace)])


def printable(text: str) -> str:
    """A text on one line of a terminal or a log: characters that do not print are escaped, as Python writes them."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _value(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value, default=str)
    plain = value.isprintable() and not any(one in value for one in ' "=')
    return value if plain else printable(json.dumps(value, ensure_ascii=False))


class Objects(logging.Formatter):
    """A JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "details", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(settings: ServerSection) -> None:
    """Log on standard error, in the form that is configured."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Objects() if settings.log_format == "json" else Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
