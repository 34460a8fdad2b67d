"""`stepwise`: who writes which step by which rule, and what it costs."""

import asyncio
import json
import math
from contextlib import aclosing
from dataclasses import replace

import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.stepwise import Stepwise
from ensemblehub.errors import CapabilityError, ConfigError, EngineError, RequestError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Choice, Cost, Message, Piece, Request, Sampling, Scored, ScoredToken

CHAT = Chat((Message("user", "Tell it in {steps}."),))
STORY = "One two. Hm three. Four five. Hm six."  # the large model tells the same, in capitals
STEPS = {"separators": (".",)}


class Teller(EchoEngine):
    """Goes on with the story where the text so far ends; `Hm` is a word that it is unsure of."""

    def __init__(self, name, parameters, script=STORY, **options):
        super().__init__(name, EchoOptions({"digit": "8", "": script}, parameters=parameters, **options))
        self.asked = []

    def _reply(self, request):
        prefix = request.prefix
        told = Request(request.prompt, request.sampling, self.script.replies[""][: len(prefix)])
        return super()._reply(told)

    async def stream(self, request, meter):
        self.asked.append(request)
        async with aclosing(super().stream(request, meter)) as pieces:
            async for piece in pieces:
                entropy = 2.5 if "Hm" in piece.text else 0.5
                yield replace(piece, tokens=tuple(replace(token, entropy=entropy) for token in piece.tokens))


class Reader(Teller):
    """Finds a step with `Hm` unlikely."""

    async def score(self, request, meter):
        meter.record(self.name, self.info, prompt_tokens=4)
        tokens, start = [ScoredToken("?", None, None, None, 0, 0, 1)], 0
        for step in request.prefix.split("."):
            chance = 0.25 if "Hm" in step else 0.75
            tokens.append(ScoredToken(step, None, math.log(chance), 1.0, 1, start, start + len(step) + 1))
            start += len(step) + 1
        return Scored(tuple(tokens[:-1] if request.prefix.endswith(".") else tokens))


class Rater(Teller):
    """Rates a step by whether it is unsure."""

    def _reply(self, request):
        words = request.prompt.messages[-1].content
        if "Reply with one digit" not in words:
            return super()._reply(request)
        return ["3" if "Hm" in words.partition("next step:")[2] else "8"], "stop"


class Rewards:
    scorers = ("prm",)

    async def score(self, request, texts, meter, authors=()):
        meter.ledger.add("prm", meter.purpose, Cost(prompt_tokens=3, calls=1))
        self.seen = [*getattr(self, "seen", ()), (request.prefix, *texts)]
        return [0.2 if "Hm" in text else 0.9 for text in texts]


class NoPrefix(Teller):
    capabilities = frozenset({"logprobs", "score"})


class NoEntropy(EchoEngine):
    async def stream(self, request, meter):
        async with aclosing(super().stream(request, meter)) as pieces:
            async for piece in pieces:
                yield replace(piece, tokens=tuple(replace(token, entropy=None) for token in piece.tokens))


def pair(kind=Teller, **options):
    return [kind("big", 9, STORY.upper()), Teller("tiny", 1, **options)]


def answer(strategy, engines, **sampling):
    return asyncio.run(AsyncEnsemble(engines, All(), strategy).generate(Request(CHAT, Sampling(**sampling))))


def written(result):
    return [(piece.engine, piece.text.strip()) for piece in result.pieces if piece.text]


def costs(result):
    return {(line.engine, line.purpose): line.cost for line in result.usage.lines}


BY_TURNS = [("tiny", "One two."), ("big", "HM THREE."), ("tiny", "Four five."), ("big", "HM SIX.")]


def test_an_unsure_first_token_gives_the_step_to_the_large_model():
    engines = pair()
    result = answer(Stepwise(**STEPS), engines)
    assert written(result) == BY_TURNS
    assert (result.text, result.finish) == ("One two. HM THREE. Four five. HM SIX.", "stop")
    assert [choice.chosen for choice in result.choices] == [("tiny",), ("big",), ("tiny",), ("big",)]
    assert result.choices[1].reason == "entropy 2.50 of the first token against 1: big writes"
    assert result.choices[1].scores == (("tiny", -2.5),)
    assert costs(result)["tiny", "answer"].completion_tokens == 4 + 2
    assert costs(result)["tiny", "answer"].discarded_tokens == 2
    assert costs(result)["big", "answer"].completion_tokens == 4
    assert [piece.round for piece in result.pieces if piece.text] == [1, 2, 3, 4]


def test_the_threshold_says_how_sure():
    assert {engine for engine, _ in written(answer(Stepwise(threshold=3.0, **STEPS), pair()))} == {"tiny"}
    assert {engine for engine, _ in written(answer(Stepwise(threshold=0.4, **STEPS), pair()))} == {"big"}


