"""Certificates on disk: `certificate.json` in a folder, with everything that it holds for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat

from ensemblehub.artifacts import content_of, parsed, write_atomically
from ensemblehub.errors import ArtifactError

FILE = "certificate.json"
FORMAT = 1
AGAIN = "run the command that certified again, such as `ensemblehub calibrate --max-loss`"


@dataclass(frozen=True)
class Certificate:
    """At most `max_loss` of exchangeable questions are lost, with `confidence`.

    Attributes:
        loss: what counts as lost (`lost-correct` or `net`; docs/judges.md).
        n: number of calibration questions.
        thresholds: the certified setting, by level or option.
        seen: what it brings on the calibration questions.
        holds_for: what it is bound to, by name: models by their identity, everything else by hash.
        made_from: hashes of the calibration questions and of the path of settings.
        give_up: probabilities below which the mentor is stopped in it, by level; empty where it never is.
        scores: histograms of the judge's `first` and `last` probability of a question (`tandem/drift.py`).
    """

    loss: str
    max_loss: FiniteFloat
    confidence: FiniteFloat
    n: int
    thresholds: dict[str, FiniteFloat]
    seen: dict[str, Any]
    holds_for: dict[str, str]
    made_from: dict[str, str]
    scores: dict[str, list[int]]
    format: int = FORMAT
    give_up: dict[str, FiniteFloat] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it into `folder`."""
        write_atomically(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")

    def differing(self, now: Mapping[str, str]) -> list[str]:
        """What is not as it was certified, a sentence each."""
        return [
            f"the certificate holds for {name} {self.holds_for[name]!r}, not {now.get(name)!r}"
            if name in self.holds_for
            else f"the certificate holds without {name} {now[name]!r}"
            for name in dict.fromkeys([*self.holds_for, *now])
            if now.get(name) != self.holds_for.get(name)
        ]

    def __str__(self) -> str:
        promised, confidence = percent(self.max_loss, 2), percent(self.confidence, 0)
        return f"{self.loss} <= {promised} with {confidence} confidence"


def percent(share: float, decimals: int) -> str:
    """A share in percent with all of its digits, and at least so many decimals: a promise is never rounded."""
    exact = Decimal(str(share)).scaleb(2).normalize()
    return f"{exact:.{max(decimals, -int(exact.as_tuple().exponent))}f}%"


def load_certificate(folder: Path) -> Certificate | None:
    """The certificate in `folder`; None where there is none.

    Raises:
        ArtifactError: it is damaged, or of another version.
    """
    path = folder / FILE
    if not path.exists():
        return None
    found = parsed(Certificate, content_of(path, AGAIN), path, AGAIN)
    if found.format != FORMAT:
        raise ArtifactError(f"{path} has format {found.format}, this version reads {FORMAT}: {AGAIN}")
    return found
