"""`plan_on_failure` and `hint`: what the large model adds once the small one's own answer is not accepted."""

import asyncio
import math
from contextlib import aclosing
from typing import ClassVar

import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.acceptance import Acceptance
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.hint import Hint
from ensemblehub.ensemble_methods.output_aggregation.plan_on_failure import PlanOnFailure
from ensemblehub.errors import CapabilityError, ConfigError, ContextOverflowError, EngineError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Message, Piece, Request, Sampling

CHAT = Chat((Message("user", "What is 2 + {hint}?"),))
WRONG, RIGHT = "I say \\boxed{5} at once", "After all \\boxed{4}"
PLAN = "Goal: add. Planning: count on from two."
SOLUTION = "Two and two are four, so the answer is \\boxed{4}"


class Recorder(EchoEngine):
    def __init__(self, name, replies, parameters, **options):
        super().__init__(name, EchoOptions(replies, parameters=parameters, **options))
        self.asked = []

    def stream(self, request, meter):
        self.asked.append(request)
        return super().stream(request, meter)


class NoPrefix(Recorder):
    capabilities = frozenset({"logprobs"})


class Tests(Acceptance):
    """A draft passes where it says 4; `checked` keeps what was tested."""

    checked: ClassVar[list[str]] = []

    async def probability(self, trial):
        self.checked.append(trial.draft.text)
        return float("4" in trial.draft.text)


def pair(large=SOLUTION, small=WRONG, **options):
    replies = {"Thinking Insights": RIGHT, "expert": RIGHT, "": small}
    return [Recorder("big", {"": large}, 9), Recorder("tiny", replies, 1, **options)]


def answer(strategy, engines, **sampling):
    return asyncio.run(AsyncEnsemble(engines, All(), strategy).generate(Request(CHAT, Sampling(**sampling))))


def costs(result):
    return {(line.engine, line.purpose): line.cost for line in result.usage.lines}


def test_a_plan_is_asked_for_only_where_the_first_try_fails():
    strategy = PlanOnFailure(accept=f"{__name__}:Tests")
    big, tiny = engines = pair(PLAN, RIGHT)
    assert (answer(strategy, engines).text, big.asked, len(tiny.asked)) == (RIGHT, [], 1)
    big, tiny = engines = pair(PLAN)
    result = answer(strategy, engines, seed=3, max_tokens=20, stop=("!",))
    assert Tests.checked[-2:] == [RIGHT, WRONG]
    assert (result.text, result.insight) == (RIGHT, PLAN)
    assert [verdict.sufficient for verdict in result.verdicts] == [False]
    assert [(piece.engine, piece.purpose) for piece in result.pieces] == [
        ("big", "insight"),
        ("tiny", "answer"),
    ]
    assert WRONG not in "".join(message.content for message in big.asked[0].prompt.messages)
    assert big.asked[0].sampling.seed not in (None, 3)
    assert (tiny.asked[0].prompt, tiny.asked[0].sampling) == (CHAT, tiny.asked[1].sampling)
    assert (
        tiny.asked[1].prompt.messages[-1].content
        == f"{CHAT.messages[0].content}\n\n[Thinking Insights]\n{PLAN}"
    )
    spent = costs(result)
    assert spent.keys() == {("tiny", "propose"), ("big", "insight"), ("tiny", "answer")}
    assert spent["tiny", "propose"].discarded_tokens == len(WRONG.split())
    assert spent["big", "insight"].completion_tokens == len(PLAN.split())


def test_the_planner_sees_the_failed_attempt_if_it_shall():
    with pytest.raises(ConfigError, match="`show_draft` needs a draft, and `accept: never` writes none"):
        AsyncEnsemble(pair(PLAN), All(), PlanOnFailure(accept="never", show_draft=True))
    engines = pair(PLAN)
    answer(PlanOnFailure(threshold=1.0, show_draft=True), engines)
    assert engines[0].asked[0].prompt.messages[-1].content.endswith(f"not accepted:\n{WRONG}")
    assert WRONG not in engines[1].asked[1].prompt.messages[-1].content


def test_plan_and_answer_share_max_completion_tokens():
    for most, plan, text in ((1, "", "I"), (3, "Goal: add.", "After"), (30, PLAN, RIGHT)):
        result = answer(PlanOnFailure(accept="never"), pair(PLAN), max_completion_tokens=most)
        assert (result.insight, result.text) == (plan, text)


def test_a_plan_that_does_not_fit_is_refused_before_anyone_is_asked():
    engines = pair(PLAN, context=400)
    with pytest.raises(ContextOverflowError, match="tiny"):
        answer(PlanOnFailure(plan_tokens=350), engines)
    assert not engines[0].asked
    assert not engines[1].asked


