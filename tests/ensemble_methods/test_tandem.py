"""Tandem on the echo engine: what is written, judged, stopped, recorded."""

import asyncio
import subprocess
import sys
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import CapabilityError, ConfigError, ContextOverflowError, EngineError, RequestError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.results import fold
from ensemblehub.schema import Chat, Cost, Message, Piece, Request, Sampling, Text, TokenIds, Verdict

INSIGHT = (
    "Goal: add two numbers. Planning: count on. Retrieval: two and two. Action: two then three then four"
)
ANSWER = "Two and two make \\boxed{4}"
LEVELS = {"low": 3, "medium": 6, "high": 9}


def pair(intern=None, mentor=None):
    big = EchoEngine("big", EchoOptions({"": INSIGHT}, parameters=9_000_000, **(mentor or {})))
    small = EchoEngine("small", EchoOptions({"": ANSWER}, parameters=1_000_000, **(intern or {})))
    return big, small


def ensemble(tandem, intern=None, mentor=None):
    return AsyncEnsemble(pair(intern, mentor), All(), tandem)


def answer(hub, question="2 + 2?"):
    return asyncio.run(hub.generate(question))


def test_the_mentor_is_stopped_at_the_level_that_suffices():
    hub = ensemble(Tandem(levels=LEVELS, judge="entropy:0.1"), intern={"confident": ("numbers.",)})
    result = answer(hub)
    assert result.insight == "Goal: add two numbers. Planning: count"
    assert [(verdict.level, verdict.sufficient) for verdict in result.verdicts] == [
        ("low", False),
        ("medium", True),
    ]
    assert hub.engines[0].written == 6
    assert result.text == ANSWER


def test_level_0_calls_no_mentor():
    hub = ensemble(Tandem(levels=LEVELS, judge="entropy:2.0", start_with_intern=True))
    result = answer(hub)
    assert [verdict.level for verdict in result.verdicts] == ["none"]
    assert hub.engines[0].written == 0
    assert {line.engine for line in result.usage.lines} == {"small", "judge"}


def test_never_sufficient_answers_from_the_best_level():
    hub = ensemble(Tandem(levels=LEVELS, judge="entropy:0.5"))
    result = answer(hub)
    assert not any(verdict.sufficient for verdict in result.verdicts)
    best = max(result.verdicts, key=lambda verdict: verdict.probability)
    assert hub.aggregation.chosen(result.verdicts) == best.level == "low"  # all alike: the cheapest


def test_fallback_mentor_answers_itself():
    hub = ensemble(Tandem(levels=LEVELS, judge="entropy:0.1", fallback="mentor"))
    result = answer(hub)
    assert result.text == INSIGHT
    assert {line.engine for line in result.usage.lines if line.purpose == "answer"} == {"big"}


def test_a_mentor_that_ends_early_is_the_last_checkpoint_and_is_not_asked_again():
    hub = ensemble(Tandem(levels={"low": 3, "high": 500}, judge="entropy:0.1"))
    result = answer(hub)
    assert [verdict.mentor_tokens for verdict in result.verdicts] == [3, len(INSIGHT.split())]
    hub = ensemble(Tandem(levels={"low": 400, "high": 500}, judge="entropy:0.1"))
    assert [verdict.level for verdict in answer(hub).verdicts] == ["low"]


@pytest.mark.parametrize("judge", ["fixed:low", "fixed:medium", "fixed:high"])
def test_a_fixed_level_reads_nothing(judge):
    result = answer(ensemble(Tandem(levels=LEVELS, judge=judge)))
    assert len(result.insight.split()) == LEVELS[judge.removeprefix("fixed:")]
    assert all(line.cost.prompt_tokens == 0 for line in result.usage.lines if line.purpose == "judge")


def test_the_intern_reads_the_insight_last_and_level_0_is_the_same_without_it():
    seen = []

    class Spy(EchoEngine):
        async def score(self, request, meter):
            seen.append(self._rendered(request))
            return await super().score(request, meter)

    big, small = pair()
    hub = AsyncEnsemble(
        [big, Spy("small", small.script)],
        All(),
        Tandem(levels=LEVELS, judge="entropy:0.1", start_with_intern=True),
    )
    answer(hub)
    for shorter, longer in pairwise(seen):
        assert longer.startswith(shorter)
    assert len(seen) == 4


