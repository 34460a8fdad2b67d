"""Engines that break on purpose, as code outside the package: `engine: benchmarks.broken:hf` in a YAML file.

Every engine of the registry has one, with two more options: `fault` and `after`.  `raise`: the model raises once in
every `after` forward passes; `nan`: its logits are no numbers then; `die`: the library ends the engine's thread;
`kill`: the process that computes is killed behind `after` pieces (vLLM).
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

from ensemblehub import registry
from ensemblehub.cost import UsageMeter
from ensemblehub.schema import Piece, Request


def __getattr__(name: str) -> type:
    if name not in registry.ENGINES:
        raise AttributeError(name)
    return broken(registry.lookup(registry.ENGINES, name, "engine"))


def broken(kind: Any) -> type:
    """An engine like `kind` that breaks."""

    class Broken(kind):  # type: ignore[misc]
        options = dataclasses.make_dataclass(
            f"Broken{kind.options.__name__}",
            [("fault", str, "raise"), ("after", int, 12)],
            bases=(kind.options,),
            frozen=True,
            namespace={"__module__": kind.options.__module__},
        )

        def _load(self) -> Any:
            model = super()._load()
            sabotage(model, self.settings.fault, self.settings.after)
            return model

        async def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
            written = 0
            async for piece in super().stream(request, meter):
                yield piece
                written += 1
                if self.settings.fault == "kill" and written == self.settings.after:
                    for process in self._worker.llm.engine_core.resources.engine_manager.processes:
                        process.kill()

    return Broken


def sabotage(model: Any, fault: str, after: int) -> None:
    """Let a model's forward pass fail."""
    forward, passes = model.forward, 0

    def failing(*args: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes < after:
            return forward(*args, **options)
        passes = 0
        if fault == "die":
            raise SystemExit("the library ended its thread")
        if fault == "raise":
            raise RuntimeError("out of memory\nwith a long trace")
        logits = forward(*args, **options)
        logits[...] = float("nan")
        return logits

    model.forward = failing
