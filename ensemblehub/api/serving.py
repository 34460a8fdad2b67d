"""`ensemblehub serve`: an application on a socket, its keys, its logs and its end."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ensemblehub.config import Config
from ensemblehub.errors import ConfigError, EngineError, MissingExtraError
from ensemblehub.sections import ServerSection

try:
    import orjson
    import uvicorn

    from ensemblehub.api.app import create_app
    from ensemblehub.api.state import State
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[serve]'") from error

log = logging.getLogger("ensemblehub.api")


class Server(uvicorn.Server):
    """A server that says when it is ending, and that ends when its models cannot be loaded."""

    state: State

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.state.word = "draining"
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but being told to stop is no failure: the signal is not raised again at the end."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


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
            app, log_config=None, access_log=False, server_header=False, lifespan="on",
            timeout_graceful_shutdown=max(1, round(settings.drain)), backlog=1024,
        )
    )  # fmt: skip
    server.state = state
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
    """A line per record, with the details of a request behind it."""

    def format(self, record: logging.LogRecord) -> str:
        details = {key: value for key, value in getattr(record, "details", {}).items() if value is not None}
        said = " ".join(f"{key}={value}" for key, value in details.items() if key not in ("method", "path", "status"))
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{stamp} {record.levelname.lower()}: {record.getMessage()}{' ' + said if said else ''}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class Objects(logging.Formatter):
    """A JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": record.created, "level": record.levelname.lower(), "logger": record.name,
            "message": record.getMessage(), **getattr(record, "details", {}),
        }  # fmt: skip
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def log_to_stderr(settings: ServerSection) -> None:
    """Log on standard error, in the form that is configured."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Objects() if settings.log_format == "json" else Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
