"""`every: safe`: which positions are ensembled, which are left to the first model, and what is read how."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_token_level import PIECES, answer, wild
from toy import END, scripted

from ensemblehub.ensemble_methods.output_aggregation.distribution import DistributionMixture
from ensemblehub.ensemble_methods.output_aggregation.gac import GaC
from ensemblehub.errors import ConfigError


def parts(result):
    return [(piece.engine, piece.text) for piece in result.pieces if piece.text]


def test_a_token_inside_anothers_token_is_the_first_models():
    """The second model has 12 as one token and wants b behind a; at a1 and at a12 it has no opinion."""
    first = scripted("one", ["1", "2", "a", "b", END], "a", "1", "2", "a")
    second = scripted("two", ["12", "1", "2", "a", "b", END], "a", "b")
    strategy = {"weights": {"two": 9}}
    assert answer((first, second), GaC(**strategy)).text.startswith("ab")
    result = answer((first, second), GaC(every="safe", **strategy))
    assert parts(result) == [("one", "a12"), ("one+two", "a")]  # (.9 + 9 / 6) / 10 of a is disputed
    # it read a, 12 and the end of text where they stand, never 1 or 2
    assert [ids for ids, _ in second.decoders[1].calls] == [[], [3, 0, 3]]


@pytest.mark.parametrize(
    ("second", "author", "text"),
    [
        ([0.8, 0.1, 0.1], "one", "a"),  # both say a
        ([0.35, 0.55, 0.1], "one", "a"),  # .525 on average
        ([0.25, 0.65, 0.1], "one+two", "a"),  # .475 on average, and still the most probable
        ([0.05, 0.85, 0.1], "one+two", "b"),  # .375 against .525
    ],
)
def test_a_disputed_token_is_ensembled_where_its_mean_probability_is_at_most_one_half(second, author, text):
    first = scripted("one", ["a", "b", END], "a", sure=0.7)
    first.rule = lambda ids: [0.7, 0.2, 0.1] if not ids else [0.0, 0.0, 1.0]
    two = scripted("two", ["a", "b", END], "a")
    two.rule = lambda ids: second if not ids else [0.0, 0.0, 1.0]
    assert parts(answer((first, two), GaC(every="safe"))) == [(author, text)]


def test_the_last_drafted_token_waits_for_what_follows():
    """With drafts of two tokens the 1 is the last of one; alone it would be a whole token to the second model."""
    first = scripted("one", ["1", "2", "a", "b", END], "a", "1", "2", "a")
    second = scripted("two", ["12", "1", "2", "a", "b", END], "a", "b")
    assert answer((first, second), GaC(every="safe", draft=2, weights={"two": 9})).text == "a12a"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 9))
def test_with_one_vocabulary_and_the_mean_it_writes_what_every_token_writes(seed, draft):
    rng = random.Random(seed)
    hub = [wild(str(n), rng, ["a", "b", "c", " "]) for n in range(2)]
    for engine in hub:
        engine.vocabulary = hub[0].vocabulary
    every, some = answer(hub, GaC()), answer(hub, GaC(every="safe", draft=draft))
    assert (some.text, some.finish) == (every.text, every.finish)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 9), st.sampled_from([1, 12, 30]))
def test_any_vocabularies_give_one_text_that_all_members_hold(seed, draft, tokens):
    rng = random.Random(seed)
    hub = [wild(str(n), rng, ["a", "b", "c", " ", *rng.sample(PIECES[4:], 5)]) for n in range(3)]
    result = answer(hub, DistributionMixture(every="safe", draft=draft), max_tokens=tokens)
    assert result.finish in ("stop", "length")
    assert 1 <= sum(len(piece.tokens) for piece in result.pieces) <= tokens
    assert all(decoder.closed for engine in hub for decoder in engine.decoders)
    again = answer(hub, DistributionMixture(every="safe", draft=draft), max_tokens=tokens)
    assert again.text == result.text


def test_a_gate_and_safe_are_not_both():
    hub = [scripted("one", ["a", END], "a"), scripted("two", ["a", END], "a")]
    with pytest.raises(ConfigError, match="both decide"):
        answer(hub, GaC(gate="two", every="safe"))