def test_continuation_puts_the_insight_into_the_interns_own_turn():
    big, small = pair()
    asked = []

    class Spy(EchoEngine):
        async def stream(self, request, meter):
            asked.append(request)
            async with aclosing(super().stream(request, meter)) as pieces:
                async for piece in pieces:
                    yield piece

    hub = AsyncEnsemble(
        [big, Spy("small", small.script)],
        All(),
        Tandem(levels=LEVELS, judge="fixed:low", insight_mode="continuation"),
    )
    answer(hub)
    assert asked[0].prefix == "Goal: add two"


def test_an_engine_error_in_mid_run_is_an_error_and_never_an_answer():
    for mentor, intern in (({"fail_after": 2}, None), (None, {"fail_after": 1})):
        hub = ensemble(Tandem(levels=LEVELS, judge="entropy:0.1"), intern, mentor)
        with pytest.raises(EngineError, match="as scripted"):
            answer(hub)


def test_on_mentor_error_the_intern_answers_alone_if_so_configured():
    hub = ensemble(
        Tandem(levels=LEVELS, judge="entropy:0.1", on_mentor_error="intern"), mentor={"fail_after": 4}
    )
    result = answer(hub)
    assert result.text == ANSWER
    assert next(line for line in result.usage.lines if line.engine == "big").cost.completion_tokens == 4
    failing_intern = ensemble(
        Tandem(levels=LEVELS, judge="fixed:low", on_mentor_error="intern"), {"fail_after": 1}
    )
    with pytest.raises(EngineError):
        answer(failing_intern)


async def events_of(hub, ledger, stop=None):
    events = []
    async with aclosing(hub.stream("2 + 2?", ledger)) as stream:
        async for event in stream:
            events.append(event)
            if len(events) == stop:
                break
    return events


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 25), st.sampled_from(["entropy:0.1", "fixed:medium"]), st.integers(0, 3))
def test_closing_early_stops_every_model_and_records_what_was_written(stop, judge, lookahead):
    hub = ensemble(Tandem(levels=LEVELS, judge=judge), mentor={"lookahead": lookahead})
    ledger = UsageLedger()
    events = asyncio.run(events_of(hub, ledger, stop))
    pieces = [event for event in events if isinstance(event, Piece)]
    for engine in hub.engines:
        read = sum(len(piece.tokens) for piece in pieces if piece.engine == engine.name)
        costs = [call.cost for call in ledger.calls if call.engine == engine.name and call.purpose != "judge"]
        assert engine.written == read
        assert sum(cost.completion_tokens - cost.discarded_tokens for cost in costs) == read
    assert sum((line.cost for line in ledger.usage.lines), Cost()) == ledger.total


def test_the_stream_folded_is_the_answer():
    hub, ledger = ensemble(Tandem(levels=LEVELS, judge="entropy:0.1")), UsageLedger()
    events = asyncio.run(events_of(hub, ledger))
    streamed, buffered = fold(events, ledger, 0.0), answer(hub)
    assert streamed.text == buffered.text
    assert streamed.insight == buffered.insight
    assert [line.cost.completion_tokens for line in streamed.usage.lines] == [
        line.cost.completion_tokens for line in buffered.usage.lines
    ]
    assert (
        "".join(event.text for event in events if isinstance(event, Piece) and event.purpose == "answer")
        == ANSWER
    )
    assert any(isinstance(event, Verdict) for event in events)


@pytest.mark.parametrize(
    ("effort", "levels", "written"),
    [
        ("none", [], 0),
        ("low", ["low"], 3),
        ("medium", ["low", "medium"], 6),
        ("high", ["low", "medium", "high"], 9),
    ],
)
def test_an_effort_is_the_highest_level_that_is_read(effort, levels, written):
    hub = ensemble(Tandem(levels=LEVELS, judge="entropy:0.5", effort=effort))
    result = answer(hub)
    assert [verdict.level for verdict in result.verdicts] == levels
    assert (hub.engines[0].written, result.text) == (written, ANSWER)


