"""`tandem` with `draft`: when the intern's own first answer is kept, continued or written anew."""

import asyncio
import math
from contextlib import aclosing

import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.cascade import Cascade
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import CapabilityError, ConfigError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Message, Piece, Request, Sampling, Scored, ScoredToken, Verdict

INSIGHT = "Goal: add two numbers. Planning: count on."
DRAFT = "Two and two\nmake five\nso \\boxed{5}"
BETTER = "Two and two\nmake four\nso \\boxed{4}"
LEVELS = {"low": 2, "high": 4}
CHAT = Chat((Message("user", "2 + 2?"),))


class Recorder(EchoEngine):
    def __init__(self, name, replies, parameters, **options):
        super().__init__(name, EchoOptions(replies, parameters=parameters, **options))
        self.asked, self.read = [], []

    async def stream(self, request, meter):
        self.asked.append(request)
        async with aclosing(super().stream(request, meter)) as pieces:
            async for piece in pieces:
                yield piece

    async def score(self, request, meter):
        self.read.append(request)
        return await super().score(request, meter)


class Reader(Recorder):
    """Once there is an insight, finds the second line of its draft improbable, and all of it before."""

    async def score(self, request, meter):
        scored = await super().score(request, meter)
        answer = len(request.prompt.messages)
        tokens, start = [token for token in scored.tokens if token.message != answer], 0
        for line, chance in zip(request.prefix.splitlines(keepends=True), (0.9, 0.2, 0.9), strict=True):
            tokens.append(ScoredToken(line, None, math.log(chance), 1.0, answer, start, start + len(line)))
            start += len(line)
        return Scored(tuple(tokens))

    def _reply(self, request):
        rest = Request(request.prompt, request.sampling, request.prefix.replace("five", "four"))
        return super()._reply(rest)


class NoScore(Recorder):
    capabilities = frozenset({"logprobs", "prefix"})


def answer(tandem, kind=Recorder, most=None, **intern):
    big = Recorder("big", {"": INSIGHT}, 9)
    small = kind("small", {"Thinking Insights": BETTER, "": DRAFT}, 1, **intern)
    hub = AsyncEnsemble([big, small], All(), tandem)
    sampling = Sampling(max_tokens=30, max_completion_tokens=most)
    return asyncio.run(hub.generate(Request(CHAT, sampling))), big, small


def costs(result):
    return {(line.engine, line.purpose): line.cost for line in result.usage.lines}


def test_a_draft_that_is_good_enough_is_the_answer_and_no_insight_is_asked_for():
    result, big, small = answer(Tandem(levels=LEVELS, draft="logprob"), logprob=-0.05)
    assert (result.text, result.finish) == (DRAFT, "stop")
    assert result.verdicts == (Verdict("none", 0, pytest.approx(math.exp(-0.05)), 0.9, True),)
    assert (big.asked, small.read) == ([], [])
    assert costs(result).keys() == {("small", "propose")}
    assert costs(result)["small", "propose"].discarded_tokens == 0
    assert [(piece.engine, piece.purpose) for piece in result.pieces] == [("small", "answer")]


def test_a_draft_that_an_insight_confirms_is_kept():
    tandem = Tandem(levels=LEVELS, draft="logprob", confirm=0.95, judge="entropy:0.1")
    result, big, small = answer(tandem, logprob=-0.5, confident=("numbers.",))
    assert [(verdict.level, verdict.sufficient) for verdict in result.verdicts] == [
        ("none", False),
        ("low", False),
        ("high", True),
    ]
    assert result.verdicts[2] == Verdict("high", 4, pytest.approx(math.exp(-0.01)), 0.95, True)
    assert (result.text, result.insight, big.written) == (DRAFT, "Goal: add two numbers.", 4)
    assert [request.prefix for request in small.read] == [DRAFT, DRAFT]  # one reading a level
    assert len(small.asked) == 1
    assert costs(result)["small", "propose"].discarded_tokens == 0
    assert costs(result)["judge", "judge"].calls == 1  # at `low`; at `high` the draft was confirmed first


def test_an_insight_that_suffices_and_does_not_confirm_it_has_it_written_anew():
    tandem = Tandem(levels=LEVELS, draft="logprob", confirm=0.995, judge="entropy:0.1")
    result, big, small = answer(tandem, logprob=-0.5, confident=("numbers.",))
    assert [verdict.sufficient for verdict in result.verdicts] == [False, False, True]
    assert result.verdicts[2].threshold == 0.5
    assert (result.text, big.written, len(small.asked)) == (BETTER, 4, 2)
    assert costs(result)["small", "propose"].discarded_tokens == len(DRAFT.split())
    assert [request.prefix for request in small.read] == [DRAFT, DRAFT]
    # what the judge read is what it reads without a draft: question and insight
    alone = answer(Tandem(levels=LEVELS, judge="entropy:0.1"), logprob=-0.5, confident=("numbers.",))[0]
    assert [verdict.probability for verdict in alone.verdicts] == [
        verdict.probability for verdict in result.verdicts[1:]
    ]


