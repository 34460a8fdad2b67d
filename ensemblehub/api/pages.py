"""Routes for people: the page, the results that its board shows, and the API's documentation."""

from __future__ import annotations

import json
from asyncio import to_thread
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from ensemblehub import board
from ensemblehub.api.problems import Problem

PAGE = Path(__file__).parent / "page"
_PAGE_PARTS = {file.name for file in PAGE.iterdir() if file.suffix != ".html"}
_DOCS = Path(fastapi_offline.__file__).parent / "static"
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def add_page_routes(app: FastAPI) -> None:
    """Register the page and /docs; neither loads anything from outside hosts."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers=_PAGE_HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in _PAGE_PARTS:
            raise Problem(404, "there is no such page")
        return FileResponse(PAGE / name, headers=_PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="ensemblehub",
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="/docs/favicon.png",
        )

    app.mount("/docs", StaticFiles(directory=_DOCS))


def add_board_routes(app: FastAPI, folders: Sequence[Path]) -> None:
    """Register what the page's board shows: the result folders that the operator named, as they are when asked for.

    Raises:
        ArtifactError: A folder holds no report of `ensemblehub bench`.
    """
    for folder in folders:
        board.report_of(folder)

    @app.get("/v1/ensemble/board", response_model=dict[str, Any], tags=["ensembles"])
    async def boards() -> Response:
        """The result folders on the board, by their titles."""
        titles = [{"title": board.report_of(folder)["title"]} for folder in folders]
        return _json(json.dumps({"results": titles}))

    @app.get("/v1/ensemble/board/{place}", response_model=dict[str, Any], tags=["ensembles"])
    async def results(place: int) -> Response:
        """One of them: its table, its questions, and who answered them right."""
        folder = chosen(place)
        return _json(await to_thread(lambda: _results(folder, _state(folder))))

    @app.get("/v1/ensemble/board/{place}/answers", response_model=dict[str, Any], tags=["ensembles"])
    async def answers(place: int, question: str) -> Response:
        """Every answer to one question, by its id."""
        folder = chosen(place)
        cells = await to_thread(lambda: board.answers(folder, board.report_of(folder), question))
        if not any(cell["answers"] for cell in cells):
            raise Problem(404, f"no question {question!r} was answered", "not_found", "question")
        return _json(json.dumps({"cells": cells}))

    def chosen(place: int) -> Path:
        if not 0 <= place < len(folders):
            raise Problem(404, f"there are {len(folders)} results on the board", "not_found", "place")
        return folders[place]


@lru_cache(maxsize=16)
def _results(folder: Path, _: tuple[Any, ...]) -> str:
    """JSON of a board, one for as long as the folder is as it was: 67,000 answers take two seconds to read."""
    return json.dumps(board.section(folder, board.report_of(folder), board.OUTCOME))


def _state(folder: Path) -> tuple[tuple[Path, int, int], ...]:
    """Of every file, when it was written and its bytes."""
    files = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in files)


def _json(value: str) -> Response:
    """JSON as `json.dumps` writes it, in ASCII: answers of models may hold halves of surrogate pairs."""
    return Response(value, media_type="application/json")
