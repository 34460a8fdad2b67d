"""`advise`: what is replayed equals a live run, and the choice is worked out by hand."""

import asyncio
import gzip
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from ensemblehub import builtin
from ensemblehub.cli import add_plugins, cli
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import ArtifactError, ConfigError, ContextOverflowError
from ensemblehub.generators.base import Engine
from ensemblehub.generators.echo import EchoEngine
from ensemblehub.lab.advise import advice, choice, summary
from ensemblehub.lab.advise.choice import (
    Criterion,
    capital,
    is_clear,
    outcomes,
    questions_needed,
    recommended,
)
from ensemblehub.lab.advise.commands import _asked
from ensemblehub.lab.advise.pair import pair_of, with_rule
from ensemblehub.lab.advise.record import Recorder
from ensemblehub.lab.advise.strategies import NO_THINKING, strategies
from ensemblehub.lab.advise.strategy import Strategy
from ensemblehub.lab.pipeline.collect import Collector
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.lab.tasks.base import Item
from ensemblehub.lab.tasks.own import OwnQuestions

add_plugins()
PAIR = """
model_specs:
  - name: big
    engine: echo
    parameters: 9000000
    confident: [boats]
    replies: {"Insights": "Goal: count. Planning: add. Action: so it is nine.", "": "so it is \\\\boxed{9}"}
  - name: small
    engine: echo
    parameters: 1000000
    confident: [boats]
    replies: {boats: "it is \\\\boxed{4}", nine: "it is \\\\boxed{9}", "": "it is \\\\boxed{12}"}
ensemble:
  output_aggregation_method: tandem
  output_aggregation_params: {mentor: big, intern: small, levels: {low: 2, high: 20}, judge: "fixed:low"}
"""
PRICES = [
    'model_specs.0.price={"prompt": 2.0, "completion": 10.0}',
    'model_specs.1.price={"prompt": 0.1, "completion": 0.4}',
    "model_specs.0.parameters=0",  # their FLOPs are unknown, as those of most models behind APIs
    "model_specs.1.parameters=0",
]
QUESTIONS = [
    {"question": f"{n} {'boats' if n % 3 else 'cars'}?", "answer": "4" if n % 3 else "9"} for n in range(30)
]


@pytest.fixture
def pair(tmp_path):
    (tmp_path / "pair.yaml").write_text(PAIR)
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in QUESTIONS))
    return tmp_path


def run(folder, *more):
    arguments = ["advise", "-c", str(folder / "pair.yaml"), "--input", str(folder / "own.jsonl")]
    return CliRunner().invoke(cli, [*arguments, "--out", str(folder / "out"), *more])


def made(pair, *changes):
    config, task = Config.read(pair / "pair.yaml", changes), OwnQuestions(pair / "own.jsonl")
    return advice.advise(config, task, "all", 30, False, 4, Criterion("cost"), pair / "out", False)


@pytest.mark.parametrize("most", [512, 3])
def test_every_strategy_is_right_where_a_live_run_is(pair, most):
    limit = f"ensemble.generation.max_tokens={most}"  # 3 cuts the intern's answers off
    found = made(pair, limit).found
    names = {outcome.name for outcome in found}
    assert {
        "mentor alone",
        "intern alone",
        "tandem, 2 tokens",
        "tandem by entropy",
        "router by entropy",
        "router by perplexity",
        "cascade by log-probability",
    } < names
    assert "cascade by shown tests" not in names
    check_live(pair, found, limit)


def test_every_setting_is_served_as_it_was_replayed_and_costs_as_many_dollars(pair):
    config, task = Config.read(pair / "pair.yaml", PRICES), OwnQuestions(pair / "own.jsonl")
    given = (with_rule(config), task, "all", 30, 4, pair / "out", False, Criterion("cost"), True, None)
    items = list(task.items())

    async def live(changes):
        more = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
        async with AsyncEnsemble.from_config(
            Config.from_dict(yaml.safe_load(PAIR), [*PRICES, *more])
        ) as ensemble:
            results = [await ensemble.generate(task.ask(item, ensemble.sampling)) for item in items]
        right = [task.grade(item, result.text).correct for item, result in zip(items, results, strict=True)]
        said = [result.verdicts[0].probability if result.verdicts else None for result in results]
        return right, [result.usage.cost.usd for result in results], said

    chosen = set()
    for strategy in strategies(advice.record(*given)):
        for at, (setting, changes) in enumerate(strategy.settings):
            right, dollars, said = asyncio.run(live(changes))
            if strategy.scores is not None:
                assert said == pytest.approx(strategy.scores[:, at].tolist()), (strategy.name, setting)
            assert right == list(strategy.correct[:, at] > 0), (strategy.name, setting)
            assert dollars == pytest.approx(strategy.cost[:, at].tolist()), (strategy.name, setting)
            chosen.add((strategy.name, strategy.correct[:, at].mean()))
    assert ("router by entropy", 1.0) in chosen  # the mentor answers what the intern would get wrong
    assert {
        "tandem with draft, else mentor",
        "mentor, thinking where it is unsure",
        "vote until it is decided",
    } <= {name for name, _ in chosen}


