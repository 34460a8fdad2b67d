"""Judges replayed on collected data: the table of `report` without a live run, for any number of judges.

A judge visits the levels that it has thresholds for; level 0 is among them where it was calibrated with
`start_with_intern`.  One that was calibrated has the fallback that it was calibrated with.  Costs are those of
`cascade`, judging included; no model is called.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import ArtifactError
from ensemblehub.lab import metrics
from ensemblehub.lab.pipeline import cascade, report
from ensemblehub.lab.pipeline.evaluate import TandemRun
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.lab.pipeline.replay import outcomes, table
from ensemblehub.lab.pipeline.report import MethodRuns, ReplayCheck
from ensemblehub.tandem.artifact import JudgeArtifact, resolve_judge
from ensemblehub.tandem.insights import LEVEL_0

log = logging.getLogger(__name__)

SPENT = ("mentor_tokens", "intern_tokens", "flops", "paper", "seconds")  # of both models where both answer
OVER_MIX, OVER_FIXED = "over the mix", "over the best fixed level"
BASELINES = ("intern", "mentor", "random_mix", "oracle", "perfect_cascade")
COLUMNS = (
    *(name for name in report.COLUMNS if name != "cost_vs_concise"),
    *(OVER_MIX, OVER_FIXED, "seconds", "levels"),
)


def names_of(judges: Sequence[str]) -> dict[str, str]:
    """The name of every judge's row: that of its folder, or its path where another row has that name."""
    taken = Counter([*BASELINES, *(Path(judge).name for judge in dict.fromkeys(judges))])
    short = {judge: Path(judge).name for judge in judges}
    return {judge: name if taken[name] == 1 else f"judge {judge}" for judge, name in short.items()}


def resolved(judges: Sequence[str], collected: Collected, tandem: Tandem) -> dict[str, JudgeArtifact]:
    """The judges by the names of their rows; a rule visits the levels that the configured Tandem judges.

    What a judge was trained for and the collected data is not, is warned of.
    """
    visited = {checkpoint.level for checkpoint in tandem.checkpoints}
    found = dict[str, JudgeArtifact]()
    for judge, name in names_of(judges).items():
        artifact = resolve_judge(judge, list(collected.levels))
        if not artifact.levels:
            limits = artifact.thresholds or {}
            kept = {level: limit for level, limit in limits.items() if level in visited}
            artifact = replace(artifact, thresholds=kept)
        for problem in artifact.check(*(collected.header[key] for key in ("mentor", "intern", "prompts"))):
            log.warning("%s: %s", name, problem)
        found[name] = artifact
    return found


def judged(
    collected: Collected, artifact: JudgeArtifact, name: str, fallback: cascade.Fallback
) -> MethodRuns:
    """Tandem with a judge, as its thresholds would have chosen among the collected runs.

    Raises:
        ArtifactError: the judge was not calibrated, for other levels, or with a draft that was not collected.
    """
    levels = [level for level in collected.levels if level in (artifact.thresholds or {})]
    if not levels or set(artifact.thresholds or {}) - set(levels):
        raise ArtifactError(f"judge {name}: its thresholds are not for the levels {list(collected.levels)}")
    made = cast(Mapping[str, Any], artifact.data.get("calibrated") or {})
    drafted = "draft" in made
    if drafted and not collected.drafts:
        raise ArtifactError(f"judge {name}: it was calibrated with a draft, and none was collected")
    found = outcomes(collected, artifact.judge, levels, made.get("fallback", fallback), drafted)
    found = found.giving_up([(artifact.give_up or {}).get(level, 0.0) for level in levels])
    limits = [(artifact.thresholds or {})[level] for level in levels]
    run, row = cascade.replay(found, limits), np.arange(len(collected.rows))
    names = ["mentor" if at == cascade.MENTOR else levels[at] for at in run.chosen]
    runs = [line.runs[chosen] for line, chosen in zip(collected.rows, names, strict=True)]
    own = report.of_runs(collected, name, runs, dict(Counter(names)))
    insight = table(collected, levels, lambda cut: cut.mentor_tokens)[row, found.ends(limits)]
    mentor_tokens = insight + np.where(run.chosen == cascade.MENTOR, own.mentor_tokens, 0)
    mentor, intern = collected.info("mentor").active, collected.info("intern").active
    paper = 2.0 * (mentor * mentor_tokens + intern * (insight + own.intern_tokens))
    judging = run.cost - own.flops
    return replace(own, flops=run.cost, paper=paper, judging=judging, mentor_tokens=mentor_tokens)


