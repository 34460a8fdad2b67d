"""reward_based on scripted members and scorers: what is proposed, kept, ended, recorded."""

import asyncio
from contextlib import aclosing

import pytest

from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.reward_based import RewardBased
from ensemblehub.errors import ConfigError, ContextOverflowError, EngineError, RequestError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Choice, Message, Piece, Request, Sampling, TokenIds
from ensemblehub.scorers.base import Scorer
from ensemblehub.scorers.pool import Pool

CHAT = Chat((Message("user", "2 + 2?"),))


class Member(EchoEngine):
    """Continues what is written as its table says, by the answer so far; "~" at the end: there would be more."""

    def __init__(self, name, script, **options):
        super().__init__(name, EchoOptions(**options))
        self.table, self.asked = script, []

    async def stream(self, request, meter):
        self.asked.append(request)
        async with aclosing(super().stream(request, meter)) as pieces:
            async for piece in pieces:
                yield piece

    def _reply(self, request):
        text = self.table.get(request.prefix, "") if isinstance(self.table, dict) else self.table
        script = EchoEngine(self.name, EchoOptions({"": text.removesuffix("~")}))
        words, finish = script._reply(Request(request.prompt, request.sampling))
        return words, "length" if text.endswith("~") else finish


class Likes(Scorer):
    """A point for each of its words that a text holds; remembers what it was asked."""

    def __init__(self, name="rm", **points):
        self.name, self.points, self.asked, self.delay, self.error = name, points, [], 0.0, None

    @property
    def model(self):
        return self.name

    async def score(self, request, texts, meter):
        self.asked.append((request.prefix, list(texts)))
        await asyncio.sleep(self.delay)
        if self.error:
            raise self.error
        return [sum(value for word, value in self.points.items() if word in text) for text in texts]


def ensemble(members, *scorers, normalization="none", **options):
    pool = Pool(scorers, (1.0,) * len(scorers), normalization)
    return AsyncEnsemble(members, All(), RewardBased(**options).with_scorers(pool))


def ask(max_tokens=100, prefix="", **sampling):
    return Request(CHAT, Sampling(max_tokens, **sampling), prefix)


def answer(hub, request=None):
    return asyncio.run(hub.generate(request or ask()))


def two():
    a = Member("a", {"": "Two and~", "Two or": " two is~", "Two or two make": " five."})
    b = Member("b", {"": "Two or~", "Two or": " two make~", "Two or two make": " four."})
    return a, b


def test_the_best_proposal_of_each_round_is_kept():
    rm = Likes(**{"or": 2.0, "make": 1.0, "five": 1.0, "four": 3.0})
    result = answer(ensemble(two(), rm, max_new_tokens_per_round=2))
    assert result.text == "Two or two make four."
    assert result.finish == "stop"
    assert [choice.chosen for choice in result.choices] == [("b",)] * 3
    assert [choice.about for choice in result.choices] == ["proposal"] * 3
    assert result.choices[0].scores == (("a", 0.0), ("b", 2.0))
    assert rm.asked == [
        ("", ["Two and", "Two or"]),
        ("Two or", [" two is", " two make"]),
        ("Two or two make", [" five.", " four."]),
    ]
    assert [(piece.round, piece.text) for piece in result.pieces if piece.text] == [
        (1, "Two or"),
        (2, " two make"),
        (3, " four."),
    ]


def test_losing_proposals_are_recorded_as_discarded():
    result = answer(
        ensemble(two(), Likes(**{"or": 1.0, "make": 1.0, "four": 1.0}), max_new_tokens_per_round=2)
    )
    cost = {(line.engine, line.purpose): line.cost for line in result.usage.lines}
    assert (cost["a", "propose"].completion_tokens, cost["a", "propose"].discarded_tokens) == (5, 5)
    assert (cost["b", "propose"].completion_tokens, cost["b", "propose"].discarded_tokens) == (5, 0)
    assert cost["a", "propose"].calls == 3


def test_proposals_are_written_at_the_same_time():
    class Waiting(Member):
        async def stream(self, request, meter):
            await asyncio.wait_for(barrier.wait(), 10)  # until the other has begun, too
            async with aclosing(super().stream(request, meter)) as pieces:
                async for piece in pieces:
                    yield piece

    async def use():
        nonlocal barrier
        barrier = asyncio.Barrier(2)
        return await ensemble([Waiting("a", "x"), Waiting("b", "y")], Likes(y=1.0)).generate(ask())

    barrier = None
    assert asyncio.run(use()).text == "y"


def test_a_tie_goes_to_the_first_and_is_said():
    result = answer(ensemble([Member("a", "x"), Member("b", "y"), Member("c", "z")], Likes(y=1.0, z=1.0)))
    assert result.text == "y"
    assert "equal to c; it comes first in order" in result.choices[0].reason


def test_proposals_that_are_the_same_are_not_scored():
    rm = Likes()
    result = answer(ensemble([Member("a", "x"), Member("b", "x")], rm))
    assert (result.text, rm.asked) == ("x", [])
    assert result.choices[0].reason == "all proposals are the same"


