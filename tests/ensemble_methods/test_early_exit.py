"""`early_exit`: when thinking ends, by confidence or by budget, and what trial answers cost."""

import asyncio
import math
import re
from contextlib import aclosing
from dataclasses import replace

import pytest

from ensemblehub.client import Ensemble
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.early_exit import EarlyExit
from ensemblehub.errors import CapabilityError, ConfigError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Message, Piece, Request, Sampling, Token

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
    assert (
        costs(result)["answer"].calls == 2
    )  # thinking, and what follows its end: no paragraph is a call of its own


def test_words_that_are_put_in_are_tokens_without_a_log_probability():
    result, _ = answer(EarlyExit(threshold=None, max_thinking=5, **WORDS))
    tokens = [token for piece in result.pieces for token in piece.tokens]
    assert "".join(token.text for token in tokens) == result.text
    assert [token.text for token in tokens if token.logprob is None] == ["</think>\n\n"]


class Switched(Thinker):
    """Thinks only where nobody turns that off."""

    thinking = None

    def _reply(self, request):
        if request.prompt.thinking is False or self.thinking is False:
            self.script.replies[""] = "So. It is. Four 4"
            return EchoEngine._reply(self, request)
        return super()._reply(request)


@pytest.mark.parametrize(("request_", "options"), [(False, None), (None, False), (False, True)])
def test_where_thinking_is_turned_off_the_model_answers_alone(request_, options):
    engine = Switched()
    engine.thinking = options
    strategy = EarlyExit(max_thinking=9, min_thinking=9, **WORDS)
    ensemble = AsyncEnsemble([engine], All(), strategy)
    result = asyncio.run(ensemble.generate(replace(CHAT, thinking=request_), max_tokens=4))
    assert (result.text, result.finish, result.choices) == ("So. It is. Four", "length", ())
    assert engine.trials == []
    assert [(line.purpose, line.cost.calls) for line in result.usage.lines] == [("answer", 1)]


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


@pytest.mark.parametrize(
    ("most", "text"),
    [
        (11, "".join(THOUGHTS)),  # 11 words, and nothing is left for `wait`
        (12, "".join(THOUGHTS) + " Wait"),
        (5, "Let me add. It is"),
    ],
)
def test_words_that_are_put_in_count_as_tokens_of_the_answer(most, text):
    strategy, lengths = EarlyExit(threshold=None, min_thinking=13, wait=" Wait", **WORDS), []
    ensemble = AsyncEnsemble([Thinker()], All(), strategy)
    request = Request(CHAT, Sampling(max_tokens=most))
    result = asyncio.run(ensemble.generate(request, on_event=lambda piece: lengths.append(piece.length)))
    assert (result.text, result.finish, sum(lengths)) == (text, "length", most)


def test_a_piece_is_cut_after_a_token():
    piece = Piece("one two", "a", "answer", (Token("one"), Token(" two")), "stop")
    assert piece.cut(1) == Piece("one", "a", "answer", (Token("one"),), "length")
    assert piece.cut(2) is piece


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


END = 7


class Silent(EchoEngine):
    """Writes four words of thinking, a control token without a text that ends them, and its answer."""

    class tokenizer:
        controls = frozenset({END})

        @staticmethod
        def encode(text, special=True):
            return [END if word == "</think>" else 1 for word in re.split("(</think>)", text) if word]

        @staticmethod
        def decode(ids):
            return "</think>" if ids == [END] else "Answer:"

    def __init__(self):
        super().__init__("a", EchoOptions())
        self.asked = []

    def _reply(self, request):
        self.asked.append([token.id for piece in request.written for token in piece.tokens])
        words = [" a", " b", " c", " d", "", " It", " is", " 4."]
        if END in self.asked[-1]:
            behind = self.asked[-1][self.asked[-1].index(END) :]
            words = words[5 + behind.count(2) :]
        ends = END in request.sampling.stop_token_ids
        words = words[: words.index("") + 1] if ends and "" in words else words
        length = request.sampling.max_tokens
        return words[:length], "length" if len(words) > length else "stop"

    async def stream(self, request, meter):
        async with aclosing(super().stream(request, meter)) as pieces:
            async for piece in pieces:
                yield replace(piece, tokens=(Token(piece.text, 2 if piece.text else END, -0.1),))


def test_an_end_of_thinking_that_is_a_control_token_is_written_as_one():
    engine = Silent()
    result, _ = answer(EarlyExit(threshold=None, max_thinking=2, closing="</think>Answer:"), engine)
    assert result.text == " a b</think>Answer: It is 4."
    assert engine.asked == [[], [2, 2, END, 1]]


def test_an_end_of_thinking_that_is_a_control_token_is_seen():
    exits = {"points": (" d", "is"), "trial": "</think>Answer:", "threshold": 0.5, "trial_end": "."}
    result, engine = answer(EarlyExit(**exits), Silent())
    assert result.text == " a b c d</think>\n\n It is 4."
    assert engine.asked[1] == [2, 2, 2, 2, END, 1]  # the trial answer
    result, engine = answer(EarlyExit(**exits | {"points": ("is",)}), Silent())
    assert result.text == " a b c d It is 4."
    assert engine.asked == [[], [2, 2, 2, 2, END, 2, 2]]  # no trial answer is drawn behind the end
    result, engine = answer(EarlyExit(threshold=None, min_thinking=5, wait=" wait"), Silent())
    assert result.text == " a b c d wait a b c d It is 4."
    assert engine.asked[1] == [2, 2, 2, 2, None]  # ` wait` in place of the end that came too early


def test_the_built_in_mentor_answers_once_its_thinking_is_ended():
    ended = EarlyExit(threshold=None, max_thinking=9, closing="</think>")
    models = [{"name": "mentor", "path": "builtin:mentor"}]
    with Ensemble(models, aggregation=ended) as ensemble:
        result = ensemble.generate(
            "There are 8 bowls. There are 3 more mugs than bowls. How many mugs are there?"
        )
    final = result.text.partition("</think>")[2]
    assert final.startswith("Answer: \\boxed{")
    assert result.finish == "stop"
    assert len(result.pieces[0].tokens) < 25
