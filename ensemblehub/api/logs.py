"""The server's log on standard error: lines for a person, or JSON objects."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from ensemblehub.config.sections import ServerSection


class TextLogLines(logging.Formatter):
    """Formats a record as one line that ends with the details of its request.

    Text from outside can neither begin a line nor look like a detail: unprintable characters are escaped, a
    value with a space, a quote or `=` in it is quoted, and a traceback is indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        details = [
            f"{key}={_value(value)}"
            for key, value in getattr(record, "details", {}).items()
            if value is not None and key not in ("method", "path", "status")
        ]
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = " ".join([f"{stamp} {record.levelname.lower()}: {printable(record.getMessage())}", *details])
        if not record.exc_info:
            return text
        trace = self.formatException(record.exc_info).split("\n")
        return "\n".join([text, *(f"    {printable(line)}" for line in trace)])


def printable(text: str) -> str:
    """A text on one line of a log: unprintable characters are escaped, as Python writes them."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _value(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value, default=str)
    plain = value.isprintable() and not set(value) & set(' "=')
    return value if plain else printable(json.dumps(value, ensure_ascii=False))


class JsonLogLines(logging.Formatter):
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
    handler.setFormatter(JsonLogLines() if settings.log_format == "json" else TextLogLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
