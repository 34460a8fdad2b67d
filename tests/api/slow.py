"""An `echo` engine that writes down when it begins, ends and is stopped, and that can take its time to load."""

import asyncio
import json
import time
from contextlib import aclosing
from dataclasses import dataclass

from ensemblehub.errors import EngineError
from ensemblehub.generators.echo import EchoEngine, EchoOptions


@dataclass(frozen=True)
class SlowOptions(EchoOptions):
    journal: str = ""
    loading: float = 0.0
    broken: bool = False


class SlowEngine(EchoEngine):
    options = SlowOptions

    async def load(self):
        await asyncio.sleep(self.script.loading)
        if self.script.broken:
            raise EngineError(f"{self.name} has no weights")

    async def stream(self, request, meter):
        self.note("begins")
        ended = "stopped"
        try:
            async with aclosing(super().stream(request, meter)) as pieces:
                async for piece in pieces:
                    yield piece
            ended = "ended"
        finally:
            self.note(ended)

    def note(self, what):
        if self.script.journal:
            with open(self.script.journal, "a") as file:
                file.write(json.dumps([what, self.name, time.time()]) + "\n")
