"""Bodies of requests: read, decoded and checked; large ones beside the event loop, one at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ensemblehub.api.problems import Problem, problem_of_fields

T = TypeVar("T")
_LARGE = 2**15  # bytes
_DEEPEST = 64  # objects and lists inside each other
_MOST_FIELDS = 2**14  # of one object
_beside = ThreadPoolExecutor(1, "reading")  # one, so that large bodies and prompts do not pile up in memory


async def beside(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns, from the one thread that reads large bodies and prompts."""
    return await asyncio.get_running_loop().run_in_executor(_beside, work, *arguments)


class JSONRoute(APIRoute):
    """A route whose body is read and checked here; the endpoint gets it as its declared model."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        kind: Any = self.body_field.field_info.annotation if self.body_field else None
        if kind is None:
            return handler

        class Body(Request):
            async def body(self) -> bytes:
                try:
                    raw = await super().body()
                except ClientDisconnect as error:
                    raise Problem(400, "the client left before the whole body had come") from error
                if not raw:
                    raise Problem(400, "the body is empty: a JSON object is needed")
                return raw

            async def json(self) -> Any:
                raw = await self.body()
                return parsed(raw, kind) if len(raw) < _LARGE else await beside(parsed, raw, kind)

        async def handle(request: Request) -> Response:
            return await handler(Body(request.scope, request.receive))

        return handle


def parsed(raw: bytes, kind: type[BaseModel]) -> Any:
    """A body as its model.

    Raises:
        Problem: it is not a JSON object in UTF-8, is of no reasonable shape, or has a wrong field.
    """
    given = _shaped(_decoded(raw))
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        wrong = RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found])
        raise problem_of_fields(wrong, sorted(kind.model_fields)) from error


def _decoded(raw: bytes) -> Any:
    if raw.startswith(b"\x1f\x8b"):
        raise Problem(400, "the body is compressed (gzip): send it as plain JSON", "invalid_encoding")
    encoding = json.detect_encoding(raw)
    try:
        return json.loads(raw.decode(encoding))
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise Problem(
            400, f"the body is not UTF-8 ({byte}): JSON is sent in UTF-8", "invalid_encoding"
        ) from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise Problem(400, f"the body is not JSON: {error}", "invalid_json") from error


def _shaped(given: Any) -> Any:
    """The body, once it is an object that is neither too deep nor too wide."""
    if not isinstance(given, dict):
        raise Problem(400, "the body must be a JSON object", "invalid_json")
    level: list[Any] = [given]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict) and len(one) > _MOST_FIELDS:
                raise Problem(
                    400, f"an object has at most {_MOST_FIELDS} fields here, not {len(one)}", "invalid_value"
                )
            inner = one.values() if isinstance(one, dict) else one
            below += [value for value in inner if isinstance(value, dict | list)]
        level = below
        if not level:
            return given
    raise _too_deep()


def _too_deep() -> Problem:
    return Problem(400, f"objects and lists are at most {_DEEPEST} deep in each other here", "invalid_json")