@pytest.mark.parametrize(("excluded", "kept"), [(True, "y"), (False, "x")])
def test_a_model_does_not_judge_its_own_text_unless_told_so(excluded, kept):
    own, other = Likes("a", x=9.0, y=2.0), Likes("other", x=1.0, y=1.0)
    members = [Member("a", "x"), Member("b", "y")]
    # without its own judge x has 1, y the mean of 2 and 1
    assert answer(ensemble(members, own, other, exclude_self_scoring=excluded)).text == kept


def test_below_the_threshold_the_answer_ends_with_what_it_has():
    rm = Likes(**{"or": 2.0, "make": 1.0})
    result = answer(ensemble(two(), rm, max_new_tokens_per_round=2, score_threshold=0.5))
    assert (result.text, result.finish) == ("Two or two make", "stop")
    assert result.choices[-1].chosen == ()
    assert "below score_threshold 0.5" in result.choices[-1].reason
    unused = {line.engine: line.cost.discarded_tokens for line in result.usage.lines}
    assert unused == {"a": 5, "b": 1}


def test_the_first_rounds_best_is_kept_whatever_its_score():
    rm = Likes(**{"or": 0.4, "make": 1.0})
    result = answer(ensemble(two(), rm, max_new_tokens_per_round=2, score_threshold=0.5))
    assert result.text == "Two or two make"
    assert "kept since nothing is written yet" in result.choices[0].reason


def test_an_empty_proposal_ends_the_answer_but_cannot_begin_it():
    silent, other = Member("silent", {}), Member("b", {"": "four~", "four": " more"})
    rm = Likes(**{"more": -1.0})
    result = answer(ensemble([silent, other], rm, max_new_tokens_per_round=1))
    assert (result.text, result.finish) == ("four", "stop")
    assert rm.asked == [("four", ["", " more"])]
    assert answer(ensemble([silent, Member("also", {})], rm)).text == ""


@pytest.mark.parametrize("limit", range(1, 6))
def test_the_length_is_that_of_the_whole_answer(limit):
    rm = Likes(**{"or": 1.0, "make": 1.0, "four": 1.0})
    result = answer(ensemble(two(), rm, max_new_tokens_per_round=2), ask(limit))
    assert result.text == "".join(["Two", " or", " two", " make", " four."][:limit])
    assert result.finish == ("stop" if limit == 5 else "length")


def test_rounds_and_repeats_are_limited():
    a, b = Member("a", " on~"), Member("b", " off~")
    rm = Likes(on=1.0)
    result = answer(ensemble([a, b], rm, max_new_tokens_per_round=1, max_repeat=3))
    assert (result.text, result.finish) == (" on" * 3, "length")
    result = answer(ensemble([a, b], rm, max_new_tokens_per_round=1, max_rounds=2))
    assert (result.text, result.finish) == (" on" * 2, "length")


def test_a_stop_string_may_span_rounds_and_is_not_shown():
    rm = Likes(**{"or": 1.0, "make": 1.0, "four": 1.0})
    result = answer(ensemble(two(), rm, max_new_tokens_per_round=2), ask(stop=("or two m",)))
    assert (result.text, result.finish) == ("Two ", "stop")


def test_seeds_and_prefix_are_passed_on():
    a, b = two()
    rm = Likes(**{"make": 1.0, "four": 1.0})
    hub = ensemble([a, b], rm, max_new_tokens_per_round=2)
    assert answer(hub, ask(prefix="Two or", seed=1, temperature=0.5)).text == " two make four."
    assert [request.prefix for request in b.asked] == ["Two or", "Two or two make"]
    assert rm.asked[0] == ("Two or", [" two is", " two make"])
    seeds = {request.sampling.seed for request in (*a.asked, *b.asked)}
    assert len(seeds) == 4
    first = [request.sampling.seed for request in a.asked]
    a.asked.clear()
    answer(hub, ask(prefix="Two or", seed=1, temperature=0.5))
    assert [request.sampling.seed for request in a.asked] == first


def test_a_member_whose_context_is_full_is_skipped_and_the_last_writes_the_rest():
    small = Member(
        "small", {"": "one two~", "one two": " three~"}, context=6
    )  # the question takes three of them
    large = Member("large", {"": "two~", "one two": " three four~", "one two three four": " five six seven"})
    result = answer(ensemble([small, large], Likes(one=1.0, four=1.0), max_new_tokens_per_round=2))
    assert result.text == "one two three four five six seven"
    # round 2 leaves small room for one token; from round 3 on large is alone
    assert len(small.asked) == 2
    assert small.asked[1].sampling.max_tokens == 1
    assert large.asked[-1].sampling.max_tokens == 100 - 4
    assert [choice.chosen for choice in result.choices] == [("small",), ("large",)]
    assert {line.purpose for line in result.usage.lines if line.engine == "large"} == {"propose", "answer"}


