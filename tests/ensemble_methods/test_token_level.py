"""Token-level ensembling on models worked out by hand: mixtures, re-tokenised text, drafts, gates and endings."""

import asyncio
import dataclasses
import math
import random
from contextlib import aclosing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import END, ToyEngine, fixed, scripted

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods import mixing
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.distribution import DistributionMixture
from ensemblehub.ensemble_methods.output_aggregation.gac import GaC
from ensemblehub.ensemble_methods.union_vocabulary import union_of
from ensemblehub.errors import CapabilityError, ConfigError, ContextOverflowError, EngineError, RequestError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Piece, Request, Sampling, Text

# On paper.  First model: "a" .5, "ab" .3, "b" .1, end .1.  Second: "a" .2, "b" .5, "c" .2, end .1.
FIRST = (["a", "ab", "b", END], [0.5, 0.3, 0.1, 0.1])
SECOND = (["c", END, "b", "a"], [0.2, 0.1, 0.5, 0.2])
GEOMETRIC = math.sqrt(0.5 * 0.2) + math.sqrt(0.1 * 0.5) + 0.1
SURE = [math.exp(sum(p * math.log(p) for p in line)) for _, line in (FIRST, SECOND)]
CASES = [
    (GaC(), {"a": 0.35, "ab": 0.15, "b": 0.3, "c": 0.1, "": 0.1}),
    (GaC(weights={"one": 3}), {"a": 0.425, "ab": 0.225, "b": 0.2, "c": 0.05, "": 0.1}),
    (GaC(method="max"), {"a": 0.5 / 1.6, "ab": 0.3 / 1.6, "b": 0.5 / 1.6, "c": 0.2 / 1.6, "": 0.1 / 1.6}),
    (
        GaC(method="max", weights={"two": 0.5}),
        {"a": 0.5 / 1.25, "ab": 0.3 / 1.25, "b": 0.25 / 1.25, "c": 0.08, "": 0.08},
    ),
    (
        GaC(method="weighted"),
        {
            token: (SURE[0] * first + SURE[1] * second) / sum(SURE)
            for token, first, second in [
                ("a", 0.5, 0.2),
                ("ab", 0.3, 0),
                ("b", 0.1, 0.5),
                ("c", 0, 0.2),
                ("", 0.1, 0.1),
            ]
        },
    ),
    (DistributionMixture(), {"a": 0.35, "ab": 0.15, "b": 0.3, "c": 0.1, "": 0.1}),
    (
        DistributionMixture(method="max"),
        {"a": 0.5 / 1.6, "ab": 0.3 / 1.6, "b": 0.5 / 1.6, "c": 0.2 / 1.6, "": 0.1 / 1.6},
    ),
    (
        DistributionMixture(method="geometric"),
        {
            "a": math.sqrt(0.1) / GEOMETRIC,
            "ab": 0,
            "b": math.sqrt(0.05) / GEOMETRIC,
            "c": 0,
            "": 0.1 / GEOMETRIC,
        },
    ),
    (
        DistributionMixture(top_k=1),
        {"a": (0.5 / 0.6 + 0.2 / 0.7) / 2, "ab": 0, "b": (0.1 / 0.6 + 0.5 / 0.7) / 2, "c": 0, "": 0},
    ),
]


def engines(first=FIRST, second=SECOND):
    return ToyEngine("one", first[0], fixed(first[1])), ToyEngine("two", second[0], fixed(second[1]))


def answer(hub, method, prefix="", **sampling):
    request = Request(Text("?"), Sampling(**{"max_tokens": 20} | sampling), prefix)
    return asyncio.run(AsyncEnsemble(hub, All(), method).generate(request))


@pytest.mark.parametrize(("method", "expected"), CASES)
def test_two_vocabularies_on_paper(method, expected):
    """The mixture as it is mixed, and as the logprob of the token that is written."""
    seen = {}

    class Spy(type(method)):
        def mix(self, members, parts):
            mixed = super().mix(members, parts)
            tokens = members[0].union.vocabulary.tokens
            seen.update({token.decode(): float(p) for token, p in zip(tokens, mixed, strict=True)})
            return mixed

    options = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    result = answer(engines(), Spy(**options), max_tokens=1)
    assert seen == pytest.approx(expected, abs=1e-6)
    (piece,) = result.pieces
    best = max(expected.values())
    assert expected[piece.text] == pytest.approx(best)
    assert math.exp(piece.tokens[0].logprob) == pytest.approx(best, abs=1e-6)
    assert piece.engine == "one+two"


