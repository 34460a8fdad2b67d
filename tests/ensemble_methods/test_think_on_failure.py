"""`think_on_failure`: a model answers without thinking, and thinks where that answer is not accepted."""

import asyncio
from dataclasses import replace

import pytest

from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.think_on_failure import ThinkOnFailure
from ensemblehub.errors import CapabilityError, ConfigError, ContextOverflowError, RequestError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Message, Request, Sampling, Text

CHAT = Chat((Message("user", "What is 2 + 2?"),))
SHORT, LONG = "It is \\boxed{5}", "<think>two and two</think>So \\boxed{4}"


class Switched(EchoEngine):
    """Plays another reply where thinking is off; `asked` keeps the switch of every request."""

    def __init__(self, name="big", short=SHORT, parameters=9, **options):
        super().__init__(name, EchoOptions({"": LONG}, parameters=parameters, **options))
        self.short, self.asked = short, []

    def stream(self, request, meter):
        self.asked.append((request.prompt.thinking, request.sampling.temperature))
        self.script = replace(self.script, replies={"": self.short if self.asked[-1][0] is False else LONG})
        return super().stream(request, meter)


class Unswitched(Switched):
    def same_prompt(self, first, second):
        return first.prompt.messages == second.prompt.messages


class Blind(Switched):
    capabilities = frozenset({"prefix"})


def answer(strategy, *engines, prompt=CHAT, **sampling):
    return asyncio.run(
        AsyncEnsemble(list(engines), All(), strategy).generate(Request(prompt, Sampling(**sampling)))
    )


def usage(result):
    return {
        (line.engine, line.purpose): (line.cost.completion_tokens, line.cost.discarded_tokens)
        for line in result.usage.lines
    }


def test_a_probable_answer_without_thinking_is_kept():
    big = Switched(logprob=-0.01)
    result = answer(ThinkOnFailure(threshold=0.99), big)
    assert (result.text, big.asked) == (SHORT, [(False, 0.0)])
    assert usage(result) == {("big", "propose"): (3, 0)}
    assert [round(verdict.probability, 4) for verdict in result.verdicts] == [0.9900]  # exp(-0.01) = 0.99005


@pytest.mark.parametrize("thinking", [None, True])
def test_else_the_same_model_thinks(thinking):
    big = Switched(logprob=-0.011)  # exp(-0.011) = 0.98906
    result = answer(ThinkOnFailure(threshold=0.99), big, prompt=replace(CHAT, thinking=thinking))
    assert (result.text, [switch for switch, _ in big.asked]) == (LONG, [False, thinking])
    assert usage(result) == {("big", "propose"): (3, 3), ("big", "answer"): (4, 0)}
    assert [(piece.engine, piece.purpose) for piece in result.pieces] == [("big", "answer")]


def test_a_request_that_turns_thinking_off_is_answered_at_once():
    big = Switched()
    result = answer(ThinkOnFailure(threshold=1.0), big, prompt=replace(CHAT, thinking=False))
    assert (result.text, result.verdicts, big.asked) == (SHORT, (), [(False, 0.0)])
    assert usage(result) == {("big", "answer"): (3, 0)}


def test_an_answer_that_was_cut_off_is_never_kept():
    big = Switched(logprob=-0.001)
    result = answer(ThinkOnFailure(threshold=0.5), big, max_tokens=2)
    assert (result.verdicts[0].sufficient, result.text) == (False, "<think>two and")


def test_another_model_may_answer_first():
    big, tiny = Switched(), Switched("tiny", short="It is \\boxed{3}", parameters=1, logprob=-0.01)
    assert answer(ThinkOnFailure(small="tiny"), big, tiny).text == "It is \\boxed{3}"
    assert (big.asked, tiny.asked) == ([], [(False, 0.0)])
    assert answer(ThinkOnFailure(small="tiny", threshold=1.0), big, tiny).text == LONG
    assert big.asked == [(None, 0.0)]


def test_where_the_thinking_model_fails_the_other_one_answers():
    big, tiny = Switched(fail_after=0), Switched("tiny", parameters=1)
    ensemble = AsyncEnsemble([big, tiny], All(), ThinkOnFailure(small="tiny"))
    ensemble.on_error = "drop"
    result = asyncio.run(ensemble.generate(Request(CHAT, Sampling())))
    assert result.text == LONG  # alone, as it was asked
    assert tiny.asked[-1] == (None, 0.0)


def test_samples_that_the_answer_has_to_agree_with_do_not_think_either():
    big = Switched()
    result = answer(ThinkOnFailure(accept="agreement:2", threshold=1.0), big)
    assert (result.text, big.asked) == (SHORT, [(False, 0.0), (False, 0.7), (False, 0.7)])


def test_what_has_no_switch_is_refused():
    with pytest.raises(RequestError, match="needs a chat: a raw prompt has no switch for thinking"):
        answer(ThinkOnFailure(), Switched(), prompt=Text("2 + 2 ="))
    with pytest.raises(RequestError, match="'big' is asked alike with and without thinking"):
        answer(ThinkOnFailure(), Unswitched())
    assert answer(ThinkOnFailure(), Unswitched(), prompt=replace(CHAT, thinking=False)).text == SHORT
    with pytest.raises(CapabilityError, match="think_on_failure needs logprobs of engine 'big'"):
        AsyncEnsemble([Blind()], All(), ThinkOnFailure())
    with pytest.raises(ConfigError, match=r"think_on_failure: small: .*did you mean 'big'"):
        AsyncEnsemble([Switched()], All(), ThinkOnFailure(small="bigg"))
    with pytest.raises(ConfigError, match="large and small are both 'big'; leave out small"):
        AsyncEnsemble([Switched()], All(), ThinkOnFailure(small="big"))


def test_what_does_not_fit_is_refused_before_the_model_is_asked():
    big = Switched(context=8)
    with pytest.raises(ContextOverflowError, match="big"):
        answer(ThinkOnFailure(), big, max_tokens=20)
    assert not big.asked
