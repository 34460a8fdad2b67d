"""What advice weighs: US dollars where both models have a price, else FLOPs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from ensemblehub.cost import Price
from ensemblehub.generators.base import Engine
from ensemblehub.lab.pipeline import replay
from ensemblehub.lab.pipeline.calibration import BudgetUnit

log = logging.getLogger(__name__)
Prices = tuple[Price, Price]  # of the mentor and of the intern
CostUnit = Literal["flops", "usd"]


def prices_of(mentor: Engine, intern: Engine, budget: BudgetUnit = "share") -> Prices | None:
    """The prices that costs are counted by; None where costs are FLOPs.

    Args:
        budget: with `usd`, an intern without a price costs nothing; with `tflops`, prices do not count.

    Raises:
        ConfigError: the budget is in dollars and the mentor is free, or costs are FLOPs and the size of a
            model is unknown.
    """
    if budget == "usd":
        return replay.prices(mentor.info, intern.info)
    unpriced = [engine.name for engine in (mentor, intern) if engine.info.price is None]
    if budget == "share" and not unpriced and replay.is_charged(mentor.info):
        return replay.prices(mentor.info, intern.info)
    more = " and ".join(map(repr, unpriced))
    instead = f", or the `price` of {more} (an intern's may be 0)" if unpriced else ""
    replay.check_sizes((mentor, intern), "costs are FLOPs where a model has no price", instead)
    if len(unpriced) == 1:
        log.warning("costs are FLOPs, not dollars: %r has no `price` (an intern's may be 0)", *unpriced)
    return None


def amount(value: float, unit: CostUnit) -> str:
    """A cost as text: US dollars, or 10^12 FLOPs, to three digits."""
    if unit == "flops":
        return f"{_figure(value / 1e12)} TFLOPs"
    return f"{'-' if value < 0 else ''}${_figure(abs(value))}"


def _figure(value: float) -> str:
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def described(name: str, price: Price) -> str:
    """A price as text."""
    return f"{name} ${price.prompt:g} per million tokens read and ${price.completion:g} written"


def without_prices(header: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of recorded answers without the models' prices, which may change afterwards."""
    cards = {role: {**card, "price": None} for role, card in header["cards"].items()}
    engines = {
        name: {key: value for key, value in options.items() if key != "price"}
        for name, options in header.get("engines", {}).items()
    }
    return {**header, "cards": cards} | ({"engines": engines} if "engines" in header else {})
