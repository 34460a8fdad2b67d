"""Request bodies, read, decoded and validated; large ones beside the event loop, one at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import orjson
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ensemblehub.api.problems import Problem, problem_of_fields
from ensemblehub.surrogates import has_halves

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
LARGE = 2**15  # bytes of a body that is read beside the event loop
_MAX_DEPTH = 64  # objects and lists inside each other
_MAX_FIELDS = 2**14  # of one object
_thread = ThreadPoolExecutor(1, "reading")  # one, so that large bodies and prompts do not pile up in memory


async def beside(work: Callable[..., T], *arguments: Any) -> T:
    """The result of `work`, from the one thread that reads large bodies and prompts."""
    return await asyncio.get_running_loop().run_in_executor(_thread, work, *arguments)


class JSONRoute(APIRoute):
    """A route whose body is read and validated here; the endpoint gets it as its declared model."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        model: Any = self.body_field.field_info.annotation if self.body_field else None
        if model is None:
            return handler

        class JSONRequest(Request):
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
                return parsed(raw, model) if len(raw) < LARGE else await beside(parsed, raw, model)

        async def handle(request: Request) -> Response:
            return await handler(JSONRequest(request.scope, request.receive))

        return handle


def parsed(raw: bytes, model: type[BaseModel]) -> Any:
    """A body as its model.

    Raises:
        Problem: it is not a JSON object in UTF-8, is too deep or too wide, or has a wrong field.
    """
    body = _decoded(raw)
    _check_shape(body)
    _check_characters(body)
    return validated(body, model)


def validated(body: Any, model: type[Model]) -> Model:
    """An object as its model.

    Raises:
        Problem: a field is wrong.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        wrong = RequestValidationError([{**wrong, "loc": ("body", *wrong["loc"])} for wrong in found])
        raise problem_of_fields(wrong, sorted(model.model_fields)) from error


def _decoded(raw: bytes) -> Any:
    if raw.startswith(b"\x1f\x8b"):
        raise Problem(400, "the body is compressed (gzip): send it as plain JSON", "invalid_encoding")
    try:
        return json.loads(raw.decode(json.detect_encoding(raw)))
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        text = f"the body is not UTF-8 ({byte}): JSON is sent in UTF-8"
        raise Problem(400, text, "invalid_encoding") from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise Problem(400, f"the body is not JSON: {error}", "invalid_json") from error


def _check_shape(body: Any) -> None:
    """Refuse what is no object, too deep or too wide."""
    if not isinstance(body, dict):
        raise Problem(400, "the body must be a JSON object", "invalid_json")
    level: list[Any] = [body]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict) and len(value) > _MAX_FIELDS:
                text = f"an object has at most {_MAX_FIELDS} fields here, not {len(value)}"
                raise Problem(400, text, "invalid_value")
            inner = value.values() if isinstance(value, dict) else value
            below += [part for part in inner if isinstance(part, dict | list)]
        level = below
        if not level:
            return
    raise _too_deep()


def _too_deep() -> Problem:
    return Problem(400, f"objects and lists are at most {_MAX_DEPTH} deep in each other here", "invalid_json")


def _check_characters(body: Any) -> None:
    """Refuse half a surrogate pair, which JSON can write and no model can read; says where it stands."""
    try:
        orjson.dumps(body)
        return
    except TypeError:
        pass  # that, or a number that only Python can hold
    waiting: list[tuple[str, Any]] = [("", body)]
    while waiting:
        at, value = waiting.pop()
        strings = [value, *value] if isinstance(value, dict) else [value]
        if any(isinstance(string, str) and has_halves(string) for string in strings):
            text = f"{at or 'the body'}: half a surrogate pair is no character; send both halves, or neither"
            raise Problem(400, text, "invalid_value", at or None)
        inner = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(inner, dict):
            waiting += [(f"{at}.{name}" if at else str(name), part) for name, part in inner.items()]
