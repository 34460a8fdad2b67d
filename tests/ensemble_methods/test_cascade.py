"""`cascade`: what is accepted by which criterion, what is given, recorded and stopped."""

import asyncio
import math
from contextlib import aclosing

import numpy as np
import pytest

from ensemblehub import registry
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.acceptance import Acceptance
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.cascade import Cascade
from ensemblehub.ensemble_methods.output_aggregation.hint import Hint
from ensemblehub.ensemble_methods.output_aggregation.plan_on_failure import PlanOnFailure
from ensemblehub.ensemble_methods.output_aggregation.review import Review
from ensemblehub.ensemble_methods.output_aggregation.think_on_failure import ThinkOnFailure
from ensemblehub.ensemble_methods.output_aggregation.vote import Vote
from ensemblehub.errors import CapabilityError, ConfigError, ContextOverflowError, EngineError, RequestError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Message, Request, Sampling, TokenIds, Verdict
from ensemblehub.tandem.artifact import JudgeArtifact
from ensemblehub.tandem.features import FEATURE_NAMES
from ensemblehub.tandem.judges import Inputs, Logistic

CHAT = Chat((Message("system", "Be brief."), Message("user", "What is 2 + {2}?")))
SMALL, LARGE = "It is \\boxed{4}", "Surely it is \\boxed{4}, two twice"


class Recorder(EchoEngine):
    def __init__(self, name, replies, parameters, **options):
        script = replies if isinstance(replies, dict) else {"": replies}
        super().__init__(name, EchoOptions(script, parameters=parameters, **options))
        self.asked = []

    def stream(self, request, meter):
        self.asked.append(request)
        return super().stream(request, meter)


class Sampled(Recorder):
    """Each call gives the next reply."""

    def _reply(self, request):
        replies = list(self.script.replies.values())
        self.script.replies[""] = replies[min(len(self.asked), len(replies) - 1)]
        return super()._reply(request)


class Spaced(Recorder):
    """Says one token after another of `said` when it is asked about a draft."""

    said = ()

    def _reply(self, request):
        if request.sampling.top_logprobs == 0:
            return super()._reply(request)
        words = list(self.said[: request.sampling.max_tokens])
        return words, "stop" if len(words) == len(self.said) else "length"


class Silent(Recorder):
    capabilities = frozenset()


class Needy(Acceptance):
    """Cannot be made without an option."""

    def __init__(self, limit):
        self.limit = limit

    async def probability(self, trial):
        return self.limit


class Fifth(Acceptance):
    """Accepts every draft of at least five words."""

    async def probability(self, trial):
        return min(1.0, len(trial.draft.tokens) / 5)


def pair(small=None, large=None):
    return [Recorder("big", LARGE, 9, **(large or {})), Recorder("tiny", SMALL, 1, **(small or {}))]


def answer(strategy, engines=None, **sampling):
    hub = AsyncEnsemble(engines or pair(), All(), strategy)
    return asyncio.run(hub.generate(Request(CHAT, Sampling(**sampling))))


def costs(result):
    return {(line.engine, line.purpose): line.cost for line in result.usage.lines}


def test_a_draft_that_is_likely_enough_is_the_answer_and_the_large_model_is_not_asked():
    big, tiny = engines = pair({"logprob": -0.05})
    result = answer(Cascade(), engines)
    assert (result.text, result.finish) == (SMALL, "stop")
    assert result.verdicts == (Verdict("draft", 0, pytest.approx(math.exp(-0.05)), 0.9, True),)
    assert not big.asked
    assert [(piece.engine, piece.purpose, len(piece.tokens)) for piece in result.pieces] == [
        ("tiny", "answer", 3)
    ]
    assert costs(result).keys() == {("tiny", "propose")}
    assert costs(result)["tiny", "propose"].discarded_tokens == 0
    assert tiny.asked[0].prompt == CHAT


def test_one_that_is_not_is_discarded_and_the_large_model_answers_the_same_request():
    big, tiny = engines = pair({"logprob": -0.2})
    result = answer(Cascade(), engines, max_tokens=9)
    assert result.text == LARGE
    assert result.verdicts == (Verdict("draft", 0, pytest.approx(math.exp(-0.2)), 0.9, False),)
    assert big.asked == tiny.asked == [Request(CHAT, Sampling(max_tokens=9))]
    drafted, written = costs(result)["tiny", "propose"], costs(result)["big", "answer"]
    assert (drafted.completion_tokens, drafted.discarded_tokens) == (3, 3)
    assert (written.completion_tokens, written.discarded_tokens) == (6, 0)
    assert SMALL not in result.text


