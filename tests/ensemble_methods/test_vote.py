"""Voting: who wins and why, ties, closing early, usage."""

import asyncio
import math
from contextlib import aclosing
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemblehub import registry
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.candidates import Candidate
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.model_selection.random import RandomSelection
from ensemblehub.ensemble_methods.output_aggregation.vote import Party, Vote, lead, partied, settled
from ensemblehub.errors import CapabilityError, ConfigError, EngineError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Choice, Message, Piece, Request, Sampling, Token

CHAT = Chat((Message("user", "How many?"),))
NAMES = "abcdefgh"


def members(*replies, **options):
    """Engines a, b, c, ... with these replies; an option is one value for all, or a list."""
    return [
        EchoEngine(
            NAMES[index], EchoOptions({"": reply}, **{key: value[index] for key, value in options.items()})
        )
        for index, reply in enumerate(replies)
    ]


def boxed(answer, words=0):
    return "so " * words + f"it is \\boxed{{{answer}}}"


def vote(engines, options=None, **sampling):
    hub = AsyncEnsemble(engines, All(), options or Vote())
    return asyncio.run(hub.generate(Request(CHAT, Sampling(**sampling))))


def choice(result):
    (decision,) = result.choices
    return decision


def test_the_majority_is_of_equal_answers_not_of_equal_texts():
    result = vote(members(boxed(7), boxed("\\frac{1}{2}"), "The answer is 0.5.", boxed(7.5), boxed("2/4")))
    assert result.text == boxed("\\frac{1}{2}")
    assert choice(result).chosen == ("b", "c", "e")
    assert choice(result).scores == (("a", 1), ("b", 3), ("c", 3), ("d", 1), ("e", 3))
    assert choice(result).reason == "3 of 5 agree on \\frac{1}{2}"
    assert result.finish == "stop"


def test_the_answer_is_one_piece_by_its_author_and_losers_are_discarded():
    engines = members(boxed(1), boxed(2, words=3), boxed(2))
    result = vote(engines)
    assert [(piece.engine, piece.purpose, piece.text) for piece in result.pieces] == [
        ("b", "answer", boxed(2, 3))
    ]
    assert len(result.pieces[0].tokens) == 6
    costs = {line.engine: line.cost for line in result.usage.lines}
    assert {line.purpose for line in result.usage.lines} == {"propose"}
    assert {name: cost.completion_tokens for name, cost in costs.items()} == {"a": 3, "b": 6, "c": 3}
    assert {name: cost.discarded_tokens for name, cost in costs.items()} == {"a": 3, "b": 0, "c": 0}
    assert {name: cost.calls for name, cost in costs.items()} == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("weights", "winner", "why"),
    [
        ({}, "1", "2 of 5 agree on 1, as many as 2; a comes first in order; 1 without a readable answer"),
        ({"c": 1.5}, "2", "larger weight decides, 2.5 against 2"),
        ({"e": 0.5}, "1", "larger weight decides, 2 against 1.5"),
    ],
)
def test_ties_go_to_the_larger_weight_then_to_the_first_engine(weights, winner, why):
    result = vote(members(boxed(1), boxed(1), boxed(2), "no idea", boxed(2)), Vote(weights=weights))
    assert result.text == boxed(winner)
    assert why in choice(result).reason


def test_weights_do_not_overrule_a_majority():
    assert vote(members(boxed(1), boxed(2), boxed(2)), Vote(weights={"a": 100})).text == boxed(2)


def test_replies_without_an_answer_do_not_vote():
    result = vote(members("no idea", "no idea", "no idea", boxed(4)))
    assert result.text == boxed(4)
    assert choice(result).scores == (("a", 0), ("b", 0), ("c", 0), ("d", 1))
    assert choice(result).reason == "1 of 4 says 4; 3 without a readable answer"


@pytest.mark.parametrize("early", [False, True])
def test_without_any_answer_the_first_engine_is_given_and_it_is_said(early):
    result = vote(members("first", "second"), Vote(stop_early=early))
    assert result.text == "first"
    assert choice(result).chosen == ("a",)
    assert choice(result).reason == "no reply has a readable answer; a's is given"


