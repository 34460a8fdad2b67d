"""An ensemble of judges (`ensemble`): their logits, weighed by a logistic regression on validation questions.

Wolpert, "Stacked generalization", 1992.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, cast

import numpy as np

from ensemblehub import registry
from ensemblehub.tandem.curves import Curve
from ensemblehub.tandem.judges import JUDGES, Arrays, FeatureClassifier, Floats, Judge, ReadingBatch
from ensemblehub.tandem.sequence_judges import SequenceJudge

Trained = FeatureClassifier | SequenceJudge


@dataclass(frozen=True)
class Stack(Judge):
    """Several trained judges as one.

    Attributes:
        members: by kind.
        weights: of their logits, in order, and the constant: (members + 1,).
    """

    kind: ClassVar[str] = "ensemble"
    members: Mapping[str, Trained]
    weights: Floats
    curve: Curve = field(default_factory=Curve)

    @property
    def flops(self) -> float:  # type: ignore[override]
        """All members' together."""
        return sum(member.flops for member in self.members.values())

    def logits(self, readings: ReadingBatch) -> Floats:
        """Outputs before calibration, float64 of shape (n,)."""
        said = np.stack([member.logits(readings) for member in self.members.values()], axis=1)
        return np.asarray(said @ self.weights[:-1] + self.weights[-1])

    def probabilities_of(self, readings: ReadingBatch) -> Floats:
        return self.curve(self.logits(readings))

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        arrays: Arrays = {"weights": self.weights, "curve": self.curve.knots}
        options: dict[str, Any] = {"curve": self.curve.method, "members": {}}
        for kind, member in self.members.items():
            own, options["members"][kind] = member.state()
            arrays |= {f"{kind}/{name}": array for name, array in own.items()}
        return arrays, options

    @classmethod
    def restored(cls, arrays: Arrays, options: Mapping[str, Any], /) -> Self:
        members: dict[str, Trained] = {}
        for kind, own in options["members"].items():
            prefix = f"{kind}/"
            parts = {
                name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)
            }
            member = registry.lookup(JUDGES, kind, "judge")
            if not issubclass(member, FeatureClassifier | SequenceJudge):
                raise ValueError(f"a member {kind!r}, which cannot be one")
            members[kind] = cast(type[Trained], member).restored(parts, own)
        weights = arrays["weights"]
        if not members or weights.shape != (len(members) + 1,):
            raise ValueError(f"weights of shape {weights.shape} for {len(members)} members")
        return cls(members, weights, Curve.restored(options["curve"], arrays["curve"]))