def test_the_threshold_is_an_option():
    assert answer(Cascade(threshold=0.8), pair({"logprob": -0.2})).text == SMALL
    assert answer(Cascade(threshold=0.82), pair({"logprob": -0.2})).text == LARGE


def test_a_draft_cut_off_at_max_tokens_is_not_accepted_however_likely():
    result = answer(Cascade(threshold=0.0), pair({"logprob": -0.01}), max_tokens=2)
    assert (result.verdicts[0].probability, result.verdicts[0].sufficient) == (0.0, False)
    assert (result.text, result.finish) == ("Surely it", "length")


@pytest.mark.parametrize("accept", ["logprob", "entropy:1.0", "perplexity:2", "agreement:2"])
def test_an_empty_draft_has_the_probability_0(accept):
    result = answer(Cascade(accept=accept), [Recorder("big", LARGE, 9), Recorder("tiny", "", 1)])
    assert (result.text, result.finish) == (LARGE, "stop")
    assert [(verdict.probability, verdict.sufficient) for verdict in result.verdicts] == [(0.0, False)]


@pytest.mark.parametrize(
    ("accept", "message"),
    [
        ("logprob", "tiny gives no logprobs, and `accept: logprob` needs them"),
        ("entropy:1", "the engine that wrote the draft gives no logprobs"),
    ],
)
def test_a_draft_whose_tokens_have_no_logprobs_cannot_be_judged(accept, message):
    engines = [Recorder("big", LARGE, 9), Recorder("tiny", SMALL, 1, logprob=None)]
    with pytest.raises(RequestError, match=message):
        answer(Cascade(accept=accept), engines)


def test_agreement_is_the_share_of_further_samples_with_an_equal_answer():
    replies = dict(
        enumerate([SMALL, "\\boxed{4.0}", "\\boxed{5}", "no idea", "the answer is 8/2", "\\boxed{4}"])
    )
    for threshold, text in ((0.6, SMALL), (0.61, LARGE)):
        tiny = Sampled("tiny", {"": ""} | replies, 1)
        result = answer(
            Cascade(accept="agreement:5", threshold=threshold), [Recorder("big", LARGE, 9), tiny], seed=3
        )
        assert result.text == text
        assert result.verdicts[0].probability == pytest.approx(3 / 5)
        assert [request.sampling.temperature for request in tiny.asked] == [0.0] + [0.7] * 5
        assert len({request.sampling.seed for request in tiny.asked}) == 6
        spent = costs(result)["tiny", "propose"]
        unused = spent.completion_tokens - (3 if text == SMALL else 0)
        assert spent.discarded_tokens == unused


def test_samples_keep_the_temperature_of_the_request():
    tiny = Recorder("tiny", SMALL, 1)
    answer(Cascade(accept="agreement:2"), [Recorder("big", LARGE, 9), tiny], temperature=1.2)
    assert [request.sampling.temperature for request in tiny.asked] == [1.2] * 3


@pytest.mark.parametrize(("reply", "text"), [("Yes.", SMALL), ("no", LARGE), ("perhaps", SMALL)])
def test_a_model_is_asked_in_the_third_person(reply, text):
    tiny = Recorder("tiny", {"Someone else": reply, "": SMALL}, 1)
    result = answer(Cascade(accept="ask"), [Recorder("big", LARGE, 9), tiny])
    assert result.text == text
    asked = tiny.asked[1]
    assert "What is 2 + {2}?" in asked.prompt.messages[-1].content
    assert SMALL in asked.prompt.messages[-1].content
    assert asked.prompt.messages[0] == CHAT.messages[0]
    assert costs(result)["tiny", "judge"].completion_tokens == 1  # the first word, then the stream is closed
    assert result.verdicts[0].probability == {"Yes.": 1.0, "no": 0.0, "perhaps": 0.5}[reply]


