"""Sufficiency judges on disk: a folder with `judge.safetensors` and `judge.json`, never a pickle.

The JSON names the pair, prompts, levels and data the judge was trained for, its metrics on held-out questions
and its calibrated thresholds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import FiniteFloat
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from ensemblehub import builtin, registry
from ensemblehub.artifacts import content_of, parsed, write_atomically
from ensemblehub.errors import ArtifactError, ConfigError, MissingExtraError, did_you_mean
from ensemblehub.tandem import certificate
from ensemblehub.tandem.estimates import Length
from ensemblehub.tandem.features import FEATURE_NAMES
from ensemblehub.tandem.insights import Scope
from ensemblehub.tandem.judges import JUDGES, Arrays, EntropyRule, Fixed, Judge, PerplexityRule

FORMAT = 1
AGAIN = "train it again"
RULES = {"entropy": EntropyRule, "perplexity": PerplexityRule}


@dataclass(frozen=True)
class JudgeArtifact:
    """A judge with its thresholds and metadata.

    Attributes:
        mentor, intern, prompts: the pair and the fingerprint of the words it was made for; empty for a rule,
            which goes with any.
        scope: the tokens it reads.
        levels: mentor token budget by level, level 0 first.
        thresholds: the probability that suffices, by level; None until calibrated.
        give_up: the probability below which the mentor is stopped, by level; None where it never is.
        data: what it was made from (task, split, number of questions).
        metrics: on held-out questions.
        estimates: predictions stored with it, such as how long the mentor alone would have written.
    """

    judge: Judge
    mentor: str = ""
    intern: str = ""
    prompts: str = ""
    scope: Scope = "question+insight"
    levels: Mapping[str, int] = field(default_factory=dict)
    thresholds: Mapping[str, float] | None = None
    give_up: Mapping[str, float] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    estimates: Mapping[str, Any] = field(default_factory=dict)

    def check(
        self,
        mentor: str,
        intern: str,
        prompts: str,
        strict: bool = False,
        levels: Mapping[str, int] | None = None,
    ) -> list[str]:
        """Mismatches with the pair (and the levels, if given) that uses this judge, a sentence each.

        Raises:
            ArtifactError: something does not match, and `strict` is set.
        """
        asked = {
            "mentor": (self.mentor, mentor),
            "intern": (self.intern, intern),
            "prompts": (self.prompts, prompts),
        }
        found = [
            f"the judge was made for {what} {made_for!r}, not {used!r}: its probabilities may be off"
            for what, (made_for, used) in asked.items()
            if made_for and made_for != used
        ]
        if levels is not None and self.levels and list(levels.items()) != list(self.levels.items()):
            found.append(
                f"the judge was made for levels {dict(self.levels)}, not {dict(levels)}: train it again"
            )
        if found and strict:
            raise ArtifactError(f"{found[0]} (strict)")
        return found

    def save(self, folder: Path) -> None:
        """Write the folder.

        Files are written atomically.  The JSON is written last and holds the weights' SHA-256, so that an
        interrupted save leaves the old judge or one that `load_judge` refuses.  A certificate of the old
        judge is removed.
        """
        (folder / certificate.FILE).unlink(missing_ok=True)
        weights, (_, options) = self.weights, self.judge.state()
        record = self.record() | {"options": options, "sha256": hashlib.sha256(weights).hexdigest()}
        write_atomically(folder / "judge.safetensors", weights)
        write_atomically(folder / "judge.json", json.dumps(record, indent=1) + "\n")

    @property
    def weights(self) -> bytes:
        """The judge's arrays as `judge.safetensors` holds them."""
        arrays, _ = self.judge.state()
        saved: bytes = safetensors.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        return saved

    def record(self) -> dict[str, Any]:
        """The readable part of `judge.json`."""
        return {
            "format": FORMAT,
            "kind": self.judge.kind,
            "mentor": self.mentor,
            "intern": self.intern,
            "prompts": self.prompts,
            "features": list(FEATURE_NAMES),
            "scope": self.scope,
            "levels": dict(self.levels),
            "thresholds": None if self.thresholds is None else dict(self.thresholds),
            "data": dict(self.data),
            "metrics": dict(self.metrics),
            "estimates": dict(self.estimates),
            **({"give_up": dict(self.give_up)} if self.give_up else {}),
        }


