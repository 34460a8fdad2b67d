"""Sufficiency judges on disk: a folder with `judge.safetensors` and `judge.json`, never a pickle.

The JSON says what the judge was made for (pair, prompts, levels) and from (data), how good it is on
held-out questions, and which thresholds were calibrated.  Knows no engine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from safetensors import numpy as safetensors

from ensemblehub import registry, studio
from ensemblehub.errors import ArtifactError, ConfigError, did_you_mean
from ensemblehub.tandem.features import FEATURE_NAMES
from ensemblehub.tandem.judges import JUDGES, Arrays, EntropyRule, Fixed, Judge, PerplexityRule, Reading
from ensemblehub.tandem.training import train_judge

__all__ = ["Artifact", "Judge", "Reading", "load", "resolve", "train_judge"]

FORMAT = 1
Scope = Literal["question+insight", "insight"]
RULES = {"entropy": EntropyRule, "perplexity": PerplexityRule}


@dataclass(frozen=True)
class Artifact:
    """A judge with everything one must know to use it.

    Attributes:
        mentor, intern, prompts: the pair and the fingerprint of the words it was made for; empty for a rule,
            which goes with any.
        scope: the tokens it reads.
        levels: mentor token budget by level, level 0 first.
        thresholds: the probability that suffices, by level; None until calibrated.
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
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    estimates: Mapping[str, Any] = field(default_factory=dict)

    def check(
        self, mentor: str, intern: str, prompts: str, strict: bool = False, levels: Mapping[str, int] | None = None
    ) -> list[str]:
        """What does not match the pair (and the levels, if given) that wants to use this judge, a sentence each.

        Raises:
            ArtifactError: something does not match, and `strict` is set.
        """
        asked = {"mentor": (self.mentor, mentor), "intern": (self.intern, intern), "prompts": (self.prompts, prompts)}
        found = [
            f"the judge was made for {what} {made_for!r}, not {used!r}: its probabilities may be off"
            for what, (made_for, used) in asked.items()
            if made_for and made_for != used
        ]
        if levels is not None and self.levels and list(levels.items()) != list(self.levels.items()):
            found.append(f"the judge was made for levels {dict(self.levels)}, not {dict(levels)}: train it again")
        if found and strict:
            raise ArtifactError(f"{found[0]} (strict)")
        return found

    def save(self, folder: Path) -> None:
        """Write the folder.

        Each file appears whole, and the JSON, written last, holds the weights' SHA-256: a save that is
        interrupted leaves the old judge or one that `load` refuses, never a mixture.  New thresholds alone
        leave the weights' file as it is.
        """
        arrays, options = self.judge.state()
        weights = safetensors.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        record = self.record() | {"options": options, "sha256": hashlib.sha256(weights).hexdigest()}
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "judge.safetensors", weights)
        _write(folder / "judge.json", json.dumps(record, indent=1).encode() + b"\n")

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
        }


def load(folder: Path) -> Artifact:
    """Read a saved judge; needs neither torch nor scikit-learn.

    Raises:
        ArtifactError: it is missing, damaged, or of another format; one line that names the folder.
    """
    try:
        text, weights = (folder / "judge.json").read_bytes(), (folder / "judge.safetensors").read_bytes()
        record = json.loads(text)
        version = record["format"]
    except FileNotFoundError as error:
        raise ArtifactError(f"no judge in {folder}: {Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"the judge in {folder} is damaged (judge.json cannot be read): train it again") from error
    if version != FORMAT:
        raise ArtifactError(f"the judge in {folder} has format {version}, this version reads {FORMAT}: train it again")
    if record.get("features") != list(FEATURE_NAMES):
        raise ArtifactError(f"the judge in {folder} was made for other features: train it again")
    if hashlib.sha256(weights).hexdigest() != record.get("sha256"):
        raise ArtifactError(f"the judge in {folder} is damaged (judge.safetensors does not match): train it again")
    try:
        return _artifact(record, safetensors.load(weights))
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise ArtifactError(f"the judge in {folder} is damaged ({error}): train it again") from error


def _artifact(record: Mapping[str, Any], arrays: Arrays) -> Artifact:
    judge = cast(type[Judge], registry.lookup(JUDGES, record["kind"], "judge")).restored(arrays, record["options"])
    names = ("mentor", "intern", "prompts", "scope", "levels", "thresholds", "data", "metrics", "estimates")
    return Artifact(judge, **{name: record[name] for name in names})


def resolve(judge: str, levels: Sequence[str]) -> Artifact:
    """The judge that a configuration names, thresholds included.

    Args:
        judge: `entropy:X` or `perplexity:X` (sufficient when the intern's mean is at most X), `fixed:LEVEL`,
            or the folder of a trained one (`studio:NAME` stands for one that ships).
        levels: names of all levels in order, level 0 first.

    Raises:
        ConfigError: a number or a level that cannot be.
        ArtifactError: see `load`.
    """
    kind, _, value = judge.partition(":")
    if kind in RULES:
        try:
            rule = RULES[kind](float(value))
        except ValueError as error:
            raise ConfigError(f"judge `{kind}:X` needs a number above 0, got {value!r}") from error
        return Artifact(rule, thresholds=dict.fromkeys(levels, 0.5))
    if kind == "fixed":
        if value not in levels:
            raise ConfigError(f"judge {judge!r}: {did_you_mean(value, levels, 'level')}")
        return Artifact(Fixed(list(levels).index(value)), thresholds=dict.fromkeys(levels, 1.0))
    return load(Path(studio.resolve(judge)))


def _write(path: Path, content: bytes) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_bytes(content)
    part.replace(path)