@pytest.mark.parametrize(
    ("said", "probability", "lengths"),
    [
        (("\n", " yes", "."), 1.0, [1, 4]),
        (("\n", "\n", "\n", "\n", "yes"), 0.5, [1, 4]),
        (("\n",), 0.5, [1]),
        ((), 0.5, [1]),
        (("no", "\n"), 0.0, [1]),
    ],
)
def test_a_reply_that_begins_with_blanks_is_asked_for_at_more_length_once(said, probability, lengths):
    big = Spaced("big", LARGE, 9)
    big.said = said
    result = answer(Cascade(accept="ask:big", threshold=0.4), [big, Recorder("tiny", SMALL, 1)])
    assert result.verdicts[0].probability == probability
    trials = [request.sampling for request in big.asked if request.sampling.top_logprobs]
    assert [sampling.max_tokens for sampling in trials] == lengths
    assert costs(result)["big", "judge"].calls == len(lengths)


def test_another_model_may_be_asked():
    big = Recorder("big", {"Someone else": "yes", "": LARGE}, 9)
    result = answer(Cascade(accept="ask:big"), [big, Recorder("tiny", SMALL, 1)])
    assert (result.text, len(big.asked)) == (SMALL, 1)


def test_the_judges_rules_read_the_drafts_own_tokens():
    for accept, probability in (("entropy:0.5", 0.5 / (0.5 + 0.25)), ("perplexity:1.1", 1.1 / (1.1 + 2))):
        result = answer(Cascade(accept=accept), pair({"logprob": -math.log(2), "entropy": 0.25}))
        assert result.verdicts[0].probability == pytest.approx(probability, abs=1e-6)
        assert costs(result)["judge", "judge"].calls == 1


def test_a_trained_judge_reads_the_draft_and_brings_its_threshold(tmp_path):
    weight = np.zeros((1, 16), np.float32)
    weight[0, FEATURE_NAMES.index("entropy_mean")] = -2.0
    layer = ((weight, np.array([1.0], np.float32)),)
    judge = Logistic(Inputs(1, level=False, length=False), np.zeros(16), np.ones(16), layer)
    JudgeArtifact(judge, thresholds={"draft": 0.6}).save(tmp_path)
    for entropy, text in (
        (0.25, SMALL),
        (0.3, LARGE),
    ):  # 1 / (1 + exp(-(1 - 2 * 0.25))) is 0.62; 0.599 for 0.3
        result = answer(Cascade(accept=str(tmp_path)), pair({"entropy": entropy}))
        assert result.text == text
        assert result.verdicts[0].threshold == 0.6
        assert result.verdicts[0].probability == pytest.approx(1 / (1 + math.exp(2 * entropy - 1)), abs=1e-6)


def test_a_criterion_comes_from_outside():
    result = answer(Cascade(accept=f"{__name__}:Fifth", threshold=0.6))
    assert (result.text, result.verdicts[0].probability) == (SMALL, 3 / 5)


def test_roles_go_by_name_or_by_size():
    engines = [*pair({"logprob": -0.01}), Recorder("middle", "middling", 5)]
    strategy = Cascade(small="middle")
    assert {part: engine.name for part, engine in strategy.parts(engines).items()} == {
        "large": "big",
        "small": "middle",
    }
    assert answer(strategy, engines).text == LARGE
    assert [engine.name for engine in Cascade(large="tiny").pair(engines)] == ["tiny", "middle"]


def test_more_models_are_tried_in_order():
    def three(middle):
        return [*pair({"logprob": -0.5}), Recorder("middle", "It is 4 in between", 5, logprob=middle)]

    result = answer(Cascade(between=("middle",)), engines := three(-0.05))
    assert (result.text, engines[0].asked) == ("It is 4 in between", [])
    assert [verdict.sufficient for verdict in result.verdicts] == [False, True]
    assert costs(result)["tiny", "propose"].discarded_tokens == 3
    assert costs(result)["middle", "propose"].discarded_tokens == 0
    result = answer(Cascade(between=("middle",)), three(-0.5))
    assert (result.text, len(result.verdicts)) == (LARGE, 2)
    assert costs(result)["middle", "propose"].discarded_tokens == 5
    with pytest.raises(ConfigError, match="an engine would be tried twice"):
        AsyncEnsemble(three(-1), All(), Cascade(between=("tiny",)))