def test_a_token_that_one_lacks_has_the_probability_of_its_first_token_there():
    """UniTE: "ab" is the first's; the second would write it as "a", then "b"."""
    few = {}

    class Spy(DistributionMixture):
        def mix(self, members, parts):
            mixed = super().mix(members, parts)
            few.update(zip(members[0].union.vocabulary.tokens, mixed, strict=True))
            return mixed

    answer(engines(second=(["c", END, "b", "a"], [0.15, 0.1, 0.5, 0.25])), Spy(top_k=2), max_tokens=1)
    # among a, ab, b: first .5 .3 .1 of .9; second .25 .25 (of "a") .5 of 1
    assert few[b"a"] == pytest.approx((0.5 / 0.9 + 0.25) / 2, abs=1e-6)
    assert few[b"ab"] == pytest.approx((0.3 / 0.9 + 0.25) / 2, abs=1e-6)
    assert few[b"b"] == pytest.approx((0.1 / 0.9 + 0.5) / 2, abs=1e-6)
    assert few[b"c"] == few[b""] == 0


def test_one_vocabulary_is_mixed_id_by_id():
    tokens = ["a", "b", "<x>", END]
    first = ToyEngine("one", tokens, fixed([0.1, 0.2, 0.6, 0.1]), special=(2,), fingerprint="same")
    second = ToyEngine(
        "two", [*tokens, "padding"], fixed([0.1, 0.3, 0.5, 0.1, 0.0]), special=(2,), fingerprint="same"
    )
    result = answer((first, second), GaC(), max_tokens=2)
    assert [token.id for piece in result.pieces for token in piece.tokens] == [2, 2]  # a control of both
    assert result.text == ""
    assert math.exp(result.pieces[0].tokens[0].logprob) == pytest.approx(0.55, abs=1e-6)
    other = ToyEngine("two", [*tokens, "c"], fixed([0.1, 0.3, 0.5, 0.1, 0.0]), special=(2,))
    assert answer((first, other), GaC(), max_tokens=2).text == "bb"  # to different models it means nothing


def test_all_ends_are_one_entry_and_equal_spellings_add_up():
    first = ToyEngine("one", ["a", END, END], fixed([0.4, 0.3, 0.3]))
    second = ToyEngine("two", ["b", "a", "a", END], fixed([0.3, 0.25, 0.25, 0.2]))
    union = union_of([first.vocabulary, second.vocabulary], [3, 4])
    assert union.vocabulary.tokens == (b"a", b"b", b"")
    parts = [
        view.probabilities(np.log(engine.rule(())))
        for view, engine in zip(union.views, (first, second), strict=True)
    ]
    assert parts[0] == pytest.approx([0.4, 0, 0.6], abs=1e-6)
    assert parts[1] == pytest.approx([0.5, 0.3, 0.2], abs=1e-6)
    assert union.views[1].id_of(0) == 2
    result = answer((first, second), GaC(weights={"one": 3}))
    assert (result.text, result.finish) == ("", "stop")
    assert union_of([first.vocabulary, second.vocabulary], [3, 4]) is union  # made once


def test_chosen_text_that_retokenises_is_dropped_and_appended():
    """The first writes "ab", "cd"; the second holds "ab" as a+b, and then "abcd" as a+bc+d."""
    first = scripted("one", ["ab", "cd", END], "ab", "cd")
    second = scripted("two", ["a", "b", "bc", "d", END], "a", "b", "bc", sure=0.3)
    result = answer((first, second), GaC(weights={"one": 5}))
    assert (result.text, result.finish) == ("abcd", "stop")
    assert second.decoders[0].calls == [([], 0), ([0, 1], 0), ([2, 3], 1)]
    assert first.decoders[0].calls == [([], 0), ([0], 0), ([1], 0)]


def test_an_unfinished_character_waits_where_it_cannot_be_spelled():
    """The first writes "é" in two bytes; the second knows only the whole and sits out in between."""
    first = [b"\xc3", b"\xa9", b"!", END]
    member = ToyEngine(
        "one", first, fixed([0.9, 0, 0.05, 0.05], [0, 0.9, 0.05, 0.05], [0, 0, 0.9, 0.1], [0, 0, 0.1, 0.9])
    )
    two = ToyEngine("two", ["é", "!", END], fixed([0.1, 0.1, 0.8], [0, 0.6, 0.4], [0, 0.1, 0.9]))
    result = answer((member, two), GaC(weights={"one": 5}))
    assert result.text == "é!"
    assert [piece.engine for piece in result.pieces] == ["one+two", "one", "one+two"]
    assert two.decoders[0].calls == [([], 0), ([0], 0), ([1], 0)]
    tokens = [token for piece in result.pieces for token in piece.tokens]
    assert [token.text for token in tokens] == ["", "é", "!", ""]
    assert [token.part for token in tokens] == [b"\xc3", b"\xa9", None, None]


