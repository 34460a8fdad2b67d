"""Turns on the hf engine: each engine computes each token once, and continues its own tokens."""

import asyncio

import pytest

pytest.importorskip("torch")

from hf_bench import make_tokenizer, run

from ensemblehub import builtin
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.output_aggregation.loop import Loop
from ensemblehub.ensemble_methods.turns import EngineTurn, Segments
from ensemblehub.generators.hf.engine import HFEngine, HFOptions
from ensemblehub.generators.text.rendering import Renderer
from ensemblehub.schema import Chat, Message, Piece, Request, Sampling, Text, Token

QUESTION = Chat((Message("user", "There are 3 mugs and twice as many cups. How many cups are there?"),))


class Chunks(Segments):
    """The first engine alone, some tokens at a time."""

    def run(self, request, engines, ledger):
        return self.written(request, engines[:1], ledger, lambda _: EngineTurn(engines[0], 7))


def write(strategy, paths, request):
    """Pieces, ledger and engines."""

    async def read():
        engines = [HFEngine(name, HFOptions(path, device="cpu")) for name, path in paths.items()]
        await asyncio.gather(*(engine.load() for engine in engines))
        ledger = UsageLedger()
        try:
            pieces = [piece async for piece in strategy.run(request, engines, ledger)]
        finally:
            await asyncio.gather(*(engine.close() for engine in engines))
        return pieces, ledger, engines[0].count(request)

    return run(read())


def computed(calls):
    """Tokens that went through a model: those read and not cached, and all written but each turn's last."""
    costs = [call.cost for call in calls]
    return sum(cost.prompt_tokens - cost.cached_tokens + cost.completion_tokens - 1 for cost in costs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_engine_computes_each_token_once(qwen, llama, temperature):
    """Random models write tokens that no tokenizer would, and ends of text in the middle."""
    request = Request(
        Text("the quick brown fox"), Sampling(320, temperature=temperature, seed=1, ignore_eos=True)
    )
    pieces, ledger, _ = write(Loop(max_new_tokens_per_round=32), {"a": qwen, "b": llama}, request)
    assert sum(len(piece.tokens) for piece in pieces) == 320
    assert len(ledger.calls) == 10
    for name in "ab":
        own = [call for call in ledger.calls if call.engine == name]
        length = own[-1].cost.prompt_tokens + own[-1].cost.completion_tokens
        again = computed(own) - (length - 1)
        assert 0 <= again <= 3 * len(own)  # no more than a character cut at the end of a turn
        assert all(call.cost.cached_tokens for call in own[1:])


def test_chunks_of_one_engine_are_what_it_writes_in_one_go():
    paths = {"mentor": builtin.resolve("builtin:mentor")}
    request = Request(QUESTION, Sampling(150, ignore_eos=True))  # beyond its end of text
    chunks, ledger, prompt = write(Chunks(), paths, request)
    whole, _, _ = write(Loop(), paths, request)
    assert [token.id for piece in chunks for token in piece.tokens] == [
        token.id for piece in whole for token in piece.tokens
    ]
    assert "".join(piece.text for piece in chunks) == "".join(piece.text for piece in whole)
    assert computed(ledger.calls) == prompt + 150 - 1


@pytest.fixture(scope="module")
def renderer():
    return Renderer(make_tokenizer())


def turns(*parts):
    return tuple(
        Piece("".join(text for text, _ in tokens), name, "answer", tuple(Token(*token) for token in tokens))
        for name, tokens in parts
    )


def rendered(renderer, written, prefix=None, author="me"):
    text = "".join(turn.text for turn in written) if prefix is None else prefix
    return renderer(Request(Text("fox"), prefix=text, written=written), author)


def test_own_tokens_are_kept_and_those_of_others_are_read(renderer):
    letters = [(letter, renderer.inside(letter)[0]) for letter in "the"]
    assert len(renderer.inside("the")) < 3
    written = turns(("me", letters), ("you", [(" lazy dogs", 7)]), ("me", letters))
    head, own = list(renderer.inside("fox")), [index for _, index in letters]
    seen = rendered(renderer, written)
    assert list(seen.ids) == [*head, *own, *renderer.inside(" lazy dogs"), *own]
    assert len(seen.origins) == len(seen.ids)
    answer = [origin for origin in seen.origins if origin.message == 1]
    assert "".join(origin.text for origin in answer) == "the lazy dogsthe"
    assert (answer[-1].start, answer[-1].end) == (15, 16)
    assert list(rendered(renderer, written, author="you").ids)[: len(head) + 1] != [*head, own[0]]


def test_a_given_prefix_stands_before_the_turns(renderer):
    written = turns(("me", [("o", renderer.inside("o")[0])]))
    seen = rendered(renderer, written, prefix=" jumpso")
    assert seen.ids[:-1] == renderer(Request(Text("fox"), prefix=" jumps")).ids
    assert seen.ids[-1] == renderer.inside("o")[0]
    assert (seen.origins[-1].start, seen.origins[-1].end) == (6, 7)


@pytest.mark.parametrize("prefix", ["something else", ""])
def test_turns_that_are_not_the_end_of_the_prefix_do_not_count(renderer, prefix):
    seen = rendered(renderer, turns(("me", [("o", renderer.inside("o")[0])])), prefix=prefix)
    assert seen == renderer(Request(Text("fox"), prefix=prefix))


def test_a_character_cut_at_the_end_of_a_turn_is_left_out_and_an_end_of_text_is_not(renderer):
    first, second = renderer.inside("é")
    o, end = renderer.inside("o")[0], renderer.tokenizer.eos_token_id
    whole = turns(
        ("me", [("o", o), ("", end)]), ("me", [("", first), ("é", second)]), ("me", [("o", o), ("", first)])
    )
    assert list(rendered(renderer, whole).ids[1:]) == [o, end, first, second, o]


def test_tokens_without_ids_are_read_as_text(renderer):
    written = turns(("me", [(" la", None), ("zy", None)]))
    assert list(rendered(renderer, written).ids)[1:] == renderer.inside(" lazy")


def test_sixteen_turns_of_the_builtin_pair_cost_no_more_than_each_reading_all_of_it_once():
    paths = {name: builtin.resolve(f"builtin:{name}") for name in ("mentor", "intern")}
    pieces, ledger, prompt = write(
        Loop(max_new_tokens_per_round=64), paths, Request(QUESTION, Sampling(1024, ignore_eos=True))
    )
    assert sum(len(piece.tokens) for piece in pieces) == 1024
    assert len(ledger.calls) == 16
    assert computed(ledger.calls) <= 1.05 * 2 * (prompt + 1024)