@pytest.mark.parametrize(("rule", "kind"), [("logprob", Reader), ("score", Rater), ("reward", Teller)])
def test_a_finished_step_is_kept_or_written_anew(rule, kind):
    rewards = Rewards()
    engines = pair(kind)
    result = answer(Stepwise(rule=rule, **STEPS).with_scorers(rewards), engines)
    assert written(result) == BY_TURNS
    assert result.finish == "stop"
    value = {"logprob": 0.25, "score": 3, "reward": 0.2}[rule]
    assert result.choices[1].scores == (("tiny", pytest.approx(value)),)
    assert costs(result)["tiny", "propose"].completion_tokens == 8
    assert costs(result)["tiny", "propose"].discarded_tokens == 4
    assert costs(result)["big", "answer"].completion_tokens == 4
    if rule == "reward":
        assert rewards.seen[1] == ("One two.", " Hm three.")
    if rule == "score":
        asked = next(
            request for request in engines[0].asked if "digit" in request.prompt.messages[-1].content
        )
        assert "Tell it in {steps}.\n\nThe beginning" in asked.prompt.messages[-1].content
        assert costs(result)["big", "judge"].completion_tokens == 4


def test_a_step_ends_at_its_length_and_the_answer_at_its_own():
    result = answer(Stepwise(step_tokens=3, **STEPS), pair(), max_tokens=5)
    assert written(result) == [("tiny", "One two."), ("big", "HM THREE."), ("tiny", "Four")]
    assert result.finish == "length"
    assert len(answer(Stepwise(step_tokens=1), pair()).choices) == 8


def test_a_stop_string_ends_the_answer_whoever_writes_it():
    result = answer(Stepwise(**STEPS), pair(), stop=("THREE",))
    assert (result.text, result.finish) == ("One two. HM ", "stop")
    result = answer(Stepwise(**STEPS), pair(), stop=("two. HM",))
    assert (result.text, result.finish) == ("One ", "stop")


def test_a_small_model_that_says_nothing_leaves_the_answer_to_the_large_one():
    for rule, kind in (("logprob", Reader), ("score", Rater)):
        engines = [kind("big", 9, STORY.upper()), Teller("tiny", 1, "")]
        assert written(answer(Stepwise(rule=rule, **STEPS), engines))[0] == ("big", "ONE TWO.")


def test_a_step_without_words_is_not_rated():
    small, large = EchoEngine("tiny", EchoOptions({"": ""}, parameters=1)), pair()[0]
    result = answer(Stepwise(rule="score", **STEPS), [large, small])
    assert result.choices[0] == Choice("proposal", ("big",), (), "the step is blank: big writes")
    assert [line.purpose for line in result.usage.lines if line.purpose == "judge"] == []
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["choices"][0]["scores"] == []


@pytest.mark.parametrize(
    ("rule", "threshold", "allowed"),
    [
        ("score", 9.5, "from 0 to 9"),
        ("score", -1, "from 0 to 9"),
        ("logprob", 7, "from 0 to 1"),
        ("entropy", -0.5, "at least 0"),
    ],
)
def test_a_threshold_that_no_step_or_every_step_reaches_is_refused(rule, threshold, allowed):
    strategy = Stepwise(rule=rule, threshold=threshold)
    with pytest.raises(ConfigError, match=f"`rule: {rule}` the threshold is {allowed}, not {threshold:g}"):
        AsyncEnsemble(pair(Reader), All(), strategy)
    for end in {"score": (0, 9), "logprob": (0, 1), "entropy": (0, 20)}[rule]:
        AsyncEnsemble(pair(Reader), All(), replace(strategy, threshold=end))


def test_closing_stops_whoever_writes():
    engines, ledger = pair(), UsageLedger()

    async def run():
        async with aclosing(Stepwise(**STEPS).run(Request(CHAT), engines, ledger)) as events:
            async for event in events:
                if isinstance(event, Piece) and event.engine == "big":
                    break

    asyncio.run(run())
    assert engines[0].written == 1
    assert ledger.total.completion_tokens == sum(engine.written for engine in engines)


def test_what_cannot_work_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="stepwise needs a scorer"):
        AsyncEnsemble(pair(), All(), Stepwise(rule="reward"))
    with pytest.raises(CapabilityError, match="stepwise needs prefix of engine 'big'"):
        AsyncEnsemble(pair(NoPrefix), All(), Stepwise())
    with pytest.raises(ConfigError, match="separators must name at least one string"):
        AsyncEnsemble(pair(), All(), Stepwise(separators=("",)))
    with pytest.raises(ConfigError, match=r"stepwise: small: .*did you mean 'tiny'"):
        AsyncEnsemble(pair(), All(), Stepwise(small="tyni"))
    with pytest.raises(RequestError, match="tiny gives no entropies"):
        answer(Stepwise(), [pair()[0], NoEntropy("tiny", EchoOptions({"": STORY}, parameters=1))])
    with pytest.raises(EngineError, match="big failed"):
        answer(Stepwise(**STEPS), [Teller("big", 9, STORY.upper(), fail_after=1), pair()[1]])