def test_alternatives_of_a_mixture_keep_the_bytes_of_parts_of_characters():
    member = ToyEngine(
        "one", [b"\xc3", b"\xa9", "a", END], fixed([0.5, 0.3, 0.2, 0], [0, 1, 0, 0], [0, 0, 0, 1])
    )
    two = ToyEngine("two", ["é", b"\xc3", "a", END], fixed([0.1, 0.6, 0.3, 0], [0, 0, 0, 1], [0, 0, 0, 1]))
    first = answer((member, two), GaC(), max_tokens=3, top_logprobs=9).pieces[0].tokens[0]
    assert {other.part or other.text for other in first.top} == {b"\xc3", b"\xa9", "a", "é"}


def test_bytes_that_are_no_text_are_spelled_byte_by_byte():
    first = ToyEngine("one", [b"\xff\xfe", "x", END], fixed([1, 0, 0], [0, 1, 0], [0, 0, 1]))
    second = ToyEngine("two", [b"\xff", b"\xfe", "x", END], fixed([0.25] * 4))
    result = answer((first, second), GaC(weights={"one": 9}))
    assert result.text == "\ufffd\ufffdx"
    assert second.decoders[0].ids == [0, 1, 2]


def test_a_tokenizer_that_does_not_give_the_text_back_is_not_trusted():
    first = ToyEngine("one", ["ab", END], fixed([1, 0], [0, 1]))
    second = ToyEngine("two", ["a", "b", "x", END], fixed([0.25] * 4))
    open_ = second.decoder

    def decoder(request, meter):
        made = open_(request, meter)
        made.encode = lambda text: [2] * len(text)  # it normalises everything to x
        return made

    second.decoder = decoder
    assert answer((first, second), GaC(weights={"one": 9})).text == "ab"
    assert second.decoders[0].ids == [0, 1]


def wild(name, rng, pieces):
    """A model whose distributions are noise that depends on its ids, so that no two states are mistaken."""
    tokens = [*pieces, END]
    salt = rng.random()

    def rule(ids):
        line = np.exp(2.5 * np.random.default_rng(abs(hash((salt, ids)))).normal(size=len(tokens)))
        line[-1] *= 0.3
        return line / line.sum()

    return ToyEngine(name, tokens, rule)


PIECES = ["a", "b", "c", " ", "ab", "bc", " a", "abc", "ca", " b", "bb", b"\xc3", b"\xa9", "é"]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**9),
    st.integers(1, 9),
    st.sampled_from(["mean", "geometric", "max", "weighted", "unite"]),
)
def test_ensembling_disputed_tokens_only_writes_the_same_text(seed, draft, name):
    rng = random.Random(seed)
    count = rng.choice([2, 2, 3])
    letters = ["a", "b", "c", " "]
    hub = [wild(str(n), rng, [*letters, *rng.sample(PIECES[4:], 5)]) for n in range(count)]
    options = {"weights": {"0": rng.choice([1, 2.5])}}
    methods = {
        "mean": lambda **o: GaC(**o),
        "weighted": lambda **o: GaC(method="weighted", **o),
        "max": lambda **o: GaC(method="max", **o),
        "geometric": lambda **o: DistributionMixture(method="geometric", **o),
        "unite": lambda **o: DistributionMixture(top_k=3, **o),
    }
    tokens = rng.choice([1, 12, 30])
    every = answer(hub, methods[name](**options), max_tokens=tokens)
    some = answer(hub, methods[name](**options, every="disputed", draft=draft), max_tokens=tokens)
    assert (some.text, some.finish) == (every.text, every.finish)
    assert sum(len(piece.tokens) for piece in some.pieces) == sum(len(piece.tokens) for piece in every.pieces)
    for engine in hub:
        assert all(decoder.closed for decoder in engine.decoders)
        if (
            "\ufffd" not in every.text
        ):  # what each was stepped with is the answer, but for its last characters
            assert every.text.encode().startswith(engine.decoders[0].text.rstrip(b"\xc3"))


