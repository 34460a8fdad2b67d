"""An engine around another one."""

from __future__ import annotations

from collections.abc import Sequence

from ensemblehub.generators.base import DevicePlacement, Engine, Footprint, Tokenizer
from ensemblehub.schema import Capability, Request


class WrappedEngine(Engine):
    """Tells of another engine all that is known without computing; subclasses say what is computed how."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.info, self.capabilities = engine.name, engine.info, engine.capabilities
        self._engine = engine

    def why_not(self, capability: Capability) -> str:
        return self._engine.why_not(capability)

    def count(self, request: Request) -> int | None:
        return self._engine.count(request)

    def same_prompt(self, first: Request, second: Request) -> bool:
        return self._engine.same_prompt(first, second)

    @property
    def thinking(self) -> bool | None:
        return self._engine.thinking

    def shared_prompt(self, first: Request, second: Request) -> int:
        return self._engine.shared_prompt(first, second)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._engine.tokenizer

    @property
    def model(self) -> str:
        return self._engine.model

    @property
    def exact(self) -> bool:
        return self._engine.exact

    @property
    def footprint(self) -> Footprint | None:
        return self._engine.footprint

    @property
    def placement(self) -> DevicePlacement | None:
        return self._engine.placement

    @property
    def notes(self) -> Sequence[str]:
        return self._engine.notes

    def describe(self) -> str:
        return self._engine.describe()

    async def load(self) -> None:
        await self._engine.load()

    async def close(self) -> None:
        await self._engine.close()
