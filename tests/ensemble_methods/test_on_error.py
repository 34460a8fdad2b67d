"""A model fails: the answer fails, or the others go on behind what is written."""

import asyncio

import pytest

from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import EngineError
from ensemblehub.schema import Chat, Message, Request, Sampling

WORDS = "one two three four five six"


def ensemble(aggregation, on_error="drop", *, fails=("a",), after=0, engines="abc", **params):
    specs = [
        {"name": name, "engine": "echo", "replies": {"": WORDS}, "parameters": 10 - place}
        | ({"fail_after": after} if name in fails else {})
        for place, name in enumerate(engines)
    ]
    section = {
        "output_aggregation_method": aggregation,
        "output_aggregation_params": params,
        "on_error": on_error,
    }
    return AsyncEnsemble.from_config(Config.model_validate({"model_specs": specs, "ensemble": section}))


def ask(made, **sampling):
    request = Request(Chat((Message("user", "count"),)), Sampling(**sampling))
    return asyncio.run(made.generate(request))


def test_by_default_a_failure_is_the_answers():
    with pytest.raises(EngineError, match="a failed after 0 tokens"):
        ask(ensemble("single", "fail"))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_the_next_engine_goes_on_behind_what_is_written(after):
    result = ask(ensemble("single", after=after))
    assert result.text == WORDS
    (choice,) = result.choices
    assert choice.chosen == ("b", "c")
    assert choice.reason.startswith("dropped a: a failed after")
    written = {line.engine: line.cost.completion_tokens for line in result.usage.lines}
    assert written == {"a": after, "b": 6 - after}


def test_several_may_fail_until_none_is_left():
    assert ask(ensemble("single", fails="ab", after=2)).text == WORDS
    with pytest.raises(EngineError, match="c failed"):
        ask(ensemble("single", fails="abc", after=1))


def test_the_length_of_the_whole_answer_stays():
    result = ask(ensemble("single", after=3), max_tokens=4)
    assert result.text == "one two three four"
    assert result.finish == "length"


def test_turns_go_on_with_the_others():
    result = ask(ensemble("loop", fails="b", max_new_tokens_per_round=2), max_tokens=20)
    assert result.text == WORDS
    assert {piece.engine for piece in result.pieces if piece.text} == {"a", "c"}


def test_a_vote_is_held_among_the_others():
    result = ask(ensemble("vote", fails="b", after=1, extract="text"))
    assert result.text == WORDS
    assert result.choices[0].chosen == ("a", "c")
    assert dict(result.choices[1].scores) == {"a": 2.0, "c": 2.0}


@pytest.mark.parametrize("fails", ["a", "b"])
def test_of_a_pair_that_runs_in_tandem_the_other_answers_alone(fails):
    result = ask(ensemble("tandem", fails=fails, engines="ab", levels={"low": 2}, judge="fixed:low"))
    assert result.text == WORDS
    assert result.choices[-1].chosen == ({"a": "b", "b": "a"}[fails],)


def test_what_a_failed_pair_wrote_counts_where_insight_and_answer_share_a_limit():
    made = ensemble("tandem", fails="b", after=1, engines="ab", levels={"low": 2}, judge="fixed:low")
    result = ask(made, max_completion_tokens=5)
    assert (result.insight, result.text, result.finish) == ("one two", "one two three", "length")


def test_scorers_and_bugs_are_not_engines_and_still_fail():
    made = ensemble("single")
    made.engines[0].stream = None
    with pytest.raises(TypeError):
        ask(made)