def test_options_that_decide_between_levels_are_those_of_the_replay(pair):
    """Also where the Tandem that `advise` begins with has others."""
    begun = [
        "ensemble.output_aggregation_params.fallback=mentor",
        "ensemble.output_aggregation_params.thresholds={none: 0.0, low: 0.0}",
        "ensemble.output_aggregation_params.give_up={none: 1.0}",
        "ensemble.output_aggregation_params.draft=ask",
        "ensemble.output_aggregation_params.effort=low",
    ]
    config, task = Config.read(pair / "pair.yaml", begun), OwnQuestions(pair / "own.jsonl")
    items = list(task.items())

    async def live(changes):
        async with AsyncEnsemble.from_config(advice.with_changes(with_rule(config), changes)) as ensemble:
            texts = [(await ensemble.generate(task.ask(item, ensemble.sampling))).text for item in items]
        return [task.grade(item, text).correct for item, text in zip(items, texts, strict=True)]

    found = [outcome for outcome in made(pair, *begun).found if outcome.name.startswith("tandem")]
    assert len(found) == 10
    for outcome in found:
        assert asyncio.run(live(outcome.changes)) == list(outcome.correct > 0), outcome.name


def test_what_was_recorded_without_scores_of_drafts_lacks_that_strategy_alone(pair, monkeypatch):
    whole = {outcome.name for outcome in made(pair).found}
    recorded = pair / "out" / "recorded.jsonl"
    first, *rows = map(json.loads, recorded.read_text().splitlines())
    assert all(row.pop("draft") for row in rows)
    recorded.write_text("".join(json.dumps(row) + "\n" for row in (first, *rows)))
    monkeypatch.setattr(Recorder, "collect", None)  # nothing is asked
    part = {outcome.name for outcome in made(pair).found}
    assert part < whole
    assert all(name.startswith("tandem with draft") for name in whole - part)


def test_an_empty_draft_scores_0_and_takes_nothing_from_the_others(pair, caplog):
    """40 questions; the intern says nothing to one of them, or its engine gives no logprobs of that one."""
    lines = [{"question": f"{n} {'boats' if n % 3 else 'cars'}?", "answer": "9"} for n in range(40)]
    (pair / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    silent = {"25 boats": "", "boats": "it is \\boxed{9}", "": "it is \\boxed{12}"}
    config = Config.read(pair / "pair.yaml", [f"model_specs.1.replies={json.dumps(silent)}"])
    task, criterion = OwnQuestions(pair / "own.jsonl"), Criterion("cost")

    def found():
        given = (config, task, "all", 40, 4, pair / "out", False, criterion, True, None)
        return {strategy.name: strategy for strategy in strategies(advice.record(*given))}

    whole = found()
    assert "left out" not in caplog.text
    for name in ("cascade by log-probability", "tandem with draft, else mentor"):
        assert whole[name].scores[25].max() == 0
        assert whole[name].correct[25].min() == 1  # the mentor's answer
        assert whole[name].correct[:, -1].mean() == 1  # only drafts about boats are kept
    recorded = pair / "out" / "recorded.jsonl"
    first, *rows = map(json.loads, recorded.read_text().splitlines())
    rows[26]["drafts"][0]["logprob"] = rows[26]["draft"] = None
    recorded.write_text("".join(json.dumps(row) + "\n" for row in (first, *rows)))
    assert whole.keys() - found().keys() == {
        name for name in whole if "log-probability" in name or name.startswith("tandem with draft")
    }
    unknown = "left out: how probable the intern's draft is is unknown for 1 of 40 questions"
    assert f"cascade and plan by log-probability are {unknown}" in caplog.messages
    assert f"Tandem with a draft is {unknown}" in caplog.messages


def test_what_was_recorded_without_readings_of_the_question_is_read_again(pair, monkeypatch):
    whole = made(pair)
    recorded = pair / "out" / "recorded.jsonl"
    first, *rows = map(json.loads, recorded.read_text().splitlines())
    for row in rows[:5]:
        assert row["drafts"][0].pop("reading")
    recorded.write_text("".join(json.dumps(row) + "\n" for row in (first, *rows)))
    monkeypatch.setattr(Recorder, "collect", None)  # nothing else is asked
    assert made(pair).text == whole.text
    lines = [json.loads(line) for line in recorded.read_text().splitlines()]
    assert len(lines) == 1 + len(rows) + 5


def test_programs_are_also_kept_where_they_pass_the_tests_in_the_question(pair):
    right, wrong = "def twice(x): return 2 * x", "def twice(x): return 0"
    questions = [
        {
            "question": f"{n} {'boats' if n % 2 else 'cars'}: write twice(x).\nassert twice(2) == 4",
            "answer": right,
        }
        for n in range(20)
    ]
    (pair / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in questions))
    small, big = {"boats": right, "": wrong}, {"": right}
    changes = [f"model_specs.1.replies={json.dumps(small)}", f"model_specs.0.replies={json.dumps(big)}"]
    found = made(pair, *changes).found
    named = {outcome.name: outcome for outcome in found}
    outcome = named["cascade by shown tests"]
    assert outcome.correct.mean() == 1
    assert outcome.changes["ensemble.output_aggregation_params"]["accept"].endswith(":ShownTests")
    mentor, intern = named["mentor alone"].cost, named["intern alone"].cost
    assert np.isclose(outcome.cost, np.where(np.arange(20) % 2, intern, intern + mentor)).all()
    check_live(pair, [outcome for outcome in found if "tests" in outcome.name], *changes)