def test_a_reply_that_was_cut_off_does_not_vote_and_says_so_when_given():
    result = vote(members(boxed(1, words=9), boxed(2)), max_tokens=5)
    assert result.text == boxed(2)
    assert vote(members(boxed(1, words=9), boxed(2, words=9)), max_tokens=5).finish == "length"


@pytest.mark.parametrize(
    ("options", "replies", "winner"),
    [
        ({"extract": "last_line"}, ("x\n12", "y\nB", "z\n\n 12.0 \n"), "x\n12"),
        (
            {"extract": "regex", "pattern": r"#### (\S+)"},
            ("#### 1 #### 3", "3", "#### 4", "#### 3.0"),
            "#### 1 #### 3",
        ),
        ({"extract": "regex", "pattern": r"\d+"}, ("is 1", "was 5, is 2", "2"), "was 5, is 2"),
        ({"extract": "text"}, ("1/2", "0.5", " 0.5\n"), "0.5"),
        (
            {"extract": "text"},
            ("no", "<think>a</think>\nyes", "<think>b</think>yes"),
            "<think>a</think>\nyes",
        ),
    ],
)
def test_how_an_answer_is_read(options, replies, winner):
    assert vote(members(*replies), Vote(**options)).text == winner


def test_an_answer_that_continues_a_prefix_is_read_with_it():
    engines = members("It is \\boxed{41}.", "It is \\boxed{42}.", "It is \\boxed{42}!")
    result = asyncio.run(
        AsyncEnsemble(engines, All(), Vote()).generate(Request(CHAT, prefix="It is \\boxed{4"))
    )
    assert result.text == "2}."


def test_samples_have_names_and_seeds_of_their_own_unless_they_would_all_be_the_same():
    seeds = []

    class Drawing(EchoEngine):
        def stream(self, request, meter):
            seeds.append(request.sampling.seed)
            return super().stream(request, meter)

    def engines():
        return [Drawing(name, EchoOptions({"": boxed(3)})) for name in "ab"]

    result = vote(engines(), Vote(samples=2), temperature=1.0, seed=5)
    assert choice(result).chosen == ("a#1", "a#2", "b#1", "b#2")
    assert len(set(seeds)) == 4
    vote(engines(), Vote(samples=2), temperature=1.0, seed=5)
    assert seeds[:4] == seeds[4:]
    cold = vote(engines(), Vote(samples=2), seed=5)
    assert choice(cold).chosen == ("a", "b")  # at temperature 0 all samples of a model are the same
    assert len(seeds) == 10


def test_one_engine_is_enough_with_samples_and_not_without():
    assert vote(members(boxed(3)), Vote(samples=3), temperature=1.0).text == boxed(3)
    with pytest.raises(ConfigError, match="needs at least 2 engines"):
        AsyncEnsemble(members(boxed(3)), All(), Vote())
    with pytest.raises(ConfigError, match="selection random may leave 1 of 2"):
        AsyncEnsemble(members(boxed(3), boxed(4)), RandomSelection(k=1), Vote())


@pytest.mark.parametrize("early", [False, True])
def test_a_failing_member_fails_the_vote_and_stops_the_others(early):
    engines = members(boxed(1, 500), boxed(1, 500), boxed(2, 9), fail_after=[None, None, 4])
    ledger = UsageLedger()

    async def run():
        async with aclosing(
            AsyncEnsemble(engines, All(), Vote(stop_early=early)).stream(Request(CHAT), ledger)
        ) as events:
            async for _ in events:
                raise AssertionError("nothing may be answered")

    with pytest.raises(EngineError, match="c failed after 4 tokens"):
        asyncio.run(run())
    assert max(engine.written for engine in engines) < 250
    assert ledger.total.completion_tokens == sum(engine.written for engine in engines)