@dataclass(frozen=True)
class JudgeRecord:
    """The contents of `judge.json`; see `JudgeArtifact`.

    Attributes:
        kind: of the judge, `options` what it is made of besides its arrays, whose file has the hash `sha256`.
        features: the names of the features it was trained on.
    """

    format: int
    kind: str
    mentor: str
    intern: str
    prompts: str
    features: list[str]
    scope: Scope
    levels: dict[str, int]
    thresholds: dict[str, FiniteFloat] | None
    data: dict[str, Any]
    metrics: dict[str, Any]
    estimates: dict[str, Any]
    options: dict[str, Any]
    sha256: str
    give_up: dict[str, FiniteFloat] | None = None


def load_judge(folder: Path) -> JudgeArtifact:
    """Read a saved judge; needs torch only where the judge does, and no scikit-learn.

    Raises:
        ArtifactError: it is missing, damaged, or of another format; one line that names the folder.
        MissingExtraError: it judges with torch, which is not installed.
    """
    text, weights = (_bytes(folder, name) for name in ("judge.json", "judge.safetensors"))
    named = f"the judge in {folder}"
    version = parsed(dict[str, Any], text, f"{named}: judge.json", AGAIN).get("format")
    if version != FORMAT and isinstance(version, int):
        raise ArtifactError(f"{named} has format {version}, this version reads {FORMAT}: {AGAIN}")
    record = parsed(JudgeRecord, text, f"{named}: judge.json", AGAIN)
    if record.features != list(FEATURE_NAMES):
        raise ArtifactError(f"{named} was made for other features: {AGAIN}")
    if hashlib.sha256(weights).hexdigest() != record.sha256:
        raise ArtifactError(f"{named} is damaged (judge.safetensors does not match): {AGAIN}")
    if stored := record.estimates.get("mentor_alone_tokens"):
        parsed(Length, json.dumps(stored), f"{named}: judge.json: estimates", AGAIN)
    try:
        return _artifact(record, safetensors.load(weights))
    except MissingExtraError:
        raise
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        ConfigError,
        SafetensorError,
    ) as error:
        raise ArtifactError(f"{named} is damaged ({' '.join(str(error).split())}): {AGAIN}") from error


def _bytes(folder: Path, name: str) -> bytes:
    if not (folder / name).exists():
        raise ArtifactError(f"no judge in {folder}: {name} is missing")
    return content_of(folder / name, AGAIN)


def _artifact(record: JudgeRecord, arrays: Arrays) -> JudgeArtifact:
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("weights that are not finite")
    for name, limits in (("thresholds", record.thresholds), ("give_up", record.give_up)):
        for level in limits or {}:
            if record.levels and level not in record.levels:
                raise ConfigError(f"{name}: {did_you_mean(level, record.levels, 'level')}")
    judge = cast(type[Judge], registry.lookup(JUDGES, record.kind, "judge")).restored(arrays, record.options)
    names = (own.name for own in fields(JudgeArtifact) if own.name != "judge")
    return JudgeArtifact(judge, **{name: getattr(record, name) for name in names})


def resolve_judge(judge: str, levels: Sequence[str]) -> JudgeArtifact:
    """The judge that a configuration names, thresholds included.

    Args:
        judge: `entropy:X` or `perplexity:X` (sufficient when the intern's mean is at most X), `fixed:LEVEL`,
            or the folder of a trained one (`builtin:NAME` stands for one that ships).
        levels: names of all levels in order, level 0 first.

    Raises:
        ConfigError: a number or a level that cannot be.
        ArtifactError: see `load_judge`.
    """
    kind, _, value = judge.partition(":")
    if kind in RULES:
        try:
            rule = RULES[kind](float(value))
        except ValueError as error:
            raise ConfigError(f"judge `{kind}:X` needs a number above 0, got {value!r}") from error
        return JudgeArtifact(rule, thresholds=dict.fromkeys(levels, 0.5))
    if kind == "fixed":
        if value not in levels:
            raise ConfigError(f"judge {judge!r}: {did_you_mean(value, levels, 'level')}")
        return JudgeArtifact(Fixed(list(levels).index(value)), thresholds=dict.fromkeys(levels, 1.0))
    folder = Path(builtin.resolve(judge))
    if value and not folder.exists():
        raise ConfigError(did_you_mean(kind, (*RULES, "fixed"), "judge"))
    return load_judge(folder)
