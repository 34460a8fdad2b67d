"""`early_exit`: when thinking ends, by confidence or by budget, and what trial answers cost."""

import asyncio
import math
from contextlib import aclosing
from dataclasses import replace

import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.early_exit import EarlyExit
from ensemblehub.errors import CapabilityError, ConfigError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Message, Piece, Request, Sampling

CHAT = Chat((Message("user", "2 + 2?"),))
THOUGHTS = ["Let me add.", " It is four.", " Is it four?", " It is."]
FINAL = " So it is 4"
WORDS = {"points": (".", "?"), "trial": " Final: {"}


class Thinker(EchoEngine):
    """Thinks sentence by sentence, and is surer of a trial answer after each."""

    sure = (0.2, 0.6, 0.97, 0.99)
    unending = False

    def __init__(self, **options):
        super().__init__("a", EchoOptions({"": ""}, **options))
        self.trials = []

    def _reply(self, request):
        prefix = request.prefix
        if prefix.endswith(WORDS["trial"]):
            text = "4 4 4" if self.unending else "4 }"
        elif "</think>" in prefix:
            text = FINAL.removeprefix(prefix.partition("</think>")[2].lstrip("\n"))
        else:
            done = prefix.count(".") + prefix.count("?")
            text = "".join(THOUGHTS[done:]) + "</think>" + FINAL
        self.script.replies[""] = prefix + text
        return super()._reply(request)

    async def stream(self, request, meter):
        trial = request.prefix.endswith(WORDS["trial"])
        done = request.prefix.count(".") + request.prefix.count("?")
        self.trials += [done] if trial else []
        async with aclosing(super().stream(request, meter)) as pieces:
            async for piece in pieces:
                chance = math.log(self.sure[done - 1]) if trial else -1.0
                yield replace(piece, tokens=tuple(replace(token, logprob=chance) for token in piece.tokens))


class NoLogprobs(Thinker):
    capabilities = frozenset({"prefix"})


def answer(strategy, engine=None, **sampling):
    engine = engine or Thinker()
    hub = AsyncEnsemble([engine], All(), strategy)
    return asyncio.run(hub.generate(Request(CHAT, Sampling(**sampling)))), engine


def costs(result):
    return {line.purpose: line.cost for line in result.usage.lines}


def test_thinking_ends_where_the_trial_answer_is_probable():
    result, engine = answer(EarlyExit(**WORDS))
    assert result.text == "Let me add. It is four. Is it four?</think>\n\n So it is 4"
    assert (result.finish, engine.trials) == ("stop", [1, 2, 3])
    assert result.choices[0].reason == "the trial answer's probability is 0.970"
    assert costs(result)["judge"].completion_tokens == costs(result)["judge"].discarded_tokens > 0
    assert "Final:" not in result.text
    assert costs(result)["answer"].discarded_tokens == 0


def test_a_model_that_is_never_sure_thinks_to_its_end():
    result, engine = answer(EarlyExit(threshold=1.0, **WORDS))
    assert result.text == "".join(THOUGHTS) + "</think>" + FINAL
    assert (result.choices, engine.trials) == ((), [1, 2, 3])


def test_a_trial_answer_without_an_end_says_nothing():
    engine = Thinker()
    engine.unending = True
    result, _ = answer(EarlyExit(trial_tokens=2, **WORDS), engine)
    assert result.text == "".join(THOUGHTS) + "</think>" + FINAL


def test_a_budget_ends_thinking():
    result, engine = answer(EarlyExit(threshold=None, max_thinking=5, **WORDS))
    assert result.text == "Let me add. It is</think>\n\n So it is 4"
    assert result.choices[0].reason == "5 tokens of thinking, of 5 at most"
    assert (engine.trials, costs(result).keys()) == ([], {"answer"})


def test_below_the_least_budget_no_answer_is_tried_and_an_end_is_not_taken():
    result, engine = answer(EarlyExit(min_thinking=8, **WORDS))
    assert engine.trials == [3]
    hasty = Thinker()
    result, _ = answer(EarlyExit(threshold=None, min_thinking=13, wait=" Wait", **WORDS), hasty)
    assert result.text.startswith("".join(THOUGHTS) + " Wait")
    assert result.text.count("</think>") == 1
    assert result.text.endswith("So it is 4")


def test_stop_strings_and_lengths_of_the_request_hold():
    assert answer(EarlyExit(**WORDS), stop=("four",))[0].text == "Let me add. It is "
    assert answer(EarlyExit(min_thinking=9, **WORDS), stop=("four",))[0].text == "Let me add. It is "
    result, _ = answer(EarlyExit(**WORDS), max_tokens=4)
    assert (result.text, result.finish) == ("Let me add. It", "length")


def test_closing_stops_the_model():
    engine, ledger = Thinker(), UsageLedger()

    async def run():
        async with aclosing(EarlyExit(**WORDS).run(Request(CHAT), [engine], ledger)) as events:
            async for event in events:
                if isinstance(event, Piece):
                    break

    asyncio.run(run())
    assert engine.written == ledger.total.completion_tokens == 1


def test_what_cannot_work_is_refused():
    with pytest.raises(CapabilityError, match="early_exit needs logprobs of engine 'a'"):
        AsyncEnsemble([NoLogprobs()], All(), EarlyExit())
    AsyncEnsemble([NoLogprobs()], All(), EarlyExit(threshold=None))
    with pytest.raises(ConfigError, match="early_exit: `max_thinking` is below `min_thinking`"):
        AsyncEnsemble([Thinker()], All(), EarlyExit(max_thinking=3, min_thinking=4))
    with pytest.raises(ConfigError, match="`closing` has to hold `end`, '<end>'"):
        AsyncEnsemble([Thinker()], All(), EarlyExit(end="<end>"))
    with pytest.raises(ConfigError, match="must not be empty strings"):
        AsyncEnsemble([Thinker()], All(), EarlyExit(end=""))
    with pytest.raises(ConfigError, match=r"early_exit: .*did you mean 'a'"):
        AsyncEnsemble([Thinker()], All(), EarlyExit(engine="ab"))