def test_cancelling_stops_every_engine_and_records_what_it_wrote():
    engines, ledger = members(boxed(1, 500), boxed(1, 500), delay=[0.001, 0.001]), UsageLedger()

    async def run():
        await asyncio.wait_for(
            anext(AsyncEnsemble(engines, All(), Vote()).stream(Request(CHAT), ledger)), 0.05
        )

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert all(0 < engine.written < 400 for engine in engines)
    assert ledger.total.completion_tokens == sum(engine.written for engine in engines)


def test_stop_early_ends_what_cannot_change_the_answer():
    engines = members(boxed(1), boxed(1), boxed(2, 500), delay=[0, 0, 0.01])
    result = vote(engines, Vote(stop_early=True))
    assert result.text == boxed(1)
    assert engines[2].written < 250  # all of it would take five seconds
    assert choice(result).reason == "2 of 3 agree on 1; 1 stopped early"
    costs = {line.engine: line.cost for line in result.usage.lines}
    assert costs["c"].completion_tokens == costs["c"].discarded_tokens == engines[2].written
    engines = members(boxed(1), boxed(1), boxed(2, 500))
    vote(engines)
    assert engines[2].written == 503


def test_stop_early_waits_for_an_earlier_engine_whose_words_would_be_given():
    assert vote(members(boxed(1, 50), boxed(1), boxed(1)), Vote(stop_early=True)).text == boxed(1, 50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples.*greater than or equal to 1"),
        ({"weights": {"B": 1}}, "vote: weights: unknown engine 'B'"),
        ({"weights": {"b": -1}}, "weights.b.*greater than or equal to 0 .got -1"),
        ({"weights": {"b": float("nan")}}, "weights.b"),
        ({"extract": "regex"}, "`pattern` go together"),
        ({"pattern": "x"}, "`pattern` go together"),
        ({"extract": "regex", "pattern": "("}, "vote: pattern '\\('"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        AsyncEnsemble(members("1", "2"), All(), registry.build(Vote, options, "vote"))


def test_yaml_options_are_checked():
    with pytest.raises(ConfigError, match="did you mean 'samples'"):
        registry.build(Vote, {"sample": 2}, "aggregation 'vote'")
    with pytest.raises(ConfigError, match="'extract'"):
        registry.build(Vote, {"extract": "maths"}, "aggregation 'vote'")


ANSWERS = st.sampled_from([None, "1", "1.0", "2", "4/2", "0.5", "1/2", "3"])


def exact(left, right):
    return Fraction(left) == Fraction(right)


def count(answers, value):
    return sum(answer is not None and Fraction(answer) == value for answer in answers)


@given(
    st.lists(ANSWERS, max_size=7).flatmap(
        lambda answers: st.tuples(st.just(answers), st.permutations(answers))
    )
)
def test_the_order_of_candidates_never_changes_who_wins_but_for_ties(drawn):
    first, second = (partied(answers, [1.0] * len(answers), exact) for answers in drawn)
    answers = drawn[0]
    votes = sorted(
        (count(answers, value) for value in {Fraction(answer) for answer in answers if answer}), reverse=True
    )
    assert sorted(len(party.members) for party in first) == sorted(votes)
    assert bool(first) == bool(second) == bool(votes)
    if votes and votes.count(votes[0]) == 1:
        assert Fraction(first[0].answer) == Fraction(second[0].answer)
        assert len(first[0].members) == votes[0]


@given(st.data())
def test_settled_is_said_exactly_when_no_answers_of_the_others_change_winner_or_words(data):
    answers = data.draw(st.lists(st.sampled_from([None, "1", "2", "3"]), min_size=1, max_size=5))
    weights = data.draw(
        st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=len(answers), max_size=len(answers))
    )
    waiting = data.draw(st.lists(st.integers(0, len(answers) - 1), unique=True, max_size=3).map(sorted))
    known = [None if place in waiting else answer for place, answer in enumerate(answers)]
    parties = partied(known, weights, exact)

    def ends(places):
        if not places:
            parties = partied(known, weights, exact)
            yield (parties[0].answer, parties[0].members[0]) if parties else None
            return
        for said in (None, "1", "2", "3", "4"):
            known[places[0]] = said
            yield from ends(places[1:])
        known[places[0]] = None

    outcomes = set(ends(waiting))
    assert settled(parties, weights, waiting) == (len(outcomes) == 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(ANSWERS, st.integers(0, 40)), min_size=2, max_size=6),
    st.sampled_from([{}, {"b": 2.0}]),
)
def test_stopping_early_gives_the_same_answer_and_records_every_token(plan, weights):
    def engines():
        return members(*(boxed(answer, words) if answer else "so " * words + "?" for answer, words in plan))

    whole = vote(engines(), Vote(weights=weights))
    asked = engines()
    early = vote(asked, Vote(weights=weights, stop_early=True))
    assert (early.text, early.pieces[0].engine) == (whole.text, whole.pieces[0].engine)
    assert set(choice(early).chosen) <= set(choice(whole).chosen)
    assert (
        early.cost.completion_tokens
        == sum(engine.written for engine in asked)
        <= whole.cost.completion_tokens
    )
    assert early.cost.discarded_tokens <= early.cost.completion_tokens


