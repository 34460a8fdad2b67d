"""The contract of a scorer, and the options of those that load a model of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge

from ensemblehub.cost import UsageMeter
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Price, Request

if TYPE_CHECKING:
    from ensemblehub.generators.hf.loading import HFOptions


class Scorer(ABC):
    """Scores texts; higher is better, the scale is the scorer's own.

    Constructed as `kind(name, options, engines)` with its name, its options and the ensemble's engines, of
    which it may use one.
    """

    options: ClassVar[type]  # frozen dataclass of the scorer's own YAML options
    name: str

    @abstractmethod
    def __init__(self, name: str, options: object, engines: Sequence[Engine]) -> None: ...

    @property
    @abstractmethod
    def model(self) -> str:
        """The model that judges, in the form of `Engine.model`: a model is not asked about its own text."""

    @abstractmethod
    async def score(self, request: Request, texts: Sequence[str], meter: UsageMeter) -> list[float]:
        """Return one score per text.

        Args:
            request: what was asked, with the answer so far as `prefix`.
            texts: continuations of the answer so far, each judged together with it.
            meter: takes the usage.

        Raises:
            EngineError: the scorer failed; a failure is never a score.
        """

    async def load(self) -> None:
        """Load the model; may be called again."""

    async def close(self) -> None:
        """Free the model."""


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """How a scorer loads a model of its own; the options mean what they mean for the `hf` engine."""

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "8bit", "4bit"] = "none"
    trust_remote_code: bool = False
    max_memory: Mapping[int | str, int | str] = field(default_factory=dict)
    threads: Annotated[int, Ge(1)] | None = 1
    price: Price | None = None

    def hf(self) -> HFOptions:
        """These options, and those of a subclass that have a counterpart, as options of the `hf` engine."""
        from ensemblehub.generators.hf.loading import HFOptions

        names = {field.name for field in fields(HFOptions)}
        return HFOptions(**{name: value for name, value in vars(self).items() if name in names})