def test_without_confirm_the_draft_is_not_read_again():
    tandem = Tandem(levels=LEVELS, draft="logprob", judge="entropy:0.1")
    result, _, small = answer(tandem, logprob=-0.5, confident=("numbers.",))
    assert (result.text, [request.prefix for request in small.read]) == (BETTER, ["", ""])
    assert costs(result)["small", "propose"].discarded_tokens == len(DRAFT.split())


def test_a_rejected_draft_is_not_the_best_of_the_levels():
    tandem = Tandem(levels=LEVELS, draft="logprob", judge="entropy:0.1")
    result, _, _ = answer(tandem, logprob=-0.2)  # the draft has 0.82, the insights 0.1 / 1.1
    assert (result.text, [verdict.sufficient for verdict in result.verdicts]) == (BETTER, [False] * 3)


def test_its_probable_lines_may_stay():
    tandem = Tandem(levels=LEVELS, draft="logprob", judge="fixed:low", continue_draft=0.5)
    result, _, small = answer(tandem, Reader)
    assert result.text == BETTER
    assert next((piece.text, piece.round) for piece in result.pieces if piece.purpose == "answer") == (
        "Two and two\n",
        1,
    )
    assert small.asked[1].prefix == "Two and two\n"
    assert small.asked[1].sampling.max_tokens == 30 - 3
    spent = costs(result)["small", "propose"]
    assert spent.discarded_tokens == spent.completion_tokens - 3
    kept, _, _ = answer(Tandem(levels=LEVELS, draft="logprob", judge="fixed:low", continue_draft=0.1), Reader)
    assert kept.text == DRAFT


@pytest.mark.parametrize(
    ("most", "text", "finish", "discarded"),
    [
        (9, DRAFT, "stop", 0),  # 2 tokens of insight and 7 of the draft
        (8, "Two and two\nmake five\nso", "length", 1),
        (7, "Two and two\nmake five", "length", 2),
        (6, "Two and two\nmake", "length", 6),  # the draft was cut off and is written anew
    ],
)
@pytest.mark.parametrize("option", ["confirm", "continue_draft"])
def test_insight_and_kept_draft_share_max_completion_tokens(option, most, text, finish, discarded):
    tandem = Tandem(levels=LEVELS, draft="logprob", judge="fixed:low", **{option: 0.1})
    result, _, _ = answer(tandem, most=most, logprob=-0.5)
    assert (result.text, result.insight, result.finish) == (text, "Goal: add", finish)
    (piece,) = (piece for piece in result.pieces if piece.purpose == "answer")
    assert "".join(token.text for token in piece.tokens) == text
    assert len(piece.tokens) == min(7, most - 2)
    assert costs(result)["small", "propose"].discarded_tokens == discarded


@pytest.mark.parametrize(
    ("insight", "text", "asked"),
    [(2, "Two and two\nmake four", 2), (4, "Two and two\n", 1), (5, "Two and", 1)],
)
def test_insight_kept_lines_and_the_rest_share_max_completion_tokens(insight, text, asked):
    tandem = Tandem(levels={"low": insight}, draft="logprob", judge="fixed:low", continue_draft=0.5)
    result, _, small = answer(tandem, Reader, most=7)
    assert (result.text, result.finish, len(small.asked)) == (text, "length", asked)
    kept = min(3, 7 - insight)
    assert costs(result)["small", "propose"].discarded_tokens == 7 - kept
    assert sum(len(piece.tokens) for piece in result.pieces) == 7


@pytest.mark.parametrize(
    ("stop", "text"), [("two\nmake four", "Two and "), ("four", "Two and two\nmake "), ("two\nfour", BETTER)]
)
def test_stop_strings_end_what_follows_the_kept_lines(stop, text):
    tandem = Tandem(levels=LEVELS, draft="logprob", judge="fixed:low", continue_draft=0.5)
    engines = [Recorder("big", {"": INSIGHT}, 9), Reader("small", {"Thinking": BETTER, "": DRAFT}, 1)]
    request = Request(CHAT, Sampling(max_tokens=30, stop=(stop,)))
    result = asyncio.run(AsyncEnsemble(engines, All(), tandem).generate(request))
    assert (result.text, result.finish) == (text, "stop")
    assert engines[1].asked[1].sampling.stop == ((stop,) if stop == "four" else ())


@pytest.mark.parametrize("strategy", [Tandem(levels=LEVELS, draft="logprob"), Cascade()])
def test_max_completion_tokens_limits_a_draft_without_an_insight(strategy):
    result, big, _ = answer(strategy, most=7, logprob=-0.01)
    assert (result.text, result.finish, big.asked) == (DRAFT, "stop", [])
    result, _, small = answer(strategy, most=3, logprob=-0.01)
    assert (small.asked[0].sampling.max_tokens, result.finish) == (3, "length")
    assert sum(len(piece.tokens) for piece in result.pieces) == 3