def test_a_member_that_only_finds_out_when_asked_is_skipped_too():
    blind = Member("blind", {"": "one two three~"}, context=7)
    blind.count = lambda request: None
    other = Member("other", {"": "two~", "one two three": " four five"})
    result = answer(ensemble([blind, other], Likes(one=1.0), max_new_tokens_per_round=3))
    assert result.text == "one two three four five"
    assert len(blind.asked) == 2
    assert result.choices[1].reason == "it is the only proposal"


def test_one_member_writes_at_once_and_unscored():
    rm = Likes()
    only = Member("only", "one two three")
    result = answer(ensemble([only], rm, max_new_tokens_per_round=1))
    assert (result.text, len(only.asked), rm.asked, result.choices) == ("one two three", 1, [], ())


def test_a_context_that_is_full_ends_the_answer_or_refuses_it():
    members = [
        Member("a", "one two three four", context=5),
        Member("b", "one two three four five", context=5),
    ]
    result = answer(ensemble(members, Likes(), max_new_tokens_per_round=9))
    assert (result.text, result.finish) == ("one two", "length")
    with pytest.raises(ContextOverflowError, match="no room"):
        answer(ensemble([Member("a", "x", context=3), Member("b", "y", context=2)], Likes()))


def test_failures_of_members_and_scorers_are_errors_and_recorded():
    slow = Member("slow", "one two three four", delay=0.02)
    broken = Member("broken", "one two three", delay=0.01, fail_after=1)
    ledger = UsageLedger()

    async def use(hub):
        async with aclosing(hub.stream(ask(), ledger)) as events:
            async for _ in events:
                pass

    with pytest.raises(EngineError, match="broken failed"):
        asyncio.run(use(ensemble([slow, broken], Likes())))
    assert slow.written < 4
    assert sum(call.cost.completion_tokens for call in ledger.calls if call.engine == "slow") == slow.written
    ledger.calls.clear()
    rm = Likes()
    rm.error = EngineError("scorer is down")
    with pytest.raises(EngineError, match="scorer is down"):
        asyncio.run(use(ensemble(two(), rm, max_new_tokens_per_round=2)))
    assert ledger.total.completion_tokens == ledger.total.discarded_tokens == 4


@pytest.mark.parametrize("after", [Choice, Piece])
def test_closing_early_stops_everything(after):
    a, b = two()
    ledger = UsageLedger()

    async def until(hub):
        async with aclosing(hub.stream(ask(), ledger)) as events:
            async for event in events:
                if isinstance(event, after):
                    return

    asyncio.run(until(ensemble([a, b], Likes(**{"or": 1.0}), max_new_tokens_per_round=2)))
    assert a.written == b.written == 2
    assert ledger.total.completion_tokens == 4


@pytest.mark.parametrize("where", ["members", "scorer"])
def test_cancelling_records_every_token(where):
    members = [Member(name, "one two three four", delay=0.02 if where == "members" else 0.0) for name in "ab"]
    members[1].table = "two three"
    rm = Likes()
    rm.delay = 60
    ledger = UsageLedger()

    async def cancelled():
        async def use():
            async with aclosing(ensemble(members, rm).stream(ask(), ledger)) as events:
                async for _ in events:
                    pass

        task = asyncio.ensure_future(use())
        while not (rm.asked if where == "scorer" else members[0].written):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return sum(member.written for member in members)

    written = asyncio.run(cancelled())
    assert ledger.total.completion_tokens == ledger.total.discarded_tokens == written > 0
    assert sum(member.written for member in members) == written


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="reward_based needs a scorer"):
        AsyncEnsemble(two(), All(), RewardBased())
    with pytest.raises(ConfigError, match="score_threshold needs score_normalization: none"):
        ensemble(two(), Likes(), normalization="minmax", score_threshold=0.0)
    for option in ("max_new_tokens_per_round", "max_rounds"):
        with pytest.raises(ConfigError, match=f"{option}.*greater than or equal to 1"):
            ensemble(two(), Likes(), **{option: 0})
    with pytest.raises(RequestError, match="token ids"):
        answer(ensemble(two(), Likes()), Request(TokenIds((1, 2))))


def test_from_yaml_with_a_model_that_judges(tmp_path):
    file = tmp_path / "reward.yaml"
    file.write_text(
        "model_specs:\n"
        "  - {name: a, engine: echo, replies: {'': 'one two'}}\n"
        "  - {name: b, engine: echo, replies: {'': 'three four'}, confident: [three]}\n"
        "reward_specs:\n"
        "  - {name: views, engine: perplexity, model: b}\n"
        "ensemble:\n"
        "  output_aggregation_method: reward_based\n"
        "  output_aggregation_params: {exclude_self_scoring: false}\n"
    )
    result = answer(AsyncEnsemble.from_config(Config.read(file)))
    assert result.text == "three four"  # (-0.01 + exp(-0.01)) / 2 against (-1 + exp(-1)) / 2
    assert dict(result.choices[0].scores) == pytest.approx({"a": -0.31606, "b": 0.49002}, abs=1e-4)
    assert [(line.engine, line.purpose) for line in result.usage.lines][-1] == ("b", "score")