def test_a_question_too_long_for_a_model_between_is_refused_before_anyone_is_asked():
    engines = [*pair({"logprob": -0.5}), Recorder("middle", "It is 4", 5, context=1)]
    with pytest.raises(ContextOverflowError, match="middle"):
        answer(Cascade(between=("middle",)), engines)
    assert not any(engine.asked for engine in engines)


@pytest.mark.parametrize(
    ("lost", "text"),
    [
        ("entropy:0.79", SMALL),
        ("entropy:0.81", LARGE),
        ("perplexity:1.2", SMALL),  # exp(0.2) is 1.22
        ("perplexity:1.3", LARGE),
    ],
)
def test_where_the_question_is_lost_the_draft_is_the_answer_unjudged(lost, text):
    big, _ = engines = pair({"logprob": -0.2, "entropy": 0.8})
    result = answer(Cascade(lost=lost), engines)
    assert result.text == text
    said = [(verdict.level, verdict.sufficient, verdict.criterion) for verdict in result.verdicts]
    kind = lost.partition(":")[0]
    judged = [("question", text == LARGE, kind), ("draft", False, "logprob")]
    assert said == judged[: 1 + (text == LARGE)]
    assert bool(big.asked) == (text == LARGE)
    spent = costs(result)
    assert spent["tiny", "judge"].prompt_tokens > 0
    assert spent["tiny", "propose"].discarded_tokens == (3 if text == LARGE else 0)
    assert next(iter(spent)) == ("tiny", "judge")  # the draft goes on from what was read


def test_a_question_that_is_not_lost_changes_nothing():
    plain, kept = (answer(Cascade(lost=rule), pair({"logprob": -0.05})) for rule in (None, "entropy:9"))
    assert (plain.text, plain.verdicts) == (kept.text, kept.verdicts[1:]) == (SMALL, plain.verdicts)


def test_a_question_with_nothing_to_read_is_not_lost():
    hub = AsyncEnsemble(pair({"logprob": -0.05}), All(), Cascade(lost="entropy:0.1"))
    for prompt in (Chat((Message("system", "Be brief."),)), Chat((Message("user", ""),))):
        assert asyncio.run(hub.generate(Request(prompt))).text == SMALL


def test_options_that_are_not_set_leave_certificates_as_they_were():
    cascade, voting = Cascade().deciding()["settings"], Vote(samples=3).deciding()["settings"]
    assert not {"lost", "decided"} & {*cascade, *voting}
    assert "threshold" not in voting
    assert cascade["threshold"] is None  # as old as `cascade`
    assert Hint().deciding()["settings"]["share"] == 0.3
    assert Review().deciding()["settings"]["objection"] == 0.5
    assert Vote(samples=3, accept="ask", threshold=0.7).deciding()["settings"]["threshold"] == 0.7
    assert Cascade(lost="entropy:1").deciding()["settings"]["lost"] == "entropy:1"


def test_a_draft_that_was_cut_off_is_given_where_the_question_is_lost():
    result = answer(Cascade(lost="entropy:0.5"), pair(), max_tokens=2)
    assert (result.text, result.finish) == ("It is", "length")


def test_no_samples_are_drawn_for_a_lost_question():
    tiny = Recorder("tiny", SMALL, 1, entropy=0.8)
    agreed = Cascade(accept="agreement:4", lost="entropy:0.5")
    assert answer(agreed, [Recorder("big", LARGE, 9), tiny]).text == SMALL
    assert len(tiny.asked) == 1


def test_a_review_gives_up_without_reading_the_draft():
    big, tiny = engines = pair({"entropy": 0.8})
    assert answer(Review(lost="entropy:0.5"), engines).text == SMALL
    assert (big.asked, len(tiny.asked)) == ([], 1)


@pytest.mark.parametrize(
    ("strategy", "small", "message"),
    [
        (
            Cascade(lost="logprob"),
            Recorder,
            "cascade: lost is entropy:X or perplexity:X, not 'logprob'",
        ),
        (Cascade(lost="entropy:0"), Recorder, "judge `entropy:X` needs a number above 0, got 0"),
        (Hint(accept="never", tokens=4, lost="entropy:1"), Recorder, "hint: `lost` needs a draft"),
        (
            Cascade(accept="ask", lost="entropy:1"),
            Silent,
            r"cascade .lost. needs score of engine 'tiny'",
        ),
    ],
)
def test_a_question_that_cannot_be_given_up_on_is_refused(strategy, small, message):
    with pytest.raises((ConfigError, CapabilityError), match=message):
        AsyncEnsemble([Recorder("big", LARGE, 9), small("tiny", SMALL, 1)], All(), strategy)