@pytest.mark.parametrize("name", ["none", "question", "draft", "mentor", "mentor_concise", "intern"])
def test_names_that_mean_something_else_are_no_levels(name):
    with pytest.raises(ConfigError) as error:
        ensemble(Tandem(levels={"low": 3, name: 12}, judge="fixed:low"))
    assert str(error.value) == (
        f"tandem: levels: {name!r} is a reserved name "
        "(draft, intern, mentor, mentor_concise, none, question): give the level another"
    )


def test_an_effort_leaves_the_judge_free_to_stop_before_it():
    hub = ensemble(
        Tandem(levels=LEVELS, judge="entropy:0.1", effort="high"), intern={"confident": ("numbers.",)}
    )
    assert [verdict.level for verdict in answer(hub).verdicts] == ["low", "medium"]
    hub = ensemble(Tandem(levels=LEVELS, judge="entropy:2.0", start_with_intern=True, effort="none"))
    assert answer(hub).verdicts == ()  # with no choice there is nothing to judge
    with pytest.raises(ConfigError, match="effort: unknown level 'lots'"):
        ensemble(Tandem(levels=LEVELS, effort="lots"))


@pytest.mark.parametrize("mode", ["prompt", "continuation"])
@pytest.mark.parametrize("most", [1, 2, 4, 9, 10, 14, 15, 40])
def test_insight_and_answer_share_a_limit(most, mode):
    hub = ensemble(Tandem(levels=LEVELS, judge="entropy:0.1", insight_mode=mode))
    sampling = Sampling(max_tokens=20, max_completion_tokens=most)
    result = asyncio.run(hub.generate(Request(Chat((Message("user", "2 + 2?"),)), sampling)))
    insight, text = result.insight.split(), result.text.split()
    assert len(insight) == min(9, most - 1)
    assert len(text) == min(5, most - len(insight))
    assert result.finish == ("stop" if len(text) == 5 else "length")
    assert hub.engines[0].written == len(insight)


def test_a_limit_of_both_makes_room_in_the_context():
    sampling = Sampling(max_tokens=500, max_completion_tokens=12)
    hub = ensemble(
        Tandem(levels=LEVELS, judge="fixed:high"), intern={"context": 100}, mentor={"context": 200}
    )
    assert (
        asyncio.run(hub.generate(Request(Chat((Message("user", "2 + 2?"),)), sampling))).text == "Two and two"
    )


def test_context_is_checked_before_anything_is_used():
    hub, ledger = ensemble(Tandem(levels=LEVELS, judge="entropy:0.1"), intern={"context": 40}), UsageLedger()
    with pytest.raises(ContextOverflowError, match="small"):
        asyncio.run(events_of(hub, ledger))
    assert not ledger.calls


def test_prompts_of_every_form():
    hub = ensemble(Tandem(levels=LEVELS, judge="fixed:low"))
    chat = Chat((Message("system", "Be kind."), Message("user", "2 + 2?")))
    for prompt in (chat, Text("2 + 2?")):
        assert asyncio.run(hub.generate(Request(prompt, Sampling(max_tokens=50)))).text == ANSWER
    with pytest.raises(RequestError, match="token ids"):
        asyncio.run(hub.generate(Request(TokenIds((1, 2)))))


def test_roles_and_capabilities_are_checked_before_loading():
    big, small = pair()
    tandem = Tandem(levels=LEVELS, judge="entropy:0.1")
    assert tandem.roles([small, big]) == (big, small)
    with pytest.raises(ConfigError, match="both would be"):
        AsyncEnsemble([big], All(), tandem)
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        AsyncEnsemble([big, small], All(), Tandem(intern="smal", judge="entropy:0.1"))

    class Mute(EchoEngine):
        capabilities = frozenset()

    with pytest.raises(CapabilityError, match="score"):
        AsyncEnsemble([big, Mute("small", small.script)], All(), tandem)
    with pytest.raises(CapabilityError, match="prefix"):
        AsyncEnsemble(
            [big, Mute("small", small.script)], All(), Tandem(judge="fixed:low", insight_mode="continuation")
        )


