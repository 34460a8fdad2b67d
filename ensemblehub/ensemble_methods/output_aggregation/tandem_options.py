"""The options of `tandem`, and their checks before any engine is called."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le

from ensemblehub import builtin
from ensemblehub.ensemble_methods.acceptance import NEVER, Acceptance, acceptance_named
from ensemblehub.ensemble_methods.base import Aggregation, Checkpoint
from ensemblehub.ensemble_methods.roles import by_name, largest, require, smallest
from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Request
from ensemblehub.tandem.artifact import JudgeArtifact, resolve_judge
from ensemblehub.tandem.estimates import estimated_mentor_alone
from ensemblehub.tandem.insights import (
    DRAFT,
    LEVEL_0,
    QUESTION,
    Dialogue,
    InsightMode,
    Profile,
    profile_named,
)

log = logging.getLogger(__name__)
CALIBRATED = "calibrated"  # the value of `give_up` that stands for the judge's own
# names of verdicts and of collected runs that are of no level
RESERVED = frozenset({LEVEL_0, QUESTION, DRAFT, "mentor", "mentor_concise", "intern"})
TOLD = (
    "mentor",
    "intern",
    "judge",
    "thresholds",
    "strict",
    "profile",
)  # options that `deciding` tells otherwise


@dataclass(frozen=True)
class TandemOptions(Aggregation):
    """The options of `tandem`.

    Attributes:
        mentor, intern: engines by name; the largest and the smallest by default.
        levels: effort levels, as mentor tokens read before each checkpoint; `none`, `mentor`, `intern` and
            a few more names are reserved.
        effort: the highest level that is read, by name; all by default.  `none`: the intern answers alone.
        judge: folder of a trained classifier, `entropy:X` or `perplexity:X` (sufficient when the intern's
            mean over what it read is at most X), or `fixed:LEVEL`.
        thresholds: probability that suffices, by level, above 1 where none does; by default the judge's
            calibrated ones, or 0.5.  The level `none` is judged only with `start_with_intern` or `draft`.
        start_with_intern: judge the bare question first, before any mentor token.
        draft: let the intern answer alone first, and judge that answer in place of the bare question: a
            criterion as `accept` of `cascade` has it. Its threshold is that of the level `none`, by
            default the criterion's.
        confirm: with `draft`, let the intern read its draft again after each insight, and keep it from this
            probability on, that the criterion gives to the tokens as they were read.
        continue_draft: with `draft`, keep its lines up to the first that is less probable to the intern
            after the chosen insight (geometric mean of the tokens), and go on from there; by default it
            is written anew.
        give_up: probability by level below which no further insight is asked for; `fallback` says who
            answers.  `calibrated`: `ensemblehub calibrate` chooses it with the thresholds, and the judge
            keeps it; never, until it has.
        fallback: who answers when no level suffices: the intern with the insight of the `best` probability
            (the paper's rule) or the `last` one, or the `mentor` itself.
        insight_mode: show the insight in the intern's prompt, or as the start of its own answer.
        profile: the words the models are prompted with: the name of a profile in `tandem/insights.py`, or
            the fields of one.
        on_mentor_error: `raise`, or let the `intern` answer alone.
        strict: refuse a judge that was made for another pair instead of warning.
    """

    mentor: str | None = None
    intern: str | None = None
    levels: Mapping[str, int] = field(default_factory=lambda: {"low": 100, "medium": 500, "high": 1000})
    effort: str | None = None
    judge: str = "entropy:1.0"
    thresholds: Mapping[str, Annotated[float, Ge(0), Le(1.01)]] | None = None  # 1.01: no probability suffices
    start_with_intern: bool = False
    draft: str | None = None
    confirm: Annotated[float, Ge(0), Le(1)] | None = None
    continue_draft: Annotated[float, Ge(0), Le(1)] | None = None
    give_up: Mapping[str, Annotated[float, Ge(0), Le(1)] | Literal["calibrated"]] | None = None
    fallback: Literal["best", "last", "mentor"] = "best"
    insight_mode: InsightMode = "prompt"
    profile: str | Profile = "instruct"
    on_mentor_error: Literal["raise", "intern"] = "raise"
    strict: bool = False

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        self.check_levels()
        if self.artifact.judge.reads_question:
            raise ConfigError(f"tandem: the judge in {self.judge} judges drafts: name it as `draft`")
        mentor, intern = self.roles(engines)
        require(mentor, {"prefix"} if self.words.opening else set(), "tandem (mentor)")
        reading: set[Capability] = {"score"} if self.artifact.judge.reads else set()
        continuing: set[Capability] = {"prefix"} if self.insight_mode == "continuation" else set()
        require(intern, reading | continuing, "tandem (intern)")
        self.check_draft(intern, engines)
        budget_of = {LEVEL_0: 0, **self.levels}
        prompts = self.words.fingerprint
        for warning in self.artifact.check(mentor.model, intern.model, prompts, self.strict, budget_of):
            log.warning(warning)

    def answerers(self, engines: Sequence[Engine], capability: Capability) -> Sequence[Engine]:
        mentor, intern = self.roles(engines)
        if self.insight_mode == "continuation" or self.draft:
            return ()
        return (intern, mentor) if self.fallback == "mentor" else (intern,)

    def check_levels(self) -> None:
        """Check the levels and the options that name some.

        Raises:
            ConfigError: says which.
        """
        budgets = list(self.levels.values())
        if not budgets or budgets != sorted(set(budgets)) or budgets[0] < 1:
            raise ConfigError(
                f"tandem: levels must be rising token budgets, such as low: 100, not {dict(self.levels)}"
            )
        if taken := sorted(RESERVED & set(self.levels)):
            names = ", ".join(sorted(RESERVED))
            raise ConfigError(
                f"tandem: levels: {taken[0]!r} is a reserved name ({names}): give the level another"
            )
        effort = [] if self.effort is None else [self.effort]
        named = {"effort": effort, "thresholds": self.thresholds or {}, "give_up": self.give_up or {}}
        for option, levels in named.items():
            for level in levels:
                if level not in self.index:
                    raise ConfigError(f"tandem: {option}: {did_you_mean(level, self.index, 'level')}")
            if option != "effort" and LEVEL_0 in levels and not self.judges_level_0:
                raise ConfigError(
                    f"tandem: {option}: level {LEVEL_0!r} is judged only with `start_with_intern` or `draft`"
                )

    def check_draft(self, intern: Engine, engines: Sequence[Engine]) -> None:
        """Refuse options of the draft that cannot work.

        Raises:
            ConfigError, CapabilityError: says which.
        """
        criterion = self.criterion
        if criterion is None:
            for option in ("confirm", "continue_draft"):
                if getattr(self, option) is not None:
                    raise ConfigError(f"tandem: `{option}` needs a `draft`")
            return
        if self.draft == NEVER:
            raise ConfigError(f"tandem: `draft: {NEVER}` writes no draft; leave `draft` out")
        if self.insight_mode == "continuation":
            raise ConfigError("tandem: `draft` needs `insight_mode: prompt`")
        criterion.check(intern, engines, "tandem (draft)")
        rereads = self.confirm is not None or self.continue_draft is not None
        require(intern, {"score", "prefix"} if rereads else set(), "tandem (draft)")
        if self.confirm is not None and not criterion.reads_tokens:
            raise ConfigError(f"tandem: `confirm` needs a draft judged by its tokens, not by {self.draft!r}")

    def check_context(self, dialogue: Dialogue, mentor: Engine, intern: Engine) -> int:
        """Check that prompt, longest insight and answer fit both contexts, before any engine is called.

        Returns:
            Mentor tokens of the longest insight; one of `max_completion_tokens` is left for the answer.

        Raises:
            ContextOverflowError: names the engine and the lengths.
        """
        sampling, most = dialogue.request.sampling, dialogue.request.sampling.max_completion_tokens
        longest = self.checkpoints[-1].mentor_tokens if self.checkpoints else 0
        budget = min(longest, (most or sys.maxsize) - 1)
        if budget:
            mentor.fits(mentor.count(self.mentor_request(dialogue, mentor, budget)), budget)
        both = min(budget + sampling.required, most or sys.maxsize)
        intern.fits(intern.count(dialogue.intern_request()), both)
        return budget

    def mentor_request(self, dialogue: Dialogue, mentor: Engine, budget: int) -> Request:
        """Ask for an insight of at most `budget` tokens; a mentor that knows tools is shown the intern's."""
        asked = dialogue.mentor_request(budget)
        tools = dialogue.request.extra.get("tools") if "tools" in mentor.capabilities else None
        return replace(asked, extra={"tools": tools, "tool_choice": "none"}) if tools else asked

    def roles(self, engines: Sequence[Engine]) -> tuple[Engine, Engine]:
        """Return mentor and intern: by name, else the largest and the smallest of the remaining engines.

        Raises:
            ConfigError: a role names no engine, one engine would play both, or a size that decides is
                unknown.
        """
        intern = by_name(engines, self.intern, "tandem: intern") if self.intern else None
        others = [engine for engine in engines if engine is not intern] or engines
        mentor = largest(engines if self.mentor else others, self.mentor, "tandem: mentor")
        others = [engine for engine in engines if engine is not mentor] or engines
        intern = intern or smallest(others, None, "tandem: intern")
        if mentor is intern:
            raise ConfigError(f"tandem needs a mentor and an intern, but both would be {mentor.name!r}")
        return mentor, intern

    def reader(self, engines: Sequence[Engine]) -> Engine:
        return self.roles(engines)[1]

    def parts(self, engines: Sequence[Engine]) -> dict[str, Engine]:
        return dict(zip(("mentor", "intern"), self.roles(engines), strict=True))

    def estimated_alone(
        self, request: Request, engines: Sequence[Engine]
    ) -> tuple[float, float, float] | None:
        mentor, _ = self.roles(engines)
        return estimated_mentor_alone(self.artifact.estimates, request, mentor)

    @property
    def certificate_folder(self) -> Path | None:
        return Path(builtin.resolve(self.judge))

    def deciding(self) -> dict[str, Any]:
        artifact = self.artifact
        give_up = {level: limit for level, limit in self.give_up_limits.items() if limit} or None
        settings = {name: value for name, value in asdict(self).items() if name not in TOLD}
        return {
            "prompts": self.words.fingerprint,
            "judge": [artifact.judge.kind, hashlib.sha256(artifact.weights).hexdigest()],
            "thresholds": {point.level: point.threshold for point in self.checkpoints},
            "settings": settings | {"give_up": give_up},
            **({"draft": self.drafting_by} if self.drafting_by else {}),
        }

    @property
    def drafting_by(self) -> tuple[str, str] | None:
        """The criterion of the draft: its name, and what decides its probability; None without a draft."""
        return (self.draft, self.criterion.deciding) if self.draft and self.criterion else None

    @cached_property
    def words(self) -> Profile:
        """The configured profile."""
        return profile_named(self.profile, "tandem")

    @cached_property
    def artifact(self) -> JudgeArtifact:
        """The configured judge with its thresholds."""
        return resolve_judge(self.judge, list(self.index))

    @cached_property
    def criterion(self) -> Acceptance | None:
        """The criterion of the draft, if there is one."""
        return acceptance_named(self.draft, "tandem: draft") if self.draft else None

    @property
    def judges_level_0(self) -> bool:
        """Whether the intern is judged before any mentor token, by the bare question or by a draft."""
        return self.start_with_intern or bool(self.draft)

    @cached_property
    def index(self) -> dict[str, int]:
        """Index of each level, 0 for no insight."""
        return {level: index for index, level in enumerate([LEVEL_0, *self.levels])}

    @cached_property
    def level_thresholds(self) -> dict[str, float]:
        """The probability that suffices, by level."""
        drafted = {LEVEL_0: self.criterion.threshold} if self.criterion else {}
        known = {**drafted, **self._calibrated(self.artifact.thresholds), **(self.thresholds or {})}
        return {level: known.get(level, 0.5) for level in self.index}

    @cached_property
    def give_up_limits(self) -> dict[str, float]:
        """The probability below which the mentor is stopped, by level; 0 where it never is."""
        stated = {level: limit for level, limit in (self.give_up or {}).items() if not isinstance(limit, str)}
        known = {**self._calibrated(self.artifact.give_up), **stated}
        return {level: known.get(level, 0.0) for level in self.index}

    def _calibrated(self, limits: Mapping[str, float] | None) -> dict[str, float]:
        """What was calibrated with the judge, by level; not for level 0 where another draft was judged there."""
        same = (self.artifact.data.get("calibrated") or {}).get("draft") == self.draft
        return {level: limit for level, limit in (limits or {}).items() if same or level != LEVEL_0}

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        read = {LEVEL_0: 0, **self.levels} if self.judges_level_0 else self.levels
        highest = self.index[self.effort] if self.effort is not None else len(self.levels)
        return tuple(
            Checkpoint(level, tokens, self.level_thresholds[level])
            for level, tokens in read.items()
            if self.index[level] <= highest
        )

    @property
    def efforts(self) -> tuple[str, ...]:
        return tuple(self.index)

    def with_effort(self, effort: str) -> Self:
        return replace(self, effort=min(effort, self.effort or effort, key=lambda level: self.index[level]))
