"""Writing in turns: what belongs to the answer as a whole, whoever writes."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from itertools import cycle, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.turns import EngineTurn, Segments, SoFar
from ensemblehub.errors import ConfigError, ContextOverflowError, EngineError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.generators.text.stops import StopFilter
from ensemblehub.results import fold
from ensemblehub.schema import ModelInfo, Piece, Request, Sampling, Text, Token, TokenIds

STORY = "one two three four five six seven eight nine ten"


class Alternate(Segments):
    """Two tokens each."""

    def run(self, request, engines, ledger):
        order = cycle(engines)
        return self.written(request, engines, ledger, lambda _: EngineTurn(next(order), 2))


class Recorder(EchoEngine):
    """Remembers what it was asked; sees a stop string only in what it wrote itself, as real engines do."""

    def __init__(self, name="a", reply=STORY, **options):
        super().__init__(name, EchoOptions({"": reply}, **options))
        self.asked = []

    async def stream(self, request, meter):
        self.asked.append(request)
        gate = StopFilter(request.sampling.stop)
        plain = replace(request, sampling=replace(request.sampling, stop=()))
        async with aclosing(super().stream(plain, meter)) as pieces:
            async for piece in pieces:
                for shown in gate.push(replace(piece, finish=None)):
                    yield shown
                if gate.stopped:
                    break
        for shown in gate.flush():
            yield shown
        yield replace(piece, text="", tokens=(), finish="stop" if gate.stopped else piece.finish)


class Stubborn(Recorder):
    """Begins its reply anew in every turn."""

    def stream(self, request, meter):
        return super().stream(replace(request, prefix=""), meter)


class Scripted(Engine):
    """Gives the next of its turns, each a list of (text, tokens), and then ends the answer."""

    name, info, capabilities = "scripted", ModelInfo(), frozenset({"prefix"})

    def __init__(self, *turns):
        self.turns = list(turns)

    async def stream(self, request, meter):
        for text, tokens in self.turns.pop(0) if self.turns else []:
            yield Piece(text, self.name, meter.purpose, tokens)
        yield Piece("", self.name, meter.purpose, (), "length" if self.turns else "stop")


def collect(strategy, engines, sampling=None, prompt=None, prefix=""):
    request = Request(prompt or Text("Count."), sampling or Sampling(), prefix)
    ledger, pieces = UsageLedger(), []

    async def read():
        async with aclosing(strategy.run(request, engines, ledger)) as stream:
            async for piece in stream:
                pieces.append(piece)

    asyncio.run(asyncio.wait_for(read(), 20))
    return fold(pieces, ledger, 0.0), pieces


def test_turns_are_one_text_with_one_finish_and_an_author_each():
    result, pieces = collect(Alternate(), [Recorder("a"), Recorder("b")])
    assert result.text == STORY
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    shown = " → ".join(f"[R{piece.round:02}:{piece.engine}]" for piece in result.pieces)
    assert shown == "[R01:a] → [R02:b] → [R03:a] → [R04:b] → [R05:a]"
    assert result.pieces[1].text == " three four"
    assert result.cost.completion_tokens == 10


def test_rounds_of_a_lone_engine_stay_apart():
    result, _ = collect(Alternate(), [Recorder()])
    assert [piece.round for piece in result.pieces] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("request_limit", "own"), [(5, None), (512, 5), (5, 7)])
def test_the_limit_of_tokens_is_the_whole_answers(request_limit, own):
    engines = [Recorder("a"), Recorder("b")]
    result, _ = collect(Alternate(max_tokens=own), engines, Sampling(max_tokens=request_limit))
    assert result.text == "one two three four five"
    assert result.finish == "length"
    assert [ask.sampling.max_tokens for ask in (*engines[0].asked, *engines[1].asked)] == [2, 1, 2]
    assert result.cost.completion_tokens == 5


def test_a_prefix_is_continued_and_not_repeated():
    first = Recorder("a")
    result, _ = collect(Alternate(), [first, Recorder("b")], prefix="one two three")
    assert result.text == " four five six seven eight nine ten"
    assert first.asked[1].prefix == "one two three four five six seven"
    assert [turn.text for turn in first.asked[1].written] == [" four five", " six seven"]


def test_a_stop_string_may_span_turns_and_none_of_it_is_shown():
    result, pieces = collect(Alternate(), [Recorder("a"), Recorder("b")], Sampling(stop=("two three four",)))
    assert "".join(piece.text for piece in pieces) == result.text == "one "
    assert result.finish == "stop"
    assert result.cost.completion_tokens == 4  # what was written and is not shown is recorded


@settings(max_examples=200, deadline=None)
@example(words=["a", "b", "b", "a"], stop=" b ", length=2)  # begins in one turn, and again in the next
@given(
    words=st.lists(st.sampled_from(["a", "b", "ab", "aab"]), min_size=1, max_size=14),
    stop=st.text("ab ", min_size=1, max_size=6),
    length=st.integers(1, 5),
)
def test_turns_stop_where_one_engine_would(words, stop, length):
    text = " ".join(words)

    class Turns(Segments):
        def run(self, request, engines, ledger):
            return self.written(
                request, engines, ledger, lambda so_far: EngineTurn(engines[so_far.rounds % 2], length)
            )

    result, pieces = collect(
        Turns(max_repeat=0), [Recorder("a", text), Recorder("b", text)], Sampling(stop=(stop, "none of this"))
    )
    assert result.text == text.split(stop)[0]
    assert result.finish == "stop"
    assert all("".join(token.text for token in piece.tokens) == piece.text for piece in pieces)


def test_what_a_stop_string_held_back_is_shown_if_it_does_not_come():
    result, _ = collect(Alternate(max_rounds=2), [Recorder("a")], Sampling(stop=("four six",)))
    assert result.text == "one two three four"
    assert result.finish == "length"


def test_every_turn_has_a_seed_of_its_own_and_the_same_in_every_run():
    def seeds(seed):
        engines = [Recorder("a"), Recorder("b")]
        collect(Alternate(), engines, Sampling(seed=seed, temperature=1.0))
        return [ask.sampling.seed for engine in engines for ask in engine.asked]

    assert len(set(seeds(7))) == 5
    assert seeds(7) == seeds(7)
    assert not set(seeds(7)) & set(seeds(8))
    assert set(seeds(None)) == {None}


def test_the_end_of_text_is_barred_for_the_whole_answers_first_tokens():
    first, second = Recorder("a"), Recorder("b")
    collect(Alternate(), [first, second], Sampling(min_tokens=3))
    assert [ask.sampling.min_tokens for ask in first.asked] == [3, 0, 0]
    assert [ask.sampling.min_tokens for ask in second.asked] == [1, 0]


@pytest.mark.parametrize(("limit", "turns"), [(3, 3), (1, 1), (0, 6)])
def test_identical_turns_end_the_answer(limit, turns):
    strategy = Alternate(max_repeat=limit)
    result, _ = collect(strategy, [Stubborn("a"), Stubborn("b")], Sampling(max_tokens=12))
    assert result.text == "one two" * turns
    assert result.finish == "length"


def test_identical_turns_must_follow_each_other():
    other = Stubborn("b", "six seven eight")
    result, _ = collect(Alternate(), [Stubborn("a"), other], Sampling(max_tokens=16))
    assert result.text == "one twosix seven" * 4


def test_ignoring_the_end_of_text_ignores_repeats():
    result, _ = collect(Alternate(), [Stubborn("a")], Sampling(max_tokens=12, ignore_eos=True))
    assert result.text == "one two" * 6


def test_rounds_are_bounded():
    result, _ = collect(Alternate(max_rounds=3), [Recorder("a"), Recorder("b")])
    assert result.text == "one two three four five six"
    assert result.finish == "length"


def test_a_turn_without_text_goes_on_and_one_that_ends_the_text_does_not():
    hidden = (Token("", 3),)
    engine = Scripted([("a", ()), ("", hidden)], [("", hidden)], [("b", ())], [])
    result, _ = collect(Alternate(), [engine])
    assert result.text == "ab"
    assert result.finish == "stop"
    assert not engine.turns


def test_a_piece_without_tokens_counts_as_one():
    engine = Scripted([("a", ())], [("b", ())], [("c", ())], [("d", ())])
    result, _ = collect(Alternate(), [engine], Sampling(max_tokens=3))
    assert result.text == "abc"
    assert result.finish == "length"


def test_a_turn_ends_behind_a_mark_that_spans_turns():
    class Marked(Segments):
        def run(self, request, engines, ledger):
            def following(so_far: SoFar) -> EngineTurn:
                return EngineTurn(engines["five six" in so_far.text], 5, ("five six",))

            return self.written(request, engines, ledger, following)

    result, _ = collect(Marked(), [Recorder("a"), Recorder("b")])
    assert [(piece.engine, piece.text) for piece in result.pieces] == [
        ("a", "one two three four five"),
        ("a", " six"),
        ("b", " seven eight nine ten"),
    ]


def test_closing_stops_the_writer_and_records_it():
    engines, ledger = [EchoEngine(name, EchoOptions({"": STORY})) for name in "ab"], UsageLedger()

    async def read():
        stream = Alternate().run(Request(Text("Count.")), engines, ledger)
        async with aclosing(stream):
            for _ in range(3):
                await anext(stream)

    asyncio.run(read())
    assert [engine.written for engine in engines] == [2, 1]
    assert [(call.engine, call.cost.completion_tokens) for call in ledger.calls] == [("a", 2), ("b", 1)]


def test_a_failure_is_not_an_answer_and_is_recorded():
    ledger, engines = UsageLedger(), [Recorder("a"), Recorder("b", fail_after=1)]

    async def read():
        return [piece async for piece in Alternate().run(Request(Text("Count.")), engines, ledger)]

    with pytest.raises(EngineError, match="b failed"):
        asyncio.run(read())
    assert [call.cost.completion_tokens for call in ledger.calls] == [2, 1]


def test_what_cannot_fit_is_refused_before_anything_is_written():
    engines = [Recorder("a"), Recorder("b", context=8)]
    with pytest.raises(ContextOverflowError, match=r"1 in the prompt, 8 in the completion.*'b'"):
        collect(Alternate(), engines, Sampling(max_tokens=8))
    assert not engines[0].asked
    assert collect(Alternate(), engines, Sampling(max_tokens=7))[0].finish == "length"


def test_a_text_that_is_longer_in_another_tokenizer_ends_at_its_context():
    class Wordy(Recorder):
        def count(self, request):
            return 2 * super().count(request)

    engines = [Recorder("a"), Wordy("b", context=10)]
    result, _ = collect(Alternate(), engines, Sampling(max_tokens=8))
    assert result.text == "one two three four five six"  # "b" reads 1 + 6 words as 14 tokens
    assert result.finish == "length"


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        (TokenIds((1, 2)), Sampling()),
        (Text("Count."), Sampling(logit_bias={1: 2.0})),
        (Text("Count."), Sampling(stop_token_ids=(1,))),
        (Text("Count."), Sampling(max_tokens=0)),
    ],
)
def test_requests_that_cannot_be_shared_are_refused(prompt, sampling):
    engines = [Recorder("a"), Recorder("b")]
    with pytest.raises(RequestError):
        collect(Alternate(), engines, sampling, prompt)
    assert not engines[0].asked


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"max_rounds": 0}, {"max_repeat": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}.*greater than or equal to"):
        AsyncEnsemble([Recorder("a"), Recorder("b")], All(), Alternate(**options))


def test_requests_that_run_at_the_same_time_do_not_meet():
    engines = [Recorder("a", delay=0.001), Recorder("b", delay=0.001)]
    hub = AsyncEnsemble(engines, All(), Alternate())

    async def both():
        return await asyncio.gather(*(hub.generate("Count.") for _ in range(3)))

    assert [result.text for result in asyncio.run(both())] == [STORY] * 3


def test_a_piece_is_cut_with_its_tokens():
    gate = StopFilter(("X",))
    piece = Piece("abcX", "a", "answer", (Token("ab"), Token("cX")))
    (cut,) = gate.push(piece)
    assert (cut.text, [token.text for token in cut.tokens], gate.stopped) == ("abc", ["ab", "c"], True)


def test_repeats_are_counted_from_the_latest_turn_back():
    so_far = SoFar("")
    counts = []
    for text in ("a", "b", "b", "", "", "b"):
        so_far.turns.append(Piece(text, "a", "answer"))
        counts.append(so_far.repeats)
    assert counts == [1, 1, 2, 1, 2, 1]
    assert all(later <= earlier + 1 for earlier, later in pairwise(counts))