def test_events_are_the_choice_and_then_the_answer():
    async def run():
        async with aclosing(
            AsyncEnsemble(members(boxed(1), boxed(1)), All(), Vote()).stream("How many?")
        ) as events:
            return [event async for event in events]

    decided, answer = asyncio.run(run())
    assert isinstance(decided, Choice)
    assert isinstance(answer, Piece)
    assert answer.finish == "stop"


class Sampled(EchoEngine):
    """Each call gives the next reply."""

    calls = 0

    async def stream(self, request, meter):
        replies = list(self.script.replies.values())
        reply = replies[self.calls]
        self.calls += 1
        once = EchoEngine(self.name, EchoOptions({"": reply}))
        async with aclosing(once.stream(request, meter)) as pieces:
            async for piece in pieces:
                yield piece


def sampled(*answers):
    return Sampled("a", EchoOptions(dict(enumerate(map(boxed, answers)))))


@pytest.mark.parametrize(
    ("answers", "window", "asked", "text", "reason"),
    [
        ((4, 4, 4, 5, 5, 5, 5, 5), 3, 3, 4, "3 of 8 agree on 4; 5 stopped early"),  # the first window agrees
        ((4, 5, 4, 4, 4, 4, 5, 5), 2, 4, 4, "3 of 8 agree on 4; 4 stopped early"),  # the second does
        ((4, 5, 4, 5, 4, 4, 4, 4), 2, 6, 4, "4 of 8 agree on 4; 2 stopped early"),  # the third does
        ((4, 4, 5, 4, 4, 4, 4, 5), 4, 8, 4, "6 of 8 agree on 4"),
        (
            (4, 4, 5, 4, 4, 4, 4, 5),
            1,
            5,
            4,
            "4 of 8 agree on 4; 3 stopped early",
        ),  # 3 cannot change 4 against 1
        ((4, 5, 4, 5, 4, 5, 4, 5), None, 8, 4, "4 of 8 agree on 4, as many as 5; a#1 comes first in order"),
    ],
)
def test_sampling_stops_once_the_vote_is_decided(answers, window, asked, text, reason):
    engine = sampled(*answers)
    result = vote([engine], Vote(samples=8, window=window), temperature=0.7)
    assert (engine.calls, result.text) == (asked, boxed(text))
    assert choice(result).reason == reason
    assert result.cost.completion_tokens == 3 * asked
    assert result.cost.discarded_tokens == 3 * (asked - int(reason[0]))


@pytest.mark.parametrize(
    ("answers", "decided", "asked"),
    [
        ([4] * 20, 0.9, 7),  # each counts exp(-1): 1 - 0.5 ** (1 + 7 / e) is 0.916, with 6 0.892
        ([4] * 20, 0.8, 4),
        ([4, 4, 5] + [4] * 17, 0.8, 7),  # 6 / e against 1 / e
        ([4, 5] * 10, 0.8, 19),  # then the last can only make a tie
    ],
)
def test_sampling_stops_once_the_leading_answer_is_probably_the_more_frequent(answers, decided, asked):
    engine = sampled(*answers)
    result = vote([engine], Vote(samples=20, decided=decided), temperature=0.7)
    assert (engine.calls, result.text) == (asked, boxed(4))