def test_thresholds_by_level():
    hub = ensemble(Tandem(levels=LEVELS, judge="entropy:1.0", thresholds={"low": 0.9, "medium": 0.4}))
    assert [verdict.threshold for verdict in answer(hub).verdicts] == [0.9, 0.4]
    with pytest.raises(ConfigError, match="did you mean 'medium'"):
        ensemble(Tandem(levels=LEVELS, judge="entropy:1.0", thresholds={"medum": 0.9}))


@pytest.mark.parametrize(
    "options",
    [{"thresholds": {"none": 0.9}}, {"give_up": {"none": 0.1}}, {"give_up": {"none": "calibrated"}}],
)
def test_the_level_none_has_limits_only_where_it_is_judged(options):
    tandem = Tandem(levels=LEVELS, judge="entropy:1.0", **options)
    message = (
        f"tandem: {next(iter(options))}: level 'none' is judged only with `start_with_intern` or `draft`"
    )
    with pytest.raises(ConfigError, match=message):
        ensemble(tandem)
    ensemble(replace(tandem, start_with_intern=True))
    ensemble(replace(tandem, draft="logprob"))


@pytest.mark.parametrize(
    "options",
    [
        {"thresholds": {"low": 1.5}},
        {"thresholds": {"low": -0.5}},
        {"give_up": {"low": 7}},
        {"give_up": {"low": "calibrted"}},
    ],
)
def test_what_is_no_probability_is_refused_in_a_configuration(options):
    (name,) = options
    ensemble = {
        "output_aggregation_method": "tandem",
        "output_aggregation_params": {"judge": "entropy:1", **options},
    }
    models = [
        {"name": "a", "engine": "echo", "parameters": 2},
        {"name": "b", "engine": "echo", "parameters": 1},
    ]
    config = Config.from_dict({"model_specs": models, "ensemble": ensemble})
    with pytest.raises(ConfigError, match=f"option '{name}.low': Input should be"):
        AsyncEnsemble.from_config(config)


def test_an_insight_that_continues_the_profiles_opening_is_shown_with_it():
    mentor = {"replies": {"": "<think>\nGoal: add the numbers."}}
    hub = ensemble(Tandem(levels={"low": 3}, judge="fixed:low", profile="deepseek-r1"))
    hub.engines[0].script = EchoOptions(**mentor)
    assert answer(hub).insight == "Goal: add the numbers."


def test_tandem_loads_nothing_of_the_laboratory_and_no_weights():
    module = "ensemblehub.ensemble_methods.output_aggregation.tandem"
    code = f"import sys, {module}; print([n for n in sys.modules if 'ensemblehub.lab' in n or n == 'torch'])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_the_fields_of_a_profile_may_stand_in_the_file_instead_of_its_name():
    words = {"request": "Give a hint.", "guide": "Answer.", "header": " Hint: ", "opening": "Use "}
    specs = [
        {
            "name": "big",
            "engine": "echo",
            "parameters": 9_000_000,
            "replies": {"Give a hint.": "two and two"},
        },
        {"name": "small", "engine": "echo", "parameters": 1_000_000, "replies": {"Hint: Use two": ANSWER}},
    ]
    params = {"levels": {"low": 1}, "judge": "fixed:low", "profile": words}
    section = {"output_aggregation_method": "tandem", "output_aggregation_params": params}
    hub = AsyncEnsemble.from_config(Config.from_dict({"model_specs": specs, "ensemble": section}))
    assert answer(hub).text == ANSWER
    assert hub.aggregation.words.request == "Give a hint."


def test_the_former_name_of_a_profile_is_read_with_a_warning(caplog):
    hub = ensemble(Tandem(levels=LEVELS, judge="fixed:low", profile="studio"))
    assert "`studio` is called `builtin` now" in caplog.text
    assert hub.aggregation.words == Tandem(profile="builtin").words


def test_an_effort_is_never_above_the_configured_one():
    tandem = Tandem(levels=LEVELS, judge="fixed:low", effort="medium")
    assert tandem.efforts == ("none", "low", "medium", "high")
    assert [tandem.with_effort(effort).effort for effort in tandem.efforts] == [
        "none",
        "low",
        "medium",
        "medium",
    ]
    assert [checkpoint.mentor_tokens for checkpoint in tandem.checkpoints] == [3, 6]