def against_live(collected: Collected, tandem: Tandem, live: Sequence[TandemRun]) -> ReplayCheck:
    """Compare Tandem replayed on collected runs with its live runs on the same questions, in order."""
    limits = {checkpoint.level: checkpoint.threshold for checkpoint in tandem.checkpoints}
    found = outcomes(collected, tandem.artifact.judge, list(limits), tandem.fallback, bool(tandem.draft))
    found = found.giving_up([tandem.give_up_limits[level] for level in limits])
    run = cascade.replay(found, list(limits.values()))
    names = ["mentor" if at == cascade.MENTOR else list(limits)[at] for at in run.chosen]
    texts = [row.runs[name].text for row, name in zip(collected.rows, names, strict=True)]
    flops = sum(line.flops for line in live)
    return ReplayCheck(
        len(live),
        sum(name == line.chosen for name, line in zip(names, live, strict=True)),
        sum(bool(right) == line.correct for right, line in zip(run.correct, live, strict=True)),
        sum(text == line.text for text, line in zip(texts, live, strict=True)),
        float(run.cost.sum() / flops) if flops else None,
    )


def methods(
    collected: Collected, judges: Mapping[str, JudgeArtifact], fallback: cascade.Fallback
) -> list[MethodRuns]:
    """Every row of the table: the baselines, the judges by name, and the first judge's levels at random."""
    rows = [judged(collected, artifact, name, fallback) for name, artifact in judges.items()]
    drawn = {level: count for level, count in rows[0].levels.items() if level in collected.levels}
    shares = {level: count / sum(drawn.values()) for level, count in drawn.items()}
    return [
        report.fixed(collected, "intern", LEVEL_0),
        report.fixed(collected, "mentor", "mentor"),
        *(report.fixed(collected, f"fixed_{level}", level) for level in collected.levels if level != LEVEL_0),
        *([report.random_mix(collected, shares)] if shares else []),
        report.oracle(collected),
        perfect_cascade(collected),
        *rows,
    ]


def perfect_cascade(collected: Collected) -> MethodRuns:
    """The intern's own answer where it is right, else the mentor's after it.

    What a criterion would bring that knows which of the intern's answers are right; only one that also
    knows where the mentor will be wrong can cost less.
    """
    draft, mentor = (vars(report.fixed(collected, name, name)) for name in (LEVEL_0, "mentor"))
    kept = draft["correct"] > 0
    columns = {
        name: np.where(kept, draft[name], mentor[name] + (draft[name] if name in SPENT else 0.0))
        for name in (*report.COUNTED, "flops", "paper", "judging")
    }
    levels = {LEVEL_0: float(kept.sum()), "mentor": float((~kept).sum())}
    return MethodRuns("perfect_cascade", levels, **columns)


def compared(found: Sequence[MethodRuns]) -> list[dict[str, float]]:
    """Paired differences of every row of `methods`, in shares with 95 % intervals.

    To the most accurate random mix of the two models at its cost, where one costs that, and to the level that
    is best for all questions, level 0 among them.
    """
    intern, mentor, *others = found
    levels = [intern, *(runs for runs in others if runs.method.startswith("fixed_"))]
    best = max(levels, key=lambda runs: float(runs.correct.mean()))
    rows = []
    for runs in found:
        bases = {OVER_MIX: report.equal_cost_mix([intern, mentor], runs), OVER_FIXED: best}
        row = dict[str, float]()
        for name, base in bases.items():
            if base is not None:
                low, high = metrics.paired_bootstrap(runs.correct, base.correct)
                row |= {
                    name: float((runs.correct - base.correct).mean()),
                    f"{name}_low": low,
                    f"{name}_high": high,
                }
        rows.append(row)
    return rows


def note(judges: Mapping[str, JudgeArtifact]) -> str:
    """What each judge is, and what its thresholds were chosen for."""
    parts = []
    for name, artifact in judges.items():
        data, chosen = artifact.data, artifact.data.get("calibrated") or {}
        trained = f"trained on {data.get('n')} of `{data.get('task')}`" if data else "not trained"
        aim = f", thresholds for `{chosen['aim']}` from {chosen['n']}" if chosen else ""
        aim += ", the mentor answers where no level suffices" if chosen.get("fallback") == "mentor" else ""
        levels = ", ".join(f"{level} {limit:.3f}" for level, limit in (artifact.thresholds or {}).items())
        lost = ", ".join(f"{level} {limit:.3f}" for level, limit in (artifact.give_up or {}).items())
        levels += f"; given up below {lost}" if lost else ""
        parts.append(f"{name}: {artifact.judge.kind}, {trained}{aim} ({levels})")
    return (
        f"Judges are replayed on the collected runs: no model is called. `{OVER_MIX}`: the difference to the most "
        f"accurate random mix of the two models at the same cost; `{OVER_FIXED}`: to the level that is best for "
        "all questions, level 0 among them. `perfect_cascade`: the intern's own answer where it is right, else the "
        "mentor's after it: what a criterion would bring that knows which of the intern's answers are right. "
        "A judge stops at the first level "
        f"whose probability reaches its threshold. {'; '.join(parts)}."
    )
