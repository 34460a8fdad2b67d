"""P(yes) − P(no), worked out by hand on small vocabularies."""

import asyncio

import numpy as np
import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.model_judgment import ModelJudgment
from ensemblehub.ensemble_methods.output_aggregation.single import Single
from ensemblehub.errors import CapabilityError, ConfigError, EngineError, RequestError
from ensemblehub.generators.base import Decoder, Distribution, Engine, Vocabulary
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Message, Request, Text, TokenIds


class Scripted(Decoder):
    """Gives the distribution that belongs to the ids appended so far."""

    def __init__(self, engine):
        self.engine, self.vocabulary, self.ids = engine, engine.vocabulary, ()

    async def step(self, append=(), drop=0):
        self.engine.steps += 1
        self.ids += tuple(append)
        chances = np.zeros(len(self.vocabulary.tokens), np.float32)
        for token, chance in self.engine.script[self.ids].items():
            chances[self.vocabulary.tokens.index(token)] = chance
        if self.engine.fails:
            raise EngineError("out of memory")
        with np.errstate(divide="ignore"):
            return Distribution(np.log(chances))

    async def read(self, append, drop=0):
        raise AssertionError("a judgment takes one step at a time and no text")

    def encode(self, text):
        raise AssertionError("a judgment takes one step at a time and no text")

    def close(self):
        self.engine.closed += 1


class Speller(Engine):
    """A model with a vocabulary and a script of next-token chances."""

    capabilities = frozenset({"decode"})

    def __init__(self, name, script, fails=False):
        tokens = sorted({token for chances in script.values() for token in chances})
        self.name, self.fails = name, fails
        self.vocabulary = Vocabulary(tuple(tokens), frozenset(), frozenset(), name)
        self.script = {tuple(map(tokens.index, before)): chances for before, chances in script.items()}
        self.steps = self.closed = 0
        self.asked = None

    def stream(self, request, meter):
        raise EngineError("only judges")

    def decoder(self, request, meter):
        assert meter.purpose == "select"
        self.asked = request
        return Scripted(self)


WHOLE = {b"yes": 0.3, b" Yes": 0.1, b"YES.": 0.05, b"No": 0.15, b" no": 0.1, b"not": 0.2, b"yesterday": 0.1}


def score(engine, selection=None, ask=None):
    ledger = UsageLedger()
    return asyncio.run((selection or ModelJudgment()).confidence(engine, ask or Request(Text("?")), ledger))


def test_all_spellings_of_the_words_count_and_no_longer_words():
    """0.3 + 0.1 + 0.05 − (0.15 + 0.1) = 0.2; `not` and `yesterday` are other words."""
    engine = Speller("whole", {(): WHOLE})
    assert score(engine) == pytest.approx(0.2, abs=1e-6)
    assert engine.steps == 1
    assert engine.closed == 1


def test_a_word_of_several_tokens_counts_by_its_first():
    """y|es and N|o: 0.5 + 0.1 − 0.25 = 0.35."""
    assert score(Speller("parts", {(): {b"y": 0.5, b"Ye": 0.1, b"N": 0.25, b"x": 0.15}})) == pytest.approx(
        0.35
    )


def test_white_space_of_its_own_is_followed_to_the_word():
    """0.1 − 0.2 + 0.6 · (0.7 − 0.1 + 0.2 · (0.5 − 0.5)) = 0.26."""
    script = {
        (): {b"yes": 0.1, b"no": 0.2, b" ": 0.6, b"\n": 0.1},
        (b" ",): {b"yes": 0.7, b"no": 0.1, b"\n": 0.2},
        (b" ", b"\n"): {b"yes": 0.5, b"no": 0.5},
    }
    engine = Speller("spaced", script)
    assert score(engine) == pytest.approx(0.26, abs=1e-6)
    assert engine.steps == 3


def test_a_model_without_end_of_white_space_is_left_after_three_tokens():
    script = {(b" ",) * count: {b" ": 0.9, b"yes": 0.1} for count in range(9)}
    engine = Speller("endless", script)
    assert score(engine) == pytest.approx(0.1 * (1 + 0.9 + 0.9**2 + 0.9**3), abs=1e-6)
    assert engine.steps == 4


SURE = Speller("sure", {(): {b"yes": 0.9, b"no": 0.1}})
UNSURE = Speller("unsure", {(): {b"yes": 0.5, b"no": 0.5}})
UNABLE = Speller("unable", {(): {b"yes": 0.2, b"no": 0.8}})


def chosen(selection, engines=(UNABLE, UNSURE, SURE), ask=Request(Text("?"))):  # noqa: B008
    return [engine.name for engine in asyncio.run(selection.select(ask, list(engines), UsageLedger()))]


def test_the_surest_come_first_less_their_usual_score():
    assert chosen(ModelJudgment(k=3)) == ["sure", "unsure", "unable"]
    assert chosen(ModelJudgment()) == ["sure"]
    assert chosen(ModelJudgment(k=2, minus_mean={"sure": 0.9})) == ["unsure", "sure"]


def test_a_failing_model_ends_the_selection_and_every_decoder_is_closed():
    broken = Speller("broken", {(): WHOLE}, fails=True)
    before = SURE.closed
    with pytest.raises(EngineError, match="out of memory"):
        chosen(ModelJudgment(), (broken, SURE))
    assert broken.closed == 1
    assert SURE.closed == before + 1


def test_the_question_goes_into_the_template_and_the_conversation_stays():
    chat = Chat((Message("system", "be brief"), Message("user", "What is {x}?")), thinking=True)
    selection = ModelJudgment(opening="</think>")
    chosen(selection, [SURE], Request(chat, prefix="The answer"))
    before, last = SURE.asked.prompt.messages
    assert before == chat.messages[0]
    assert last.content == "What is {x}?\n\nCan you answer this correctly? Reply with yes or no."
    assert SURE.asked.prompt.thinking is False
    assert SURE.asked.prefix == "</think>"
    with pytest.raises(RequestError, match="question in words"):
        chosen(selection, [SURE], Request(TokenIds((1, 2))))


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (ModelJudgment(k=4), "from 1 to 3"),
        (ModelJudgment(template="Can you?"), r"lacks \{question\}"),
        (ModelJudgment(minus_mean={"sur": 1.0}), "did you mean 'sure'"),
        (ModelJudgment(opening="</think>"), "needs prefix"),
    ],
)
def test_what_cannot_be_is_refused_before_loading(selection, message):
    with pytest.raises(ConfigError, match=message):
        AsyncEnsemble([UNABLE, UNSURE, SURE], selection, Single())


def test_a_model_without_distributions_is_refused_before_loading():
    with pytest.raises(CapabilityError, match="needs decode of engine 'echo'"):
        AsyncEnsemble([EchoEngine("echo", EchoOptions())], ModelJudgment(), Single())
