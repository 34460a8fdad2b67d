"""ensemblehub: reasoning from language models at a fraction of the cost.

Importing this package loads no backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["AsyncEnsemble", "__version__"]

if TYPE_CHECKING:
    from ensemblehub.ensemble import AsyncEnsemble


def __getattr__(name: str) -> Any:
    if name == "AsyncEnsemble":
        from ensemblehub.ensemble import AsyncEnsemble

        return AsyncEnsemble
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
