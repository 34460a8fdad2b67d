"""Certificates on disk: `certificate.json` beside the judge, with everything that it holds for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat

from ensemblehub.artifacts import content_of, parsed, write_atomically
from ensemblehub.errors import ArtifactError

FILE = "certificate.json"
FORMAT = 1
AGAIN = "run `ensemblehub calibrate --max-loss` again"


@dataclass(frozen=True)
class Certificate:
    """At most `max_loss` of exchangeable questions are lost, with `confidence`.

    Attributes:
        loss: what counts as lost (`lost-correct` or `net`; docs/judges.md).
        n: number of calibration questions.
        thresholds: the certified setting, by level.
        seen: what it brings on the calibration questions.
        holds_for: what it is bound to, by name: models by their identity, everything else by hash.
        made_from: hashes of the calibration questions and of the path of settings.
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

    def save(self, folder: Path) -> None:
        """Write it beside the judge in `folder`."""
        write_atomically(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")

    def differing(self, now: Mapping[str, str]) -> list[str]:
        """What is not as it was certified, a sentence each."""
        return [
            f"the certificate holds for {name} {certified!r}, not {now.get(name)!r}"
            for name, certified in self.holds_for.items()
            if now.get(name) != certified
        ]

    def __str__(self) -> str:
        return f"{self.loss} <= {self.max_loss:.2%} with {self.confidence:.0%} confidence"


def load_certificate(folder: Path) -> Certificate | None:
    """The certificate beside the judge in `folder`; None where there is none.

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
