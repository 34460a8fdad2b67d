"""A memory plan: what the models on one device take, whether they fit, and what to set so that they do.

It is known before weights load, from `config.json` or the header of a GGUF file.  The figures are estimates;
vLLM measures its activations itself when it starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

from ensemblehub.generators.base import Engine
from ensemblehub.generators.swap import SwappedEngine

USABLE = 0.9  # share of a device's memory that is planned; the rest is for fragments and other programs
OVERHEAD = 2**30  # bytes that libraries, the CUDA context and captured graphs of one model take on a GPU
ROWS = 8  # rows of full length below which a shorter context is recommended
_GIB = 2**30
_ROUND = 256  # recommended contexts are multiples of this, in tokens


@dataclass(frozen=True)
class MemoryNeed:
    """What a model takes on a device, in bytes.

    Attributes:
        token: keys and values of one token.
        context: maximum length of a row, in tokens.
        rows: maximum number of rows with keys and values; None takes as many as fit.
        fixed: weights, activations, the prefix cache beside the rows, and what libraries take.
        swaps: it is loaded by turns.
        share: share of the device that the options fix; None if they do not.
    """

    name: str
    weights: int
    token: int
    context: int
    rows: int | None
    activations: int
    fixed: int
    swaps: bool = False
    share: float | None = None

    @property
    def row(self) -> int:
        """Keys and values of a row of full length."""
        return self.token * self.context

    @property
    def total(self) -> int:
        """Fixed part, and all rows at full length; one row where their number is open."""
        return self.fixed + self.row * (1 if self.rows is None else self.rows)


def need_of(engine: Engine) -> MemoryNeed | None:
    """What an engine takes on each of its devices; None if its model runs elsewhere."""
    footprint, placement = engine.footprint, engine.placement
    if footprint is None or placement is None:
        return None
    count = placement.devices
    token = -(-footprint.token // count)
    overhead = 0 if placement.device == "cpu" else OVERHEAD
    weights = -(-footprint.weights // count)
    return MemoryNeed(
        name=engine.name,
        weights=weights,
        token=token,
        context=engine.info.context,
        rows=placement.rows,
        activations=placement.activations,
        fixed=weights + placement.activations + token * placement.kept + overhead,
        swaps=isinstance(engine, SwappedEngine),
        share=placement.share,
    )


@dataclass(frozen=True)
class DevicePlan:
    """The plan of one device.

    Attributes:
        capacity: its memory in bytes; 0 if it is not here.
        rows: rows of full length that fit for every model at the same time, since a question goes through all
            of them; below 1 the models do not fit.
        shares: share of the device that each model takes with that many rows.
        settings: options to set, by model.
        verdict: one sentence.
    """

    device: str
    capacity: int
    needs: tuple[MemoryNeed, ...]
    rows: float = 0.0
    shares: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, float | bool]] = field(default_factory=dict)
    verdict: str = ""

    @classmethod
    def of(cls, device: str, capacity: int, needs: Sequence[MemoryNeed]) -> DevicePlan:
        """Plan a device.

        With M the planned memory, F_i the fixed part of model i, and R_i a row of full length, all models
        have r = (M - sum F_i) / sum R_i rows, and model i takes F_i + r R_i.  Models that swap count one at a
        time.
        """
        plan = cls(device, capacity, tuple(needs))
        if not capacity:
            total = sum(need.total for need in needs) / _GIB
            verdict = f"they take {total:.1f} GiB at least; its memory is not known here (--gpu-memory GIB)"
            return cls(device, 0, plan.needs, verdict=verdict)
        rows = min(plan._rows(group) for group in plan._loaded_together())
        if rows < 1:
            return plan._that_does_not_fit(rows)
        shares = {}
        for need in needs:
            own = min(plan._rows(group) for group in plan._loaded_together() if need in group)
            shares[need.name] = ceil(1000 * (need.fixed + own * need.row) / capacity) / 1000
        settings = {need.name: plan._settings(need, rows, shares[need.name]) for need in needs}
        together = "fit by turns" if any(need.swaps for need in needs) else "fit"
        verdict = f"they {together}, with {int(rows):,} row{'s' if rows >= 2 else ''} of full length each"
        settings = {name: values for name, values in settings.items() if values}
        return cls(device, capacity, plan.needs, rows, shares, settings, verdict)

    @property
    def planned(self) -> int:
        """Memory that is planned."""
        return int(USABLE * self.capacity)

    def _loaded_together(self) -> list[list[MemoryNeed]]:
        """The sets of models that are in memory at the same time."""
        staying = [need for need in self.needs if not need.swaps]
        return [[*staying, need] for need in self.needs if need.swaps] or [staying]

    def _rows(self, needs: Sequence[MemoryNeed]) -> float:
        """Rows that fit for each of these models."""
        free = self.planned - sum(need.fixed for need in needs)
        width = sum(need.row for need in needs)
        return free / width if width and free > 0 else float(free > 0)

    def _settings(self, need: MemoryNeed, rows: float, share: float) -> dict[str, float | bool]:
        """Options of a model that differ from what it has."""
        if need.rows is not None:
            return {"batch_rows": int(rows)} if need.rows > rows else {}
        settings: dict[str, float | bool] = {}
        if len(self.needs) > 1 and need.share is None:
            settings["gpu_memory_utilization"] = share
        length = int(need.context * rows / ROWS) // _ROUND * _ROUND
        if rows < ROWS and length:
            settings["max_model_len"] = length
        return settings

    def _that_does_not_fit(self, rows: float) -> DevicePlan:
        """The plan of models that do not fit: by turns if that helps, else what is too large."""
        large = [need.name for need in self.needs if self._rows([need]) < 1]
        needed = max(sum(need.fixed + need.row for need in group) for group in self._loaded_together())
        verdict = f"they need {needed / _GIB:.1f} of {self.planned / _GIB:.1f} GiB with one row each"
        settings: dict[str, dict[str, float | bool]] = {}
        if large:
            names = " and ".join(large)
            verdict += (
                f": {names} alone is too large (quantise it, spread it over GPUs, or shorten its context)"
            )
        elif any(need.swaps for need in self.needs):
            verdict += ": let more of them swap"
            settings = {need.name: {"swap": True} for need in self.needs if not need.swaps}
        else:
            verdict += ": load them by turns"
            settings = {need.name: {"swap": True} for need in self.needs}
        return DevicePlan(self.device, self.capacity, self.needs, rows, {}, settings, verdict)


def plans_of(engines: Sequence[Engine], gpu_memory: int = 0) -> list[DevicePlan]:
    """The plan of every device with models.

    Args:
        gpu_memory: bytes of every GPU, instead of those of the GPUs that are here.
    """
    devices: dict[str, list[MemoryNeed]] = {}
    for engine in engines:
        need = need_of(engine)
        if need is not None and engine.placement is not None:
            devices.setdefault(engine.placement.device, []).append(need)
    plans = []
    for device, needs in devices.items():
        of_gpu = device != "cpu" and gpu_memory
        plans.append(DevicePlan.of(device, gpu_memory if of_gpu else memory_of(device), needs))
    return plans


def memory_of(device: str) -> int:
    """Memory of a device in bytes; 0 if it is not here."""
    if device == "cpu":
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
        group = Path("/sys/fs/cgroup/memory.max")
        if group.is_file() and (text := group.read_text().strip()).isdigit():
            limits.append(int(text))
        return min(limits)
    import torch

    kind, _, number = device.partition(":")
    if kind != "cuda" or int(number or 0) >= torch.cuda.device_count():
        return 0
    return int(torch.cuda.get_device_properties(int(number or 0)).total_memory)