def check_live(pair, found, *more):
    """Check that live runs answer the same questions right."""
    task = OwnQuestions(pair / "own.jsonl")
    items = list(task.items())

    async def live(config):
        async with AsyncEnsemble.from_config(config) as ensemble:
            sampling = ensemble.sampling
            return [
                task.grade(item, (await ensemble.generate(task.ask(item, sampling))).text).correct
                for item in items
            ]

    for outcome in found:
        changes = [*more, *(f"{key}={json.dumps(value)}" for key, value in outcome.changes.items())]
        config = Config.from_dict(yaml.safe_load(PAIR), changes)
        assert asyncio.run(live(config)) == list(outcome.correct > 0), outcome.name


def test_what_collect_recorded_is_not_asked_again(pair, monkeypatch):
    results = pair / "results"
    config = ["-c", str(pair / "pair.yaml")]
    flags = [
        "--dataset",
        "builtin_math",
        "--split",
        "train",
        "--limit",
        "12",
        "-s",
        f"experiment.results={results}",
    ]
    done = CliRunner().invoke(cli, ["collect", *config, *flags])
    assert done.exit_code == 0, done.output
    kept = Collected.load(results / "collected", "train")
    asked = []

    async def collect(self, item):
        asked.append(item.id)
        return await again(self, item)

    again = Collector.collect
    monkeypatch.setattr(Collector, "collect", collect)
    arguments = ["advise", *config, "--task", "builtin_math", "--out", str(pair / "out"), "--n", "20"]
    more = ["--collected", str(results / "collected")]
    done = CliRunner().invoke(cli, [*arguments, *more])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (pair / "out" / "recorded.jsonl").read_text().splitlines()[1:]]
    assert len(rows) == 20
    assert len(asked) == 8
    runs = {row["id"]: row["runs"] for row in rows}
    assert not set(asked) & {row.id for row in kept.rows}
    assert all(runs[row.id] == asdict(row)["runs"] for row in kept.rows)
    asked.clear()
    old = Collected(
        kept.header, [replace(row, question="") for row in kept.rows], kept.features, kept.sequences
    )
    old.save(results / "collected", "train")  # as before rows had hashes
    again_from_old = CliRunner().invoke(cli, [*arguments, *more, "--force"])
    assert again_from_old.exit_code == 0, again_from_old.output
    assert len(asked) == 8
    other = CliRunner().invoke(cli, [*arguments, *more, "-s", "ensemble.generation.max_tokens=7", "--force"])
    assert "was collected with other settings: max_tokens 512, not 7" in str(other.exception)


def test_the_recommended_file_answers_as_it_says(pair):
    catalog = pytest.importorskip("ensemblehub.api.catalog", exc_type=ImportError)
    bound = "ensemble.request_params.judge.choices=[fixed:low, fixed:high]"  # an option of Tandem alone
    done = run(pair, "-s", bound)
    assert done.exit_code == 0, done.output
    assert "use the intern alone" in done.output
    assert "ensemblehub serve" in done.output
    config = Config.read(pair / "out" / "advice.yaml")
    assert not catalog.Catalog(config).find("ensemble").bounds
    text = (pair / "out" / "advice.md").read_text()
    assert text in done.output


