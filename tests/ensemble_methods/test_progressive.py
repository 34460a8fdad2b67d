"""`progressive`: an outline, lengths, marks."""

import asyncio
from contextlib import aclosing

import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.progressive import Progressive
from ensemblehub.errors import CapabilityError, ConfigError, ContextOverflowError, RequestError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.registry import build
from ensemblehub.schema import Chat, Message, Request, Sampling, Text, TokenIds

STORY = "a b <one> c d <two> e f <one> g h"
PLAN = "first add then check </think> the answer is 4"


class Recorder(EchoEngine):
    def __init__(self, name, parameters, reply=STORY, **options):
        super().__init__(name, EchoOptions({"": reply}, parameters=parameters, **options))
        self.asked = []

    def stream(self, request, meter):
        self.asked.append(request)
        return super().stream(request, meter)


class NoPrefix(Recorder):
    capabilities = frozenset()


def three():
    return [Recorder("small", 1), Recorder("large", 9), Recorder("middle", 5)]


def pair():
    return [Recorder("small", 1, "It is 4."), Recorder("large", 9, PLAN)]


def answer(strategy, engines, request="What is 2 + {2}?", **sampling):
    if isinstance(request, str):
        request = Request(
            Chat((Message("system", "Be brief."), Message("user", request))), Sampling(**sampling)
        )
    return asyncio.run(AsyncEnsemble(engines, All(), strategy).generate(request))


def parts(result):
    return [(piece.engine, piece.text) for piece in result.pieces]


def test_by_length_the_next_smaller_model_goes_on_at_each_threshold():
    result = answer(Progressive(switch_mode="length", length_thresholds=(2, 5, 7)), three())
    assert parts(result) == [("large", "a b"), ("middle", " <one> c d"), ("small", " <two> e f <one> g h")]
    assert result.finish == "stop"


def test_by_length_models_beyond_the_last_threshold_do_not_write():
    result = answer(Progressive(switch_mode="length", length_thresholds=(2,)), three())
    assert parts(result) == [("large", "a b"), ("middle", STORY[3:])]


def test_by_length_a_round_may_be_shorter_than_the_stretch():
    strategy = Progressive(switch_mode="length", length_thresholds=(5,), max_new_tokens_per_round=3)
    result = answer(strategy, three()[:2])
    assert [(piece.engine, len(piece.tokens)) for piece in result.pieces] == [
        ("large", 3),
        ("large", 2),
        ("small", 3),
        ("small", 3),
    ]


def test_by_token_each_new_mark_hands_on_and_a_repeated_one_does_not():
    result = answer(Progressive(switch_mode="token", special_tokens=("<one>", "<two>")), three())
    assert parts(result) == [("large", "a b <one>"), ("middle", " c d <two>"), ("small", " e f <one> g h")]


def test_by_token_more_marks_than_models_leave_the_smallest_writing():
    result = answer(Progressive(switch_mode="token", special_tokens=("<one>", "<two>")), three()[:2])
    assert parts(result) == [("large", "a b <one>"), ("small", " c d <two> e f <one> g h")]


def test_by_token_marks_in_the_prefix_count():
    request = Request(Text("Go."), prefix="a b <one>")
    result = answer(Progressive(switch_mode="token", special_tokens=("<one>", "<two>")), three(), request)
    assert parts(result) == [("middle", " c d <two>"), ("small", " e f <one> g h")]


def test_the_outline_goes_into_the_smallest_ones_prompt_and_not_into_the_answer():
    small, large = engines = pair()
    strategy = Progressive(
        outline_prompt_template="Plan: {question} Only {this}.",
        final_prompt_template="{question} Outline: {outline}",
        outline_max_tokens=7,
    )
    result = answer(strategy, engines, seed=3, stop=("check", "."), ignore_eos=True, max_tokens=9)
    assert result.text == "It is 4"
    assert result.finish == "stop"
    assert result.insight.strip() == "first add then check"
    first, second = large.asked[0], small.asked[0]
    assert first.prompt.messages == (
        Message("system", "Be brief."),
        Message("user", "Plan: What is 2 + {2}? Only {this}."),
    )
    assert second.prompt.messages[-1].content == "What is 2 + {2}? Outline: first add then check"
    assert (first.sampling.max_tokens, first.sampling.stop, first.sampling.ignore_eos) == (
        7,
        ("</think>",),
        False,
    )
    assert (second.sampling.max_tokens, second.sampling.stop, second.sampling.seed) == (9, ("check", "."), 3)
    assert first.sampling.seed not in (None, 3)
    assert [(line.engine, line.purpose) for line in result.usage.lines] == [
        ("large", "insight"),
        ("small", "answer"),
    ]
    assert [(piece.round, piece.finish) for piece in result.pieces] == [(1, None), (2, "stop")]


def test_an_outline_that_names_a_field_of_the_template_is_left_as_it_is():
    engines = [Recorder("small", 1, "ok"), Recorder("large", 9, "use {question} twice")]
    answer(Progressive(final_prompt_template="{question}: {outline}"), engines, "Why?")
    assert engines[0].asked[0].prompt.messages[-1].content == "Why?: use {question} twice"