def test_closing_stops_whoever_writes_and_all_is_recorded():
    engines, ledger = pair({"logprob": -0.5}, {"delay": 0.001}), UsageLedger()

    async def run():
        async with aclosing(Cascade().run(Request(CHAT), engines, ledger)) as events:
            async for event in events:
                if not isinstance(event, Verdict):
                    break

    asyncio.run(run())
    assert engines[0].written == 1
    assert ledger.total.completion_tokens == 3 + 1


@pytest.mark.parametrize("who", ["small", "large"])
def test_an_error_is_never_an_answer(who):
    engines = pair(
        {"fail_after": 1} if who == "small" else None, {"fail_after": 1} if who == "large" else None
    )
    with pytest.raises(EngineError, match="as scripted"):
        answer(Cascade(), engines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accept": "agreement:0"}, "cascade: `accept: agreement:K` needs a number of samples, got '0'"),
        ({"accept": "entropy:-1"}, "needs a number above 0"),
        ({"accept": "ask:bgi"}, "cascade: accept: ask: .*did you mean 'big'"),
        ({"accept": "no.module:Class"}, "cannot load criterion"),
        ({"accept": "math:Cosine"}, "cannot load criterion"),
        ({"accept": "collections:OrderedDict"}, "collections:OrderedDict is no `Acceptance`"),
        ({"accept": f"{__name__}:Needy"}, "missing 1 required positional argument: 'limit'"),
        ({"accept": "logprobs"}, "cascade: accept: .*did you mean 'logprob'"),
        (
            {"accept": "logprob:0.9"},
            "^cascade: accept: logprob takes no value, got '0.9'; a number that suffices belongs in `threshold`$",
        ),
        ({"accept": "logprob:"}, "logprob takes no value, got ''; a number"),
        ({"accept": "never:1"}, "^cascade: accept: never takes no value, got '1'$"),
        ({"accept": "saves/missing"}, "^cascade: accept: there is no folder 'saves/missing' with a judge$"),
        ({"accept": "~/missing"}, "^cascade: accept: there is no folder '~/missing' with a judge$"),
        (
            {"accept": "drafts"},
            r"unknown criterion 'drafts'; there is: .* \(nor is there a folder 'drafts'\)$",
        ),
        ({"large": "tiny", "small": "tiny"}, "both would be 'tiny'"),
        ({"threshold": 1.5}, "threshold.*less than or equal to 1"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(Exception, match=message) as caught:
        AsyncEnsemble(pair(), All(), Cascade(**options))
    assert "\n" not in str(caught.value)


def test_what_cannot_work_is_refused_before_anything_is_asked():
    with pytest.raises(CapabilityError, match="cascade needs logprobs of engine 'tiny'"):
        AsyncEnsemble([Recorder("big", LARGE, 9), Silent("tiny", SMALL, 1)], All(), Cascade())
    with pytest.raises(RequestError, match="token ids"):
        asyncio.run(AsyncEnsemble(pair(), All(), Cascade()).generate(Request(TokenIds((1, 2)))))
    with pytest.raises(ConfigError, match="did you mean 'accept'"):
        registry.build(Cascade, {"acept": "ask"}, "cascade")


@pytest.mark.parametrize(
    ("strategy", "option"),
    [
        (Cascade(accept="never", threshold=0.5), "cascade: `threshold"),
        (Cascade(accept="never", between=("mid",)), "cascade: `between"),
        (Hint(accept="never", tokens=4, threshold=0.5), "hint: `threshold"),
        (PlanOnFailure(accept="never", threshold=0.0), "plan_on_failure: `threshold"),
        (ThinkOnFailure(accept="never", threshold=0.5), "think_on_failure: `threshold"),
        (Review(threshold=0.5), "review: `threshold"),
    ],
)
def test_options_that_nothing_reads_without_a_criterion_are_refused(strategy, option):
    engines = [Recorder(name, LARGE, size) for name, size in (("big", 9), ("mid", 4), ("tiny", 1))]
    with pytest.raises(ConfigError, match=f"{option}` needs a criterion, and `accept: never` is none"):
        AsyncEnsemble(engines, All(), strategy)