def test_the_mentor_is_stopped_where_no_insight_will_help():
    lost = Tandem(levels=LEVELS, draft="logprob", give_up={"none": 0.5}, fallback="mentor")
    result, big, _ = answer(lost, logprob=-1.0)
    assert (result.text, result.insight, len(result.verdicts), len(big.asked)) == (INSIGHT, "", 1, 1)
    assert costs(result)["small", "propose"].discarded_tokens == len(DRAFT.split())
    kept = Tandem(levels=LEVELS, draft="logprob", judge="entropy:0.1", give_up={"none": 0.5})
    assert answer(kept, logprob=-1.0)[0].text == DRAFT
    hopeful, big, _ = answer(kept, logprob=-0.5)
    assert (len(hopeful.verdicts), big.written) == (3, 4)
    plain, big, _ = answer(Tandem(levels=LEVELS, judge="entropy:0.5", give_up={"low": 0.4}))
    assert (len(plain.verdicts), plain.insight, big.written) == (1, "Goal: add", 2)


def test_a_draft_cut_off_at_max_tokens_is_not_kept():
    big, small = Recorder("big", {"": INSIGHT}, 9), Recorder("small", {"": DRAFT}, 1, logprob=-0.01)
    hub = AsyncEnsemble([big, small], All(), Tandem(levels=LEVELS, draft="logprob", judge="fixed:low"))
    result = asyncio.run(hub.generate(Request(CHAT, Sampling(max_tokens=3))))
    assert [verdict.probability for verdict in result.verdicts] == [0.0, 1.0]
    assert big.written == 2


@pytest.mark.parametrize("draft", ["logprob", "entropy:1.0"])
@pytest.mark.parametrize("more", [{}, {"confirm": 0.5}, {"continue_draft": 0.5}])
def test_an_empty_draft_is_not_kept(draft, more):
    big = Recorder("big", {"": INSIGHT}, 9)
    small = Recorder("small", {"Thinking Insights": BETTER, "": ""}, 1, logprob=-0.01)
    tandem = Tandem(levels=LEVELS, draft=draft, judge="fixed:low", **more)
    result = asyncio.run(AsyncEnsemble([big, small], All(), tandem).generate(Request(CHAT)))
    assert result.text == BETTER
    assert [verdict.probability for verdict in result.verdicts] == [0.0, 1.0]


def test_a_criterion_that_reads_no_tokens_is_asked_once():
    big = Recorder("big", {"Someone else": "no", "": INSIGHT}, 9)
    small = Recorder("small", {"Thinking Insights": BETTER, "": DRAFT}, 1)
    hub = AsyncEnsemble([big, small], All(), Tandem(levels=LEVELS, draft="ask:big", judge="fixed:high"))
    result = asyncio.run(hub.generate(Request(CHAT)))
    assert next((verdict.level, verdict.probability) for verdict in result.verdicts) == ("none", 0.0)
    assert (result.text, small.read) == (BETTER, [])


def test_no_draft_is_written_at_effort_none_and_an_aborted_one_is_stopped():
    result, big, small = answer(Tandem(levels=LEVELS, draft="logprob", effort="none"), logprob=-2.0)
    assert (result.text, big.asked, len(small.asked)) == (DRAFT, [], 1)
    ledger, engines = UsageLedger(), [Recorder("big", {"": INSIGHT}, 9), Recorder("small", {"": DRAFT}, 1)]

    async def run():
        strategy = Tandem(levels=LEVELS, draft="logprob")
        async with aclosing(strategy.run(Request(CHAT), engines, ledger)) as events:
            async for event in events:
                if isinstance(event, Piece):
                    break

    asyncio.run(run())
    assert engines[0].written == 1
    assert ledger.total.completion_tokens == sum(engine.written for engine in engines)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"draft": "never"}, Recorder, "tandem: `draft: never` writes no draft; leave `draft` out"),
        ({"draft": "logprop"}, Recorder, r"tandem: draft: accept: .*did you mean 'logprob'"),
        ({"draft": "logprob:0.9"}, Recorder, "takes no value, got '0.9'; .* belongs in `thresholds`$"),
        ({"draft": "ask", "confirm": 0.9}, Recorder, "needs a draft judged by its tokens, not by 'ask'"),
        ({"draft": "logprob", "confirm": 0.9}, NoScore, r"tandem .draft. needs score of engine 'small'"),
        ({"draft": "logprob", "insight_mode": "continuation"}, Recorder, "needs `insight_mode: prompt`"),
        ({"continue_draft": 0.5}, Recorder, "`continue_draft` needs a `draft`"),
        ({"give_up": {"lwo": 0.1}}, Recorder, "tandem: give_up: .*did you mean 'low'"),
    ],
)
def test_what_cannot_work_is_refused(options, kind, message):
    with pytest.raises((ConfigError, CapabilityError), match=message):
        answer(Tandem(levels=LEVELS, judge="fixed:low", **options), kind)