@pytest.mark.parametrize(
    ("leading", "second", "probability"),
    [
        ((), (), 0.5),
        ((1,), (), 0.75),
        ((1, 1), (), 0.875),
        ((1, 1), (1,), 11 / 16),
        ((0.5,), (), 1 - 0.5**1.5),
    ],
)
def test_the_lead_of_an_answer_by_hand(leading, second, probability):
    engine = EchoEngine("a", EchoOptions())
    candidates = [
        Candidate(engine, Request(CHAT), "a", [Piece("x", "a", "propose", (Token("x", 1, math.log(share)),))])
        for share in (*leading, *second)
    ]
    places = range(len(leading)), range(len(leading), len(candidates))
    parties = [Party("x", tuple(place), 0.0) for place in places if place]
    assert lead(parties, candidates) == pytest.approx(probability, abs=0.002)


def test_an_adaptive_vote_needs_logprobs():
    class Silent(EchoEngine):
        capabilities = frozenset()

    with pytest.raises(CapabilityError, match=r"vote .decided. needs logprobs of engine 'a'"):
        vote([Silent("a", EchoOptions())], Vote(samples=4, decided=0.9))


def test_a_candidate_that_fails_the_criterion_does_not_vote():
    engines = members(boxed(4), boxed(4), boxed(5), logprob=[-1, -1, -0.01])
    result = vote(engines, Vote(accept="logprob"))
    assert result.text == boxed(5)
    assert choice(result).reason == "1 of 3 says 5; 2 not accepted"
    assert vote(engines[:2] + members(boxed(4)), Vote(accept="logprob")).text == boxed(4)
    result = vote(members("a = 1", "a = 2", "a = 3", logprob=[-1, -0.01, -0.01]), Vote(accept="logprob"))
    assert result.text == "a = 2"
    assert choice(result).reason == "no reply has a readable answer; b's is given; 1 not accepted"
    with pytest.raises(ConfigError, match=r"vote: accept: .*did you mean 'logprob'"):
        AsyncEnsemble(engines, All(), Vote(accept="logpro"))
    with pytest.raises(ConfigError, match="vote: `accept: never` accepts no answer; leave `accept` out"):
        AsyncEnsemble(engines, All(), Vote(accept="never"))


def test_the_threshold_of_candidates_is_an_option():
    engines = members(boxed(4), boxed(4), boxed(5), logprob=[math.log(0.8), math.log(0.8), math.log(0.95)])
    for threshold, answer in ((None, 5), (0.79, 4), (0.81, 5), (0.96, 4)):  # where none passes all vote
        assert vote(engines, Vote(accept="logprob", threshold=threshold)).text == boxed(answer)
    with pytest.raises(ConfigError, match="vote: `threshold` needs `accept`"):
        AsyncEnsemble(engines, All(), Vote(threshold=0.5))


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_a_candidate_that_was_cut_off_does_not_vote_where_one_has_to_be_accepted(threshold):
    cut = "\\boxed{4} so so so"
    engines = members(cut, cut, "\\boxed{5}", logprob=[-0.01, -0.01, -0.01])
    result = vote(engines, Vote(accept="logprob", threshold=threshold), max_tokens=3)
    assert (result.text, result.finish) == ("\\boxed{5}", "stop")
    assert choice(result).reason == "1 of 3 says 5; 2 not accepted"
    assert vote(engines, max_tokens=3).text == "\\boxed{4} so so"


def test_an_empty_candidate_does_not_vote():
    result = vote(members("", boxed(5), logprob=[-0.01, -0.01]), Vote(accept="logprob"))
    assert (result.text, choice(result).reason) == (boxed(5), "1 of 2 says 5; 1 not accepted")


def test_the_criterion_of_candidates_is_part_of_what_decides():
    assert "criterion" not in Vote().deciding()
    assert (
        Vote(accept="entropy:1.0").deciding()["criterion"] != Vote(accept="logprob").deciding()["criterion"]
    )