@pytest.mark.parametrize(("language", "word"), [("en", "outline"), ("zh", "提纲")])
def test_templates_by_language_hold_question_and_outline(language, word):
    small, large = engines = pair()
    answer(Progressive(template_language=language), engines, Request(Text("Why?")))
    for asked in (large.asked[0], small.asked[0]):
        assert "Why?" in asked.prompt.messages[-1].content
        assert word in asked.prompt.messages[-1].content
    assert "first add then check" in small.asked[0].prompt.messages[-1].content


def test_a_profile_gives_the_words_its_models_know():
    small, large = engines = pair()
    answer(Progressive(profile="builtin"), engines, Request(Text("Why?")))
    assert large.asked[0].prompt.messages == (
        Message("system", "Give insights only."),
        Message("user", "Why?"),
    )
    assert small.asked[0].prompt.messages[0] == Message("system", "Use the insights.")
    assert small.asked[0].prompt.messages[1].content.startswith("Why?\nInsights:\nfirst add")


def test_closing_while_the_outline_is_written_starts_no_answer():
    small, large = pair()
    ledger = UsageLedger()

    async def read():
        stream = Progressive().run(Request(Text("Why?")), [small, large], ledger)
        async with aclosing(stream):
            await anext(stream)

    asyncio.run(read())
    assert (large.written, small.asked) == (1, [])
    assert [(call.engine, call.purpose, call.cost.completion_tokens) for call in ledger.calls] == [
        ("large", "insight", 1)
    ]


def test_the_whole_answers_limit_holds_in_every_mode():
    for options in ({}, {"switch_mode": "length", "length_thresholds": (1,)}, {"switch_mode": "token"}):
        result = answer(Progressive(**options, max_tokens=2), [Recorder("small", 1), Recorder("large", 9)])
        assert (result.text, result.finish) == ("a b", "length")


@pytest.mark.parametrize("most", [1, 2, 4, 6, 30])
def test_outline_and_answer_share_a_limit(most):
    result = answer(Progressive(outline_max_tokens=3), pair(), max_tokens=20, max_completion_tokens=most)
    outline, text = result.insight.split(), result.text.split()
    assert len(outline) == min(3, most - 1)
    assert len(text) == min(3, most - len(outline))


def test_no_room_for_outline_and_answer_is_refused_before_the_outline():
    engines = [Recorder("small", 1, context=500), Recorder("large", 9)]
    with pytest.raises(ContextOverflowError, match="small"):
        answer(Progressive(outline_max_tokens=400), engines, max_tokens=100)
    assert not engines[1].asked


def test_token_ids_are_refused():
    with pytest.raises(RequestError, match="token ids"):
        answer(Progressive(), pair(), Request(TokenIds((1, 2))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "bulitin"}, "did you mean 'builtin'"),
        ({"profile": "builtin", "final_prompt_template": "{question}{outline}"}, "not both"),
        ({"outline_prompt_template": "Plan it."}, "lacks {question}"),
        ({"final_prompt_template": "{question}"}, "lacks {outline}"),
        ({"switch_mode": "length", "length_thresholds": ()}, "rising lengths"),
        ({"switch_mode": "length", "length_thresholds": (5, 3)}, "rising lengths"),
        ({"switch_mode": "length", "length_thresholds": (0, 3)}, "rising lengths"),
        ({"switch_mode": "token", "special_tokens": ()}, "special_tokens"),
        ({"switch_mode": "token", "special_tokens": ("",)}, "special_tokens"),
        ({"outline_max_tokens": 0}, "outline_max_tokens.*greater than or equal to 1"),
        ({"max_new_tokens_per_round": 0}, "max_new_tokens_per_round.*greater than or equal to 1"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        AsyncEnsemble(pair(), All(), Progressive(**options))


def test_options_come_from_yaml():
    given = {"switch_mode": "token", "special_tokens": ["<a>", "<b>"], "length_thresholds": [10, 20]}
    strategy = build(Progressive, given, "progressive")
    assert strategy == Progressive(
        switch_mode="token", special_tokens=("<a>", "<b>"), length_thresholds=(10, 20)
    )
    with pytest.raises(ConfigError, match="switch_mode"):
        build(Progressive, {"switch_mode": "size"}, "progressive")
    assert Progressive().length_thresholds == (1000, 2000, 3000)


@pytest.mark.parametrize("mode", ["length", "token"])
def test_only_those_that_continue_need_to(mode):
    engines = [Recorder("small", 1), NoPrefix("large", 9)]
    AsyncEnsemble(engines, All(), Progressive(switch_mode=mode))
    with pytest.raises(CapabilityError, match="'large'"):
        AsyncEnsemble(engines, All(), Progressive(switch_mode=mode, max_new_tokens_per_round=9))
    with pytest.raises(CapabilityError, match="'small'"):
        AsyncEnsemble([NoPrefix("small", 1), Recorder("large", 9)], All(), Progressive(switch_mode=mode))
    AsyncEnsemble([NoPrefix("small", 1), NoPrefix("large", 9)], All(), Progressive())
    with pytest.raises(CapabilityError, match="'large'"):
        AsyncEnsemble([Recorder("small", 1), NoPrefix("large", 9)], All(), Progressive(profile="qwen3"))


def test_one_engine_is_not_enough():
    with pytest.raises(ConfigError, match="at least 2"):
        AsyncEnsemble([Recorder("a", 1)], All(), Progressive())
