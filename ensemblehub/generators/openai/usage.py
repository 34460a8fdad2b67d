"""Usage as providers report it, in any place and form.  Impossible figures count as missing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_TOKENS = 10**9
_MOST_DOLLARS = 1e6
_MOST_FLOPS = 1e24


@dataclass(frozen=True)
class APIUsage:
    """The usage that a reply reports; None where it reports none, or an impossible figure.

    Attributes:
        read, cached, written: tokens.
        usd: US dollars.
        flops: as they were, and as they would be with empty caches; servers of this project report them.
        sure: whether every figure needed was reported, and none as an estimate.
    """

    read: int | None = None
    cached: int = 0
    written: int | None = None
    usd: float | None = None
    flops: tuple[float, float] | None = None
    sure: bool = False

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> APIUsage | None:
        """The usage in a reply or an event; None where there is none."""
        choices = reply.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        places = [place for place in (reply, reply.get("x_groq"), first) if isinstance(place, dict)]
        found = (place.get("usage") for place in places)
        usage = next((usage for usage in found if usage and isinstance(usage, dict)), None)
        return None if usage is None else cls._read(usage)

    @classmethod
    def _read(cls, usage: Mapping[str, Any]) -> APIUsage:
        details = usage.get("prompt_tokens_details")
        cached_tokens = details.get("cached_tokens") if isinstance(details, dict) else details
        told = (cached_tokens, usage.get("cached_tokens"), usage.get("prompt_cache_hit_tokens"), 0)
        cached = number(_first(*told), MOST_TOKENS)
        read = _count(usage.get("prompt_tokens"), usage.get("input_tokens"))
        written = _count(usage.get("completion_tokens"), usage.get("output_tokens"))
        known = read is not None and written is not None and cached is not None and cached <= read
        usd, sure = _dollars(usage)
        return cls(read, min(int(cached or 0), read or 0), written, usd, _flops(usage), known and sure)


def _flops(usage: Mapping[str, Any]) -> tuple[float, float] | None:
    """FLOPs in `cost_details`, with the caches as they were and with empty ones."""
    details = usage.get("cost_details")
    given = details if isinstance(details, dict) else {}
    spent, cold = (number(given.get(name), _MOST_FLOPS) for name in ("flops", "cold_flops"))
    return (spent, cold) if spent and cold and cold >= spent else None


def _dollars(usage: Mapping[str, Any]) -> tuple[float | None, bool]:
    """US dollars, and whether they are reliable; `cost` is a number, or an object that holds one.

    Details of 0 beside a `cost` of null are those of a server that knows no price, as this project's.
    """
    cost = usage.get("cost")
    objects = [entry for entry in (cost, usage.get("cost_details")) if isinstance(entry, dict)]
    inner = [entry.get(name) for entry in objects for name in ("usd", "total_cost")]
    given = _first(None if isinstance(cost, dict) else cost, *inner)
    if "cost" in usage and cost is None and number(given, 0) is not None:
        given = None
    usd = number(given, _MOST_DOLLARS)
    estimated = any(entry.get("estimated") is True for entry in objects)
    return usd, (given is None or usd is not None) and not estimated


def _count(*values: Any) -> int | None:
    count = number(_first(*values), MOST_TOKENS)
    return None if count is None else int(count)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def number(value: Any, most: float) -> float | None:
    """Return a number from 0 to `most`, also from a string; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,15}(\.\d{1,15})?\s*", value, re.ASCII):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        return None
    return float(value) if math.isfinite(value) else None
