"""Strings of a body that are no text: half a surrogate pair, which JSON can write and no model can read."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel, model_validator

from ensemblehub.api.problems import Problem
from ensemblehub.surrogates import has_halves


class WholeCharacters(BaseModel):
    """A request body in which every string is text; comes first among a class's bases, to be asked first."""

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: Any) -> Any:
        at = half_character(given)
        if at is not None:
            text = f"{at or 'the body'}: half a surrogate pair is no character; send both halves, or neither"
            raise Problem(400, text, "invalid_value", at or None)
        return given


def half_character(body: Any) -> str | None:
    """Where in a JSON value a string holds half a surrogate pair, as `messages.0.content`; None where none does."""
    try:
        orjson.dumps(body)
        return None
    except TypeError:
        pass  # that, or a number that only Python can hold
    waiting: list[tuple[str, Any]] = [("", body)]
    while waiting:
        at, value = waiting.pop()
        if isinstance(value, str) and has_halves(value):
            return at
        inner = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for name, one in inner:
            if isinstance(name, str) and has_halves(name):
                return at
            waiting.append((f"{at}.{name}" if at else str(name), one))
    return None
