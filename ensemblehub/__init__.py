"""ensemblehub: reasoning from language models at a fraction of the cost.

Public names are imported on first use, so importing this package loads no backend.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensemblehub.client import Ensemble as Ensemble
    from ensemblehub.config import Config as Config
    from ensemblehub.cost import Cost as Cost
    from ensemblehub.cost import Usage as Usage
    from ensemblehub.ensemble import AsyncEnsemble as AsyncEnsemble
    from ensemblehub.ensemble_methods.model_selection.all import All as All
    from ensemblehub.ensemble_methods.model_selection.learned import Learned as Learned
    from ensemblehub.ensemble_methods.model_selection.model_judgment import ModelJudgment as ModelJudgment
    from ensemblehub.ensemble_methods.model_selection.random import RandomSelection as RandomSelection
    from ensemblehub.ensemble_methods.model_selection.zscore import ZScore as ZScore
    from ensemblehub.ensemble_methods.output_aggregation.best_of import BestOf as BestOf
    from ensemblehub.ensemble_methods.output_aggregation.cascade import Cascade as Cascade
    from ensemblehub.ensemble_methods.output_aggregation.distribution import (
        DistributionMixture as DistributionMixture,
    )
    from ensemblehub.ensemble_methods.output_aggregation.early_exit import EarlyExit as EarlyExit
    from ensemblehub.ensemble_methods.output_aggregation.fuse import Fuse as Fuse
    from ensemblehub.ensemble_methods.output_aggregation.gac import GaC as GaC
    from ensemblehub.ensemble_methods.output_aggregation.hint import Hint as Hint
    from ensemblehub.ensemble_methods.output_aggregation.loop import Loop as Loop
    from ensemblehub.ensemble_methods.output_aggregation.plan_on_failure import PlanOnFailure as PlanOnFailure
    from ensemblehub.ensemble_methods.output_aggregation.progressive import Progressive as Progressive
    from ensemblehub.ensemble_methods.output_aggregation.random import RandomAggregation as RandomAggregation
    from ensemblehub.ensemble_methods.output_aggregation.review import Review as Review
    from ensemblehub.ensemble_methods.output_aggregation.reward_based import RewardBased as RewardBased
    from ensemblehub.ensemble_methods.output_aggregation.single import Single as Single
    from ensemblehub.ensemble_methods.output_aggregation.stepwise import Stepwise as Stepwise
    from ensemblehub.ensemble_methods.output_aggregation.switch import Switch as Switch
    from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem as Tandem
    from ensemblehub.ensemble_methods.output_aggregation.think_on_failure import (
        ThinkOnFailure as ThinkOnFailure,
    )
    from ensemblehub.ensemble_methods.output_aggregation.vote import Vote as Vote
    from ensemblehub.errors import ArtifactError as ArtifactError
    from ensemblehub.errors import CapabilityError as CapabilityError
    from ensemblehub.errors import ConfigError as ConfigError
    from ensemblehub.errors import ContextOverflowError as ContextOverflowError
    from ensemblehub.errors import EngineError as EngineError
    from ensemblehub.errors import EnsembleHubError as EnsembleHubError
    from ensemblehub.errors import MissingExtraError as MissingExtraError
    from ensemblehub.errors import RequestError as RequestError
    from ensemblehub.schema import Chat as Chat
    from ensemblehub.schema import Choice as Choice
    from ensemblehub.schema import Event as Event
    from ensemblehub.schema import Message as Message
    from ensemblehub.schema import Piece as Piece
    from ensemblehub.schema import Request as Request
    from ensemblehub.schema import Result as Result
    from ensemblehub.schema import Sampling as Sampling
    from ensemblehub.schema import Verdict as Verdict

__version__ = "0.1.0"
_SELECTION = "ensemble_methods.model_selection"
_AGGREGATION = "ensemble_methods.output_aggregation"
_NAMES = {
    "client": "Ensemble",
    "config": "Config",
    "cost": "Cost Usage",
    "ensemble": "AsyncEnsemble",
    f"{_SELECTION}.all": "All",
    f"{_SELECTION}.learned": "Learned",
    f"{_SELECTION}.model_judgment": "ModelJudgment",
    f"{_SELECTION}.random": "RandomSelection",
    f"{_SELECTION}.zscore": "ZScore",
    f"{_AGGREGATION}.best_of": "BestOf",
    f"{_AGGREGATION}.cascade": "Cascade",
    f"{_AGGREGATION}.distribution": "DistributionMixture",
    f"{_AGGREGATION}.early_exit": "EarlyExit",
    f"{_AGGREGATION}.fuse": "Fuse",
    f"{_AGGREGATION}.gac": "GaC",
    f"{_AGGREGATION}.hint": "Hint",
    f"{_AGGREGATION}.loop": "Loop",
    f"{_AGGREGATION}.plan_on_failure": "PlanOnFailure",
    f"{_AGGREGATION}.progressive": "Progressive",
    f"{_AGGREGATION}.random": "RandomAggregation",
    f"{_AGGREGATION}.review": "Review",
    f"{_AGGREGATION}.reward_based": "RewardBased",
    f"{_AGGREGATION}.single": "Single",
    f"{_AGGREGATION}.stepwise": "Stepwise",
    f"{_AGGREGATION}.switch": "Switch",
    f"{_AGGREGATION}.tandem": "Tandem",
    f"{_AGGREGATION}.think_on_failure": "ThinkOnFailure",
    f"{_AGGREGATION}.vote": "Vote",
    "errors": "ArtifactError CapabilityError ConfigError ContextOverflowError EngineError EnsembleHubError "
    "MissingExtraError RequestError",
    "schema": "Chat Choice Event Message Piece Request Result Sampling Verdict",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = [*_MODULE_OF, "__version__"]


if not TYPE_CHECKING:  # with it, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