def test_a_changed_answer_grades_what_is_recorded(pair, monkeypatch):
    def write(answer):
        (pair / "own.jsonl").write_text("".join(json.dumps(item | answer) + "\n" for item in QUESTIONS))

    def right():
        return {outcome.name: outcome.correct.mean() for outcome in made(pair).found}

    write({"answer": "8"})
    with pytest.raises(ConfigError, match="nothing to recommend"):
        right()

    async def collect(self, item):
        raise AssertionError("asked again")

    monkeypatch.setattr(Recorder, "collect", collect)
    write({"answer": "9"})
    assert right()["mentor alone"] == 1
    write({"answer": "12"})
    assert right()["intern alone"] == pytest.approx(1 / 3)  # cars
    write({"answer": ""})
    assert right()["mentor alone"] == 1  # graded by agreement with it
    rows = (pair / "out" / "recorded.jsonl").read_text().splitlines()[1:]
    changed = json.loads(rows[-1]) | {"question": "of other words", "asked": "otherwise"}
    with (pair / "out" / "recorded.jsonl").open("a") as file:
        file.write(json.dumps(changed) + "\n")
    with pytest.raises(ArtifactError, match="was changed since it was answered"):
        made(pair)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("paris", "Paris.", True),
        ("Yes", '"yes"', True),
        ("well known", "well-known", True),
        ("Yes, sir", "yes – sir!", True),
        ("don't", "Don’t", True),
        ("café", "cafe\u0301", True),
        ("5", "**5**", True),
        ("5", "(5)", True),
        ("5", "$5$", True),
        ("1.5", "1.5.", True),
        ("-5", "\u22125", True),  # a minus sign
        ("x>3", "x > 3", True),
        ("1, 2", "1,2", True),
        ("C++", "c++.", True),
        ("...", "...", True),
        ("x", r"\[x\]", True),
        ("(a, b)", "(a,b)", True),
        ("May 5, 2020", "_May_ 5 2020", True),
        ("1", "[1]", False),
        ("x - 3", "x 3", False),
        ("5", "-5", False),
        ("5", "Answer: -5", False),
        ("Answer: 5", "Answer: -5", False),
        ("3/4", "-3/4", False),
        ("1-2", "1/2", False),
        ("1 5", "1.5", False),
        ("5", ".5", False),
        ("5", "5!", False),
        ("2 3", "2*3", False),
        ("3 1", "3:1", False),
        ("50", "50%", False),
        ("(1, 2)", "[1, 2]", False),
        ("x", "-x", False),
        ("x < 3", "x > 3", False),
        ("x = 3", "x != 3", False),
        ("<", ">", False),
        ("C#", "C++", False),
        ("C#", "C", False),
        ("x²", "x2", False),
        ("$5", "€5", False),
        ("", "+", False),
        ("!", "?", False),
        ("😀", "😃", False),
        ("का", "की", False),
    ],
)
def test_only_the_punctuation_of_prose_makes_no_difference(one, other, same):
    for answer, text in ((one, other), (other, one)):
        assert OwnQuestions(Path("own.jsonl")).grade(Item("1", "?", answer), text).correct is same


def test_what_another_rule_graded_is_graded_again(pair, monkeypatch):
    whole = made(pair)
    recorded = pair / "out" / "recorded.jsonl"
    text = recorded.read_text()
    assert text.count('"correct":false') + text.count('"correct": false') > 0
    recorded.write_text(re.sub(r'"correct": ?false', '"correct": true', text))
    monkeypatch.setattr(Recorder, "collect", None)  # nothing is asked
    assert made(pair).text == whole.text
    kept = recorded.read_text()
    assert made(pair).text == whole.text
    assert recorded.read_text() == kept  # once