def test_a_planner_that_has_to_be_given_its_first_words_must_continue_a_text():
    engines = [NoPrefix("big", {"": PLAN}, 9), Recorder("tiny", {"": WRONG}, 1)]
    AsyncEnsemble(engines, All(), PlanOnFailure())
    with pytest.raises(CapabilityError, match=r"plan_on_failure .large. needs prefix of engine 'big'"):
        AsyncEnsemble(engines, All(), PlanOnFailure(profile="qwen3"))
    with pytest.raises(ConfigError, match=r"plan_on_failure: .*did you mean 'builtin'"):
        AsyncEnsemble(engines, All(), PlanOnFailure(profile="bultin"))


def test_a_hint_is_the_beginning_of_the_large_models_own_answer():
    big, tiny = engines = pair()
    result = answer(Hint(threshold=0.5, share=0.6), engines, max_tokens=20, min_tokens=2)
    assert result.verdicts[0].probability == pytest.approx(math.exp(-1))
    assert (result.insight, result.text, result.finish) == ("Two and two", RIGHT, "stop")  # 0.6 of 5 tokens
    assert big.asked[0].prompt == CHAT
    assert big.asked[0].sampling == Sampling(max_tokens=3, min_tokens=2)  # an end within it is the answer's
    shown = tiny.asked[1].prompt.messages[-1].content
    assert shown.startswith("What is 2 + {hint}?\n\nThe beginning of an expert's solution:\nTwo and two\n")
    assert costs(result)["big", "insight"].completion_tokens == 3
    assert costs(result)["tiny", "propose"].discarded_tokens == 5


def test_an_accepted_answer_needs_no_hint():
    engines = pair(small=RIGHT, logprob=-0.01)
    assert (answer(Hint(), engines).text, engines[0].asked) == (RIGHT, [])


def test_without_a_draft_the_hint_has_a_given_length():
    _, tiny = engines = pair()
    result = answer(Hint(accept="never", tokens=4), engines)
    assert (result.insight, result.verdicts, len(tiny.asked)) == ("Two and two are", (), 1)
    assert costs(result).keys() == {("big", "insight"), ("tiny", "answer")}
    big, _ = engines = pair()
    answer(Hint(accept="never", tokens=4), engines, min_tokens=9)
    assert big.asked[0].sampling.min_tokens == 4


@pytest.mark.parametrize(("tokens", "most", "text"), [(50, 20, SOLUTION), (8, 4, "Two and two are")])
def test_a_large_model_that_ends_within_the_hint_has_answered(tokens, most, text):
    engines = pair()
    result = answer(Hint(accept="never", tokens=tokens), engines, max_tokens=most)
    assert (result.text, result.insight) == (text, "")
    assert result.finish == ("stop" if text == SOLUTION else "length")
    assert not engines[1].asked


def test_words_of_a_hint_come_from_a_template_or_a_profile():
    for options, shown in (
        ({"template": "{hint} / expert / {question}"}, "Two and / expert / What is 2 + {hint}?"),
        ({"profile": "builtin"}, "What is 2 + {hint}?\nInsights:\nTwo and"),
    ):
        engines = pair()
        answer(Hint(accept="never", tokens=2, **options), engines)
        assert engines[1].asked[0].prompt.messages[-1].content == shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accept": "never"}, "hint: `accept: never` writes no draft to take a share of; set `tokens`"),
        ({"template": "{question}"}, "hint: the template lacks {hint}"),
        ({"profile": "builtn"}, "hint: .*did you mean 'builtin'"),
        ({"share": 0.3, "tokens": 9}, "hint: `tokens` takes the place of `share`; set one of them"),
        ({"share": 0.0}, "share.*greater than 0"),
        (
            {"profile": "builtin", "template": "{question} {hint}"},
            "hint: give a profile or a template, not both",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        AsyncEnsemble(pair(), All(), Hint(**options))


@pytest.mark.parametrize("strategy", [PlanOnFailure(accept="never"), Hint(accept="never", tokens=3)])
def test_closing_stops_whoever_writes(strategy):
    engines, ledger = pair(), UsageLedger()

    async def run():
        async with aclosing(strategy.run(Request(CHAT), engines, ledger)) as events:
            async for event in events:
                if isinstance(event, Piece) and event.purpose == "answer":
                    break

    asyncio.run(run())
    assert engines[1].written == 1
    assert ledger.total.completion_tokens == sum(engine.written for engine in engines)


@pytest.mark.parametrize("strategy", [PlanOnFailure(), Hint()])
def test_a_failure_is_an_error(strategy):
    engines = [Recorder("big", {"": PLAN}, 9, fail_after=1), Recorder("tiny", {"": WRONG}, 1)]
    with pytest.raises(EngineError, match="big failed"):
        answer(strategy, engines)