@given(st.integers(0, 10**9))
@settings(max_examples=30, deadline=None)
def test_sampling_is_the_seeds(seed):
    rng = random.Random(seed)
    hub = [wild(str(n), rng, ["a", "b", "c", " ", *rng.sample(PIECES[4:11], 3)]) for n in range(2)]
    warm = {"temperature": 1.5, "top_p": 0.95, "top_k": 6, "seed": seed, "max_tokens": 15}
    for method in (GaC(), GaC(every="disputed", draft=4), DistributionMixture(top_k=4)):
        assert answer(hub, method, **warm).text == answer(hub, method, **warm).text
    assert len({answer(hub, GaC(), **warm | {"seed": other}).text for other in range(8)}) > 1


def test_disputed_positions_only_are_mixed_and_the_others_read_drafts_in_one_pass():
    tokens = ["a", "b", "c", "d"]
    first = scripted("one", [*tokens, END], "a", "b", "c", "a")
    second = scripted("two", [*tokens, "e", END], "a", "b", "c", "a")
    result = answer((first, second), GaC(every="disputed", draft=8))
    assert result.text == "abca"
    assert {piece.engine for piece in result.pieces} == {"one"}
    assert second.decoders[0].calls == [([], 0), ([0, 1, 2, 0], 0)]
    other = scripted("two", [*tokens, "e", END], "a", "b", "d", sure=0.99)
    result = answer((first, other), GaC(every="disputed", draft=8, weights={"two": 9}))
    assert [(piece.engine, piece.text) for piece in result.pieces][:2] == [("one", "ab"), ("one+two", "d")]
    assert sum(drop for _, drop in first.decoders[1].calls) == 2  # the rest of its draft


def test_the_gate_writes_alone_while_it_is_sure():
    tokens = ["a", "b", END]
    first = ToyEngine("one", tokens, fixed([0.9, 0.1, 0], [0.8, 0.2, 0], [0.5, 0.4, 0.1], [0, 0.05, 0.95]))
    second = ToyEngine("two", [*tokens, "c"], fixed([0, 1, 0, 0]))
    result = answer((first, second), GaC(gate="one", threshold=0.7))
    assert result.text == "aab"
    assert [piece.engine for piece in result.pieces] == ["one", "one+two", "one"]
    assert second.decoders[0].calls == [([0, 0], 0)]  # asked once, and caught up in one pass


def test_weight_zero_is_not_asked():
    first, second = engines()
    assert answer((first, second), GaC(weights={"two": 0}), max_tokens=3).text == "aaa"
    assert not second.decoders
    assert (
        answer((first,), DistributionMixture(top_k=1), max_tokens=3).text == "aaa"
    )  # one engine decodes as it is


def test_endings():
    tokens = ["a", "b", "c", END]
    hub = scripted("one", tokens, "a", "b", "c", "a"), scripted("two", [*tokens, "d"], "a", "b", "c", "a")
    for every in ("token", "disputed"):
        method = GaC(every=every, draft=3)
        result = answer(hub, method)
        assert (result.text, result.finish) == ("abca", "stop")
        result = answer(hub, method, max_tokens=2)
        assert (result.text, result.finish) == ("ab", "length")
        result = answer(hub, method, stop=("bc",))
        assert (result.text, result.finish) == ("a", "stop")
        result = answer(hub, method, stop=("cb",), max_tokens=3)
        assert (result.text, result.finish) == ("abc", "length")  # what might have begun a stop string
        result = answer(hub, method, ignore_eos=True, max_tokens=9)
        assert (result.text[:4], len(result.text), result.finish) == ("abca", 9, "length")
        result = answer(hub, method, min_tokens=6)
        assert len(result.text) >= 6


def test_ignoring_the_end_where_nothing_else_is_possible():
    certain = ToyEngine("one", ["a", END], fixed([0.0, 1.0])), ToyEngine("two", ["b", END], fixed([0.0, 1.0]))
    with pytest.raises(EngineError, match="no token is left"):
        answer(certain, GaC(), ignore_eos=True)
    nearly = ToyEngine("one", ["a", END], fixed([1e-300, 1.0])), certain[1]  # no float32 probability
    assert answer(nearly, GaC(), max_tokens=2, ignore_eos=True).text == "aa"


async def early(hub, method, ledger):
    request = Request(Text("?"), Sampling(max_tokens=20))
    async with aclosing(AsyncEnsemble(hub, All(), method).stream(request, ledger)) as events:
        async for event in events:
            if isinstance(event, Piece):
                break