def test_repeats_are_no_evidence(pair, caplog):
    lines = [QUESTIONS[0]] * 12 + QUESTIONS[:3]
    (pair / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
    done = run(pair)
    assert done.exit_code == 0, done.output
    assert "12 questions are repeats of others and left out" in caplog.messages
    assert "--n is 50, but there are only 3 questions" in caplog.messages
    assert "n = 3 questions" in done.output


@pytest.mark.parametrize("answer", ["8", ""])
def test_nothing_is_recommended_where_nothing_is_right(pair, answer):
    lines = [{"question": f"{n} cups?", "answer": answer} for n in range(12)]
    (pair / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
    done = run(pair, "-s", 'model_specs.0.replies={"": ""}')
    assert isinstance(done.exception, ConfigError)
    assert "no answer of any model or strategy to 12 questions is right" in str(done.exception)
    assert "the mentor's answers to 12 of them are empty" in str(done.exception)
    assert not (pair / "out" / "advice.yaml").exists()


def test_a_budget_asks_for_accuracy(pair):
    done = run(pair, "--budget", "0.7", "--n", "10")
    assert done.exit_code == 0, done.output
    assert "Wanted: the most accurate at no more than 0.7 of the mentor's cost" in done.output


def sets(changes):
    return [flag for change in changes for flag in ("-s", change)]


def test_dollars_by_hand(pair):
    """The mentor reads 2 tokens and writes 4, the intern reads 2 and writes 3."""
    done = run(pair, *sets(PRICES))
    assert done.exit_code == 0, done.output
    lines = [line.split(" | ") for line in done.output.splitlines() if line.startswith("| ")]
    named = {line[0].removeprefix("| "): dict(zip(lines[0], line, strict=True)) for line in lines}
    mentor, intern = (2 * 2 + 4 * 10) / 1e6, (2 * 0.1 + 3 * 0.4) / 1e6
    costs = {
        "mentor alone": mentor,
        "intern alone": intern,
        "vote of 4 intern samples": 4 * intern,  # every sample sends the question
        "cascade by log-probability": intern + mentor / 3,  # which answers about cars
    }
    for name, cost in costs.items():
        assert named[name]["usd per 10,000"] == f"${10_000 * cost:.3g}", name
        assert named[name]["cost_vs_mentor"].startswith(f"{cost / mentor:.3f} ["), name
    said = (
        "US dollars of every call (big $2 per million tokens read and $10 written; "
        "small $0.1 per million tokens read and $0.4 written; nothing cached)"
    )
    assert f"{said} as a share of the mentor's" in done.output
    assert "FLOPs" not in done.output
    assert (pair / "out" / "advice.yaml").read_text().startswith(f"# intern alone\n# chosen by {said}\n")
    saved = 10_000 * (mentor - 4 * intern)
    found = made(pair, *PRICES).found
    vote = next(outcome for outcome in found if outcome.name == "vote of 4 intern samples")
    assert f"it saves ${saved:.3g} [${saved:.3g} to ${saved:.3g}], 87% of the mentor's" in summary.headline(
        found[0], vote, "usd"
    )


def test_new_prices_and_budgets_ask_nothing_again(pair, monkeypatch):
    assert run(pair, "--n", "10").exit_code == 0  # in FLOPs
    monkeypatch.setattr(Recorder, "collect", None)
    flags = ["--n", "10", *sets(PRICES[:2])]
    done = run(pair, *flags, "--budget", "$0.00001")
    assert done.exit_code == 0, done.output
    assert "Wanted: the most accurate at no more than $1e-05 a question" in done.output
    assert "use the intern alone" in done.output
    assert "Nothing keeps this budget" not in done.output
    none = run(pair, *flags, "--budget", "$0.0000001")
    assert (
        "Nothing keeps this budget; the intern alone is the cheapest, at $1.4e-06 a question." in none.output
    )
    compute = run(pair, *flags, "--budget", "1TFLOPs")
    assert "at no more than 1TFLOPs a question" in compute.output
    assert "FLOPs of every call as a share" in compute.output


def test_of_one_price_flops_are_weighed_or_what_to_add_is_said(pair, caplog):
    one = sets(PRICES[:1])
    done = run(pair, "--n", "10", *one)
    assert done.exit_code == 0, done.output
    assert "FLOPs of every call" in done.output
    assert "costs are FLOPs, not dollars: 'small' has no `price` (an intern's may be 0)" in caplog.messages
    unknown = run(pair, "--n", "10", *sets([PRICES[0], PRICES[2]]))
    assert str(unknown.exception) == (
        "costs are FLOPs where a model has no price, and the size of the model 'big' is unknown: set its "
        "`parameters`, or the `price` of 'small' (an intern's may be 0)"
    )
    free = ["-s", 'model_specs.1.price={"prompt": 0, "completion": 0}']
    for more in (free, ["--budget", "$1"]):  # as `calibrate`: an intern without a price costs no dollars
        done = run(pair, "--n", "10", *one, *more)
        assert done.exit_code == 0, done.output
        assert "| intern alone | 10 |" in done.output
        assert "| 0.000 [0.000, 0.000] | $0 | – |" in done.output


@pytest.mark.parametrize("engine", ["openai", "llama_cpp", "hf"])
def test_the_file_of_a_mentor_without_thinking_turns_it_off(engine):
    """On any engine: before, on `hf` alone."""
    spec = {"name": "big", "engine": engine, "path": "m.gguf"}
    config = Config.from_dict({"model_specs": [{"name": "small", "engine": "echo"}, spec]})
    made = advice.with_changes(config, {"ensemble.models": ["big"], NO_THINKING: False})
    kept = Config.from_dict(yaml.safe_load(made.to_yaml()))
    options = kept.options(kept.model_specs[0])
    if engine == "openai":
        options = options["extra_body"]["chat_template_kwargs"]
    assert options["enable_thinking"] is False


def test_the_intern_beside_a_mentor_without_thinking_is_asked_as_before():
    """It was recorded so, and may think, too."""
    whole = Config.read(Path(builtin.CONFIG), [f"model_specs.{at}.engine=numpy" for at in range(2)])
    changes = {"ensemble.output_aggregation_method": "cascade", NO_THINKING: False}
    for given in (changes, {NO_THINKING: False}):  # a cascade, and the Tandem itself
        kept = Config.from_dict(yaml.safe_load(advice.with_changes(whole, given).to_yaml()))
        assert [kept.options(spec).get("enable_thinking") for spec in kept.model_specs] == [False, None]


def test_an_intern_that_cannot_score_leaves_out_the_rules_alone(pair, monkeypatch, caplog):
    """As behind most APIs; everything else is as with one that can."""
    whole = made(pair)
    monkeypatch.setattr(EchoEngine, "capabilities", EchoEngine.capabilities - {"score"})
    monkeypatch.setattr(EchoEngine, "score", Engine.score)
    (pair / "out").rename(pair / "with_score")
    part = made(pair)
    methods = (
        "tandem by",
        "router by",
        "tandem with draft by",
        "cascade by log-probability, lost questions by",
    )
    rules = {f"{method} {kind}" for kind in ("entropy", "perplexity") for method in methods}
    rules |= {f"{name}, no thinking" for name in rules if name.startswith("router")}
    assert rules < {outcome.name for outcome in whole.found}
    rest = [outcome for outcome in whole.found if outcome.name not in rules]
    for mine, other in zip(part.found, rest, strict=True):
        assert (mine.name, mine.correct.tolist()) == (other.name, other.correct.tolist())
    said = "what goes by its entropy or perplexity of a question is left out"
    assert f"small offers no `score` (docs/engines.md): {said}" in caplog.messages
    again = made(pair)  # from what was recorded
    assert again.text == part.text


def test_a_gzipped_recording_is_replayed(pair, monkeypatch):
    first, recorded = made(pair), pair / "out" / "recorded.jsonl"
    (pair / "out" / "recorded.jsonl.gz").write_bytes(gzip.compress(recorded.read_bytes()))
    recorded.unlink()
    monkeypatch.setattr(Recorder, "collect", None)  # nothing is asked
    assert made(pair).text == first.text


def test_more_questions_extend_what_is_recorded(pair):
    assert run(pair, "--n", "10").exit_code == 0
    first = (pair / "out" / "recorded.jsonl").read_text()
    assert run(pair, "--n", "30").exit_code == 0
    second = (pair / "out" / "recorded.jsonl").read_text()
    assert second.startswith(first)
    assert len(first.splitlines()) == 11
    other = run(pair, "--n", "10", "-s", "ensemble.generation.max_tokens=7")
    assert "begun with other settings: max_tokens 512, not 7" in str(other.exception)


def test_without_answers_the_mentors_count_as_right(pair):
    (pair / "own.jsonl").write_text(
        "".join(json.dumps({"question": item["question"]}) + "\n" for item in QUESTIONS)
    )
    found = made(pair).found
    assert found[0].correct.mean() == 1
    intern = next(outcome for outcome in found if outcome.name == "intern alone")
    assert intern.correct.mean() == 0  # 4 and 12, where the mentor says 9


def test_a_question_that_is_too_long_is_named_and_the_others_are_kept(pair, monkeypatch):
    """Item 3 has 100 words; the others have 2, and all of their prompts and answers fit into 90 tokens."""
    lines = [dict(item) for item in QUESTIONS[:12]]
    lines[2]["question"] = "boats " * 99 + "boats?"
    own = pair / "own.jsonl"
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    small = ["-s", "model_specs.1.context=90", "-s", "ensemble.generation.max_tokens=10"]
    done = run(pair, *small, "--all")
    assert isinstance(done.exception, ContextOverflowError)
    said = str(done.exception)
    assert said.startswith(f"item 3 of {own}: This model's maximum context length is 90 tokens.")
    assert "(model 'small')" in said
    assert "1 of 12 questions too long, the others are recorded: shorten it or leave it out" in said
    assert len((pair / "out" / "recorded.jsonl").read_text().splitlines()) == 1 + 11
    monkeypatch.setattr(Recorder, "collect", None)  # nothing is asked
    own.write_text("".join(json.dumps(line) + "\n" for line in lines[:2] + lines[3:]))
    done = run(pair, *small, "--all")
    assert done.exit_code == 0, done.output
    assert "n = 11 questions" in done.output


@pytest.mark.parametrize("more", [[], ["--n", "10"]])  # also behind the last question that is asked
def test_repeats_with_other_answers_are_refused(pair, caplog, more):
    repeat = {"question": " 1  boats?", "answer": "(4)."}  # the second item's words and answer
    own = pair / "own.jsonl"
    own.write_text("".join(json.dumps(item) + "\n" for item in [*QUESTIONS, repeat]))
    assert run(pair, *more).exit_code == 0
    assert "1 question is a repeat of another and left out" in caplog.messages
    own.write_text("".join(json.dumps(item) + "\n" for item in [*QUESTIONS, repeat | {"answer": "-4"}]))
    done = run(pair, *more, "--out", str(pair / "other"))
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == (
        f"item 31 of {own} repeats item 2 of {own} with another answer: correct one, or take it out"
    )
    assert not (pair / "other").exists()


def test_a_mentors_answer_that_was_cut_off_is_no_right_one(pair, caplog):
    """Of 20 questions 13 are about boats, where the mentor does not come to an end in 6 tokens."""
    lines = [{"question": item["question"]} for item in QUESTIONS[:20]]
    (pair / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    long = {"boats": "it is \\boxed{4} since one and one and one and one is four", "": "so it is \\boxed{9}"}
    found = made(pair, f"model_specs.0.replies={json.dumps(long)}", "ensemble.generation.max_tokens=6")
    right = {outcome.name: list(outcome.correct) for outcome in found.found}
    assert right["mentor alone"] == [n % 3 == 0 for n in range(20)]
    assert not any(right["intern alone"])  # as the mentor about boats, 12 about cars
    said = "the mentor's answer to 13 of 20 questions was cut off at max_tokens, so nothing counts as right there"
    assert f"{said}: raise `ensemble.generation.max_tokens`" in caplog.messages
    assert "and nothing where that was cut off at max_tokens (13 of 20)" in found.text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--task", "mbpp"], "--task or --input"),
        (["--budget", "0.5", "--aim", "cost"], "--aim accuracy"),
        (["--budget", "0.5", "--margin", "2"], "--margin goes with --aim cost"),
        (["--n", "3"], "x>=10"),
        (["--loss", "net", "--confidence", "0.5"], "give --max-loss with --confidence and --loss"),
        (["--data", "nope.jsonl"], "--data and --prompt go with --task"),
        (["--prompt", "plain"], "--data and --prompt go with --task"),
        (["--budget", "$0.01"], "a budget in dollars needs the mentor's `price`"),
        (["--budget", "inf"], "cannot be inf"),
        (["--budget", "$-1"], "cannot be -1"),
        (["--budget", "cheap"], "'cheap' is not a number"),
        (["-s", "ensemble.output_aggregation_method=vote"], "begins with a Tandem"),
        (["-s", "model_specs.0.parameters=0"], "size of the model 'big' is unknown"),
        (["--models", "mentor=a", "intern=b"], "not both"),
        (["--split", "test"], "unknown split 'test'"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_line(pair, flags, said):
    done = run(pair, *flags)
    assert done.exit_code
    assert said in done.output + str(done.exception)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "empty; expected"),
        ('{"question": "a", "answer": "1"}\n{"question": "b"}\n', "1 of 2 questions have no answer"),
        ('{"question": ""}\n', "item 1"),
        ("[]", "own.json holds no question"),
    ],
)
def test_questions_that_cannot_be_used_are_named(pair, lines, said):
    file = pair / ("own.json" if lines == "[]" else "own.jsonl")
    file.write_text(lines)
    done = run(pair, "--input", str(file))
    assert done.exit_code
    assert said in str(done.exception)
    assert not (pair / "out").exists()  # nothing was asked
    with pytest.raises(ConfigError, match="expected mentor=MODEL intern=MODEL"):
        pair_of(["a=b", "intern=c"])


def strategy(name, right, cost, single=False):
    """`right` of 100 questions right, the first ones."""
    correct = np.array([[float(n < count) for count in right] for n in range(100)])
    return Strategy(
        name, tuple((str(at), {}) for at in range(len(right))), correct, np.tile(cost, (100, 1)), single
    )


def test_the_cheapest_that_keeps_the_margin_is_chosen():
    mentor, intern = strategy("mentor", [80], [10.0], True), strategy("intern", [60], [1.0], True)
    good, poor = strategy("good", [60, 79], [2.0, 6.0]), strategy("poor", [70], [3.0])
    cost = Criterion("cost", margin=0.015)
    found = outcomes([mentor, intern, good, poor], cost)
    assert recommended(found, cost).name == "good"
    assert recommended(found, cost).setting == "1"
    wide = Criterion("cost", margin=0.25)
    assert recommended(outcomes([mentor, intern, good, poor], wide), wide).name == "intern"
    none = outcomes([mentor, intern, poor], cost)
    assert recommended(none, cost).name == "mentor"
    assert summary.headline(none[0], none[0]) == "**No strategy pays here: use the mentor.**"
    assert summary.headline(none[0], none[1]) == (
        "**No strategy pays here: use the intern (0)**: -20.0 points [-28.0, -12.0] against the mentor, and on 10,000 "
        "such questions it saves 9e-08 TFLOPs [9e-08 to 9e-08], 90% of the mentor's."
    )


def test_what_is_cheaper_and_may_keep_the_margin_is_open():
    """Sizes are (2.8016 spread / distance to the margin)², less the 100 that were asked."""
    cost, mentor = Criterion("cost", margin=0.015), strategy("mentor", [80], [10.0], True)
    near, dear, few = (
        strategy(*about) for about in (("near", [79], [9.0]), ("dear", [80], [9.5]), ("few", [77], [3.0]))
    )
    found = outcomes([mentor, strategy("intern", [60], [1.0], True), few, near, dear], cost)
    chosen = recommended(found, cost)
    assert chosen.name == "near"
    (text,) = summary.open_questions(found, chosen, False, cost)
    title, _, *lines = text.splitlines()
    assert title == (
        "Not told yet which of these lose at most 1.5 points and cost the least, and their difference to the mentor:"
    )
    assert lines == [  # spreads of 3 and of 1 of 100, which are 1.5 and 0.5 points from the margin
        "- few: -3.0 points [-7.0, +0.0]; about 926 more questions would tell",
        "- near itself: -1.0 points [-3.0, +0.0]; about 3,040 more questions would tell",
    ]


def test_that_the_answer_is_clear_or_not_is_always_said():
    for criterion in (Criterion("cost"), Criterion("accuracy", budget=0.5)):
        found = outcomes([strategy("mentor", [80], [10.0], True), strategy("bad", [40], [1.0])], criterion)
        assert summary.open_questions(found, found[0], True, criterion) == [
            "The answer is clear after 100 questions (anytime-valid test, error at most 5 %)."
        ]
        assert summary.open_questions(found, found[0], False, criterion) == [
            "The answer is not clear yet after 100 questions (anytime-valid test, error at most 5 %, from 20 questions "
            "on), although no interval leaves anything open."
        ]
        assert summary.open_questions(found[:1], found[0], False, criterion) == [
            "Nothing is open: no other strategy is cheaper, or keeps the budget."
        ]


def test_the_most_accurate_in_the_budget_must_be_surely_better():
    mentor, intern = strategy("mentor", [80], [10.0], True), strategy("intern", [60], [1.0], True)
    little, much = strategy("little", [61], [2.0]), strategy("much", [90, 75], [20.0, 4.0])
    tight = Criterion("accuracy", budget=0.5)
    assert recommended(outcomes([mentor, intern, little], tight), tight).name == "intern"
    chosen = recommended(outcomes([mentor, intern, little, much], tight), tight)
    assert (chosen.name, chosen.setting) == ("much", "1")


def test_the_bet_is_rarely_won_without_a_difference_and_soon_with_one():
    random = np.random.default_rng(0)
    fair = random.choice([-1.0, 0.0, 1.0], (2000, 200), p=[0.2, 0.6, 0.2])
    won = [any(capital(line[:end]) >= 20 for end in range(20, 201, 10)) for line in fair]
    assert np.mean(won) <= 0.05
    assert capital([1.0] * 10) == pytest.approx(np.mean((1 + choice.BETS) ** 10))
    mentor, intern = strategy("mentor", [95], [10.0], True), strategy("intern", [5], [1.0], True)
    criterion = Criterion("cost")
    found = outcomes([mentor, intern], criterion)
    assert is_clear(found, found[0], criterion)
    near = outcomes([mentor, strategy("intern", [90], [1.0], True)], criterion)
    assert not is_clear(near, near[0], criterion)


def test_a_cascade_that_loses_the_margin_exactly_is_rarely_ruled_out_whenever_one_looks():
    """Its thresholds are quantiles of all scores so far, and anew at every look."""
    random, criterion, clear = np.random.default_rng(1), Criterion("cost", margin=0.1), 0
    for _ in range(100):
        right = np.stack([random.random(200) < 0.8, random.random(200) < 0.7]).astype(float)  # mentor, intern
        scores = random.random(200)  # which say nothing
        for n in range(20, 201, 20):
            (mentor, intern), seen = right[:, :n], scores[:n]
            keeps = seen[:, None] >= np.quantile(seen, np.linspace(0, 1, 7)[1:-1])
            named = tuple((str(at), {}) for at in range(keeps.shape[1]))
            cascade = np.where(keeps, intern[:, None], mentor[:, None])
            found = [
                Strategy("mentor", (("", {}),), mentor[:, None], np.full((n, 1), 10.0), True),
                Strategy("intern", (("", {}),), intern[:, None], np.ones((n, 1)), True),
                Strategy("cascade", named, cascade, 1 + 10.0 * ~keeps, False),
            ]
            outcome = outcomes(found, criterion)
            if is_clear(outcome, outcome[0], criterion):
                clear += 1
                break
    assert clear <= 10  # 5 of 100; more than 10 would come by chance in 1 % of series


def test_few_questions_or_no_rival_are_not_clear():
    criterion = Criterion("cost", margin=0.99)
    sure = outcomes(
        [strategy("mentor", [95], [10.0], True), strategy("intern", [5], [1.0], True)], Criterion("cost")
    )
    assert is_clear(sure, sure[0], Criterion("cost"))
    ten = [
        replace(line, correct=line.correct[:10], cost=line.cost[:10], before=line.before[:10])
        for line in sure
    ]
    ten[1] = replace(ten[1], before=np.full(10, -1.0))  # as if each bet were won twice over
    assert capital(choice.rivals(ten, ten[0], Criterion("cost"))[0][1]) > 40
    assert not is_clear(ten, ten[0], Criterion("cost"))
    alone = outcomes(
        [strategy("mentor", [80], [1.0], True), strategy("intern", [90], [9.0], True)], criterion
    )
    assert not is_clear(alone, alone[0], criterion)  # nothing is cheaper, so nothing was tested


def test_a_smaller_mentor_is_said(pair, caplog):
    assert run(pair, "--n", "10").exit_code == 0
    assert not any("swapped" in message for message in caplog.messages)
    sizes = ["-s", "model_specs.0.parameters=100", "--force"]
    assert run(pair, "--n", "10", *sizes).exit_code == 0
    assert any("the mentor 'big' is the smaller model (100 active" in message for message in caplog.messages)


def test_questions_needed_is_that_of_a_paired_test():
    gains = np.array([1.0] * 10 + [-1.0] * 6 + [0.0] * 84)
    expected = ((1.95996 + 0.84162) * gains.std(ddof=1) / 0.04) ** 2
    assert questions_needed(gains) == int(np.ceil(expected))
    assert questions_needed(np.zeros(5)) is None


@pytest.mark.parametrize(
    ("task", "split"), [("aime24", None), ("amc23", None), ("builtin_math", "train"), ("gsm8k", "train")]
)
def test_test_questions_are_asked_only_by_name(task, split):
    """`all` of AIME and AMC are their test questions."""
    if split is None:
        with pytest.raises(click.UsageError, match="has only test questions"):
            _asked(None, task, None, None, "plain", None)
        assert _asked(None, task, None, None, "plain", "test")[1] == "test"
    else:
        assert _asked(None, task, None, None, "plain", None)[1] == split