@pytest.mark.parametrize("every", ["token", "disputed"])
def test_closing_early_closes_and_records_every_decoder(every):
    hub, ledger = engines(), UsageLedger()
    asyncio.run(early(hub, GaC(every=every), ledger))
    assert [engine.decoders[0].closed for engine in hub] == [1, 1]
    assert {(line.engine, line.purpose) for line in ledger.usage.lines} == {
        ("one", "answer"),
        ("two", "answer"),
    }


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("every", ["token", "disputed"])
def test_a_failing_engine_is_an_error_and_all_is_recorded(failing, every):
    hub, ledger = engines(), UsageLedger()
    hub[failing].fail_at = 2

    async def main():
        async for _ in AsyncEnsemble(hub, All(), GaC(every=every, draft=2)).stream(
            Request(Text("?")), ledger
        ):
            pass

    with pytest.raises(EngineError, match=f"{hub[failing].name} failed"):
        asyncio.run(main())
    assert [engine.decoders[0].closed for engine in hub] == [1, 1]
    assert len(ledger.calls) == 2


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (GaC(weights={"tow": 1}), "did you mean 'two'"),
        (GaC(weights={"two": -1}), "weights.two.*greater than or equal to 0 .got -1"),
        (GaC(weights={"one": 0, "two": 0}), "all weights are 0"),
        (GaC(draft=0), "draft.*greater than or equal to 1"),
        (GaC(gate="tow"), "gac: gate: unknown engine 'tow'; did you mean 'two'"),
        (GaC(gate="two", weights={"two": 0}), "gate 'two' has weight 0"),
        (GaC(gate="two", every="disputed"), "both decide"),
        (GaC(gate="two", threshold=2.0), "threshold.*less than or equal to 1"),
        (DistributionMixture(top_k=-1), "top_k.*greater than or equal to 0"),
    ],
)
def test_options_that_cannot_work_are_refused(method, message):
    with pytest.raises(ConfigError, match=message):
        AsyncEnsemble(engines(), All(), method)


def test_requests_and_engines_that_cannot_work_are_refused():
    for name, value in {
        "logit_bias": {1: 1.0},
        "presence_penalty": 1.0,
        "stop_token_ids": (1,),
        "max_tokens": 0,
    }.items():
        with pytest.raises(RequestError, match=name):
            answer(engines(), GaC(), **{name: value})
    first, second = ToyEngine("one", *FIRST[:1], fixed(FIRST[1]), context=10), engines()[1]
    assert answer((first, second), GaC(), max_tokens=7).finish == "length"
    with pytest.raises(ContextOverflowError, match="maximum context length is 10 tokens"):
        answer((first, second), GaC(), max_tokens=8)
    cut = answer((first, second), GaC(), max_tokens=8, fit_context=True)
    assert (cut.finish, sum(len(piece.tokens) for piece in cut.pieces)) == ("length", 7)

    class Mute(EchoEngine):
        capabilities = frozenset({"prefix"})

    with pytest.raises(CapabilityError, match="gac needs decode of engine 'mute'"):
        AsyncEnsemble([first, Mute("mute", EchoOptions())], All(), GaC())


def test_choosing_from_a_mixture():
    mixed = np.array([0.1, 0.4, 0.0, 0.3, 0.2], np.float32)

    def drawn(**sampling):
        return [
            mixing.choose(mixed, Sampling(temperature=1.0, **sampling), u) for u in (0.0, 0.2, 0.55, 0.95)
        ]

    assert mixing.choose(mixed, Sampling(), 0.99) == 1
    assert drawn() == [0, 1, 3, 4]  # cumulated .1 .5 .5 .8 1
    assert drawn(top_k=2) == [1, 1, 1, 3]  # .4 .3: cumulated .571 1
    assert drawn(top_p=0.75) == [1, 1, 3, 4]  # .4 .3 .2 : cumulated .444 .778 1
    assert drawn(top_p=0.01) == [1, 1, 1, 1]
    assert drawn(min_p=0.6) == [1, 1, 1, 3]  # at least .24: .4 .3
    assert drawn(min_p=0.4, top_p=0.7) == [1, 1, 1, 3]  # .4 .3 .2, of which .4 .3 are 78 %
    cold = [mixing.choose(mixed, Sampling(temperature=0.5), u) for u in (0.03, 0.5, 0.6, 0.99)]
    assert cold == [0, 1, 3, 4]  # squares .01 .16 .09 .04 of .3: cumulated .033 .567 .867 1
