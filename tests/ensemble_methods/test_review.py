"""`review`: what the large model leaves, what it writes anew, and what either costs."""

import asyncio
import math
from contextlib import aclosing

import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.review import Review, behind
from ensemblehub.errors import CapabilityError, ConfigError, EngineError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Message, Piece, Request, Sampling, Scored, ScoredToken, Text, Token

CHAT = Chat((Message("system", "Be brief."), Message("user", "What is 2 + 2 + 1?")))
DRAFT = "2 + 2 = 4\n4 + 1 = 6\nso 6\n"


class Recorder(EchoEngine):
    def __init__(self, name, reply, parameters, **options):
        super().__init__(name, EchoOptions({"": reply}, parameters=parameters, **options))
        self.asked = []

    def stream(self, request, meter):
        self.asked.append(request)
        return super().stream(request, meter)


class Reader(Recorder):
    """Finds every token as likely as it is given for the line, and continues with its own reply."""

    lines = (0.9, 0.4, 0.9)

    async def score(self, request, meter):
        meter.record(self.name, self.info, prompt_tokens=5)
        message = len(request.prompt.messages) if isinstance(request.prompt, Chat) else 1
        tokens, start = [ScoredToken("?", None, None, None, 0, 0, 1)], 0
        for line, chance in zip(request.prefix.splitlines(keepends=True), self.lines, strict=False):
            for word in line.split(" "):
                tokens.append(ScoredToken(word, None, math.log(chance), 1.0, message, start, start + 1))
                start += len(word) + 1
            start = start - 1
        return Scored(tuple(tokens))

    def _reply(self, request):
        return super()._reply(Request(request.prompt, request.sampling))


class Blind(Recorder):
    capabilities = frozenset({"logprobs"})


def answer(strategy, reply, kind=Recorder, request=None, **options):
    engines = [kind("big", reply, 9), Recorder("tiny", DRAFT, 1, **options)]
    request = request or Request(CHAT, Sampling(max_tokens=40, stop=("!",)))
    return asyncio.run(AsyncEnsemble(engines, All(), strategy).generate(request)), engines


def costs(result):
    return {(line.engine, line.purpose): line.cost for line in result.usage.lines}


@pytest.mark.parametrize("reply", ["OK", "ok.", "**OK**\n"])
def test_an_answer_that_the_large_model_agrees_with_is_given_as_it_is(reply):
    result, (big, tiny) = answer(Review(), reply)
    assert (result.text, result.finish) == (DRAFT, "stop")
    assert [piece.engine for piece in result.pieces] == ["tiny"]
    assert costs(result)["big", "answer"].completion_tokens == len(reply.split()) + ("\n" in reply)
    assert costs(result)["tiny", "propose"].discarded_tokens == 0
    shown = big.asked[0].prompt.messages[-1].content
    assert "numbered:\n1: 2 + 2 = 4\n2: 4 + 1 = 6\n3: so 6\n" in shown
    assert shown.startswith("What is 2 + 2 + 1?")
    assert big.asked[0].prompt.messages[0] == CHAT.messages[0]
    assert big.asked[0].sampling.stop == ()
    assert tiny.asked[0].prompt == CHAT


@pytest.mark.parametrize("opening", ["2: ", "Line 2:\n", "2:", " 2:\n \n"])
def test_it_writes_anew_from_the_line_it_objects_to(opening):
    result, _ = answer(Review(), opening + "4 + 1 = 5\nso 5")
    assert (result.text, result.finish) == ("2 + 2 = 4\n4 + 1 = 5\nso 5", "stop")
    parts = [(piece.engine, piece.text, piece.round) for piece in result.pieces if piece.text]
    assert parts == [("tiny", "2 + 2 = 4\n", 1), ("big", "4 + 1 = 5\nso 5", 2)]
    # "2", " +", " 2", " =", " 4" stay; the line break is a part of the next word
    assert (
        costs(result)["tiny", "propose"].completion_tokens - 5
        == costs(result)["tiny", "propose"].discarded_tokens
    )


def test_a_reply_of_no_known_form_is_the_answer():
    result, _ = answer(Review(), "I should rather say that it is 5")
    assert result.text == "I should rather say that it is 5"
    assert costs(result)["tiny", "propose"].discarded_tokens == len(DRAFT.split()) + 1
    assert answer(Review(), "5")[0].text == "5"


@pytest.mark.parametrize(
    "reply",
    [
        "0.25 is the answer",
        "3.5 metres",
        "42.",
        "2. So five it is",
        "2) So five it is",
        "0: so 5",
        "4: and that is all",
        "12:30",
        "OK, but line 2 is wrong. 2: so 5",
        "okay then, five",
    ],
)
def test_a_number_without_the_colon_of_a_line_of_the_draft_is_a_part_of_the_answer(reply):
    result, _ = answer(Review(), reply)
    assert (result.text, result.finish) == (reply, "stop")
    assert costs(result)["tiny", "propose"].discarded_tokens == len(DRAFT.split()) + 1


@pytest.mark.parametrize("opening", ["2: ", "2:\n", "2: \n"])
def test_the_indentation_of_the_first_line_written_anew_stays(opening):
    draft = "def f():\n    return 1\n"
    engines = [Recorder("big", opening + "    return 2\n", 9), Recorder("tiny", draft, 1)]
    ensemble = AsyncEnsemble(engines, All(), Review())
    result = asyncio.run(ensemble.generate(Request(CHAT, Sampling(max_tokens=40))))
    assert result.text == "def f():\n    return 2\n"


@pytest.mark.parametrize(
    ("reply", "kept", "written"),
    [
        ("2: 4 + 1 = 5\nso 5", ["2", " +", " 2", " =", " 4"], ["4", " +", " 1", " =", " 5", "\nso", " 5"]),
        ("Line 2:\n4 + 1", ["2", " +", " 2", " =", " 4"], ["4", " +", " 1"]),
        ("1: five", [], ["five"]),
        ("1:", [], []),
        ("I say that it is 5 at last", [], ["I", " say", " that", " it", " is", " 5", " at", " last"]),
        ("five", [], ["five"]),
    ],
)
def test_its_tokens_are_those_of_the_text_that_is_given(reply, kept, written):
    result, _ = answer(Review(), reply)
    tokens = {"tiny": [], "big": []}
    for piece in result.pieces:
        tokens[piece.engine] += piece.tokens
    assert [token.text for token in tokens["tiny"]] == kept
    assert [token.text for token in tokens["big"]] == written
    assert {token.logprob for token in tokens["big"]} <= {-1.0}
    assert costs(result)["big", "answer"].completion_tokens == len(reply.split())


@pytest.mark.parametrize(
    ("by", "most", "text", "finish"),
    [
        ("words", 12, "2 + 2 = 4\n4 + 1 = 5\nso 5", "stop"),  # 5 tokens stay, 7 are new
        ("words", 11, "2 + 2 = 4\n4 + 1 = 5\nso", "length"),
        ("words", 8, "2 + 2 = 4\n4 + 1", "length"),
        ("words", 6, "2 + 2 = 4\n4", "length"),
        ("logprob", 8, "2 + 2 = 4\n4 + 1", "length"),
        ("logprob", 6, "2 + 2 = 4\n4", "length"),
    ],
)
def test_what_stays_and_what_is_new_share_max_tokens(by, most, text, finish):
    reply = "4 + 1 = 5" if by == "logprob" else "2: 4 + 1 = 5\nso 5"
    result, (big, _) = answer(Review(by=by), reply, Reader, Request(CHAT, Sampling(max_tokens=most)))
    assert (result.text, result.finish) == (text, finish)
    assert sum(len(piece.tokens) for piece in result.pieces) == most
    assert big.written <= most - 5 + (by == "words")  # the reviewer is stopped


@pytest.mark.parametrize(
    ("by", "stop", "text", "written"),
    [
        ("words", "so", "2 + 2 = 4\n4 + 1 = 5\n", 7),  # the reviewer is stopped at "so"
        ("words", "+ 1", "2 + 2 = 4\n4 ", 4),
        ("words", ":", "2 + 2 = 4\n4 + 1 = 5\nso 5", 8),  # that of the number is no part of the answer
        ("words", "4\n4 + 1 = 5", "2 + 2 = ", 6),
        ("logprob", "= 5", "2 + 2 = 4\n4 + 1 ", 4),
        ("logprob", "4\n4 + 1 = 5", "2 + 2 = ", 5),
    ],
)
def test_stop_strings_end_what_is_written_anew(by, stop, text, written):
    reply = "4 + 1 = 5" if by == "logprob" else "2: 4 + 1 = 5\nso 5"
    request = Request(CHAT, Sampling(max_tokens=40, stop=(stop,)))
    result, (big, _) = answer(Review(by=by), reply, Reader, request)
    assert (result.text, result.finish, big.written) == (text, "stop", written)
    assert getattr(result.finish, "string", stop) == stop
    tokens = [token.text for piece in result.pieces for token in piece.tokens]
    assert "".join(tokens) == text.replace("4\n4", "44")  # the token of that line break was discarded


def test_a_reply_without_a_number_is_cut_at_max_tokens():
    result, _ = answer(Review(), "two three four five six", request=Request(CHAT, Sampling(max_tokens=3)))
    assert (result.text, result.finish) == ("two three four", "length")


def test_a_token_that_is_no_character_stays_where_it_follows_the_number():
    end, number = Token("", 7, -0.1), Token("1", 8, -0.2)
    pieces = [
        Piece("1", "big", "answer", (number,)),
        Piece(": f", "big", "answer", (Token("", 5, part=b"\xe2"), Token(": f", 6, -0.3))),
        Piece("", "big", "answer", (end,), "stop"),
    ]
    assert behind(pieces, 3) == [
        Piece("f", "big", "answer", (Token("f", 6, -0.3),)),
        Piece("", "big", "answer", (end,), "stop"),
    ]
    assert behind(pieces, 0) == pieces
    assert behind(pieces[2:], 0) == pieces[2:]


def test_by_its_probabilities_the_first_unlikely_line_and_all_after_it_are_written_anew():
    for prompt in (CHAT, Text("What is 2 + 2 + 1?")):
        request = Request(prompt, Sampling(max_tokens=40))
        result, (big, _) = answer(Review(by="logprob"), "4 + 1 = 5", Reader, request)
        assert result.text == "2 + 2 = 4\n4 + 1 = 5"
        assert (big.asked[0].prompt, big.asked[0].prefix) == (prompt, "2 + 2 = 4\n")
        assert big.asked[0].sampling.max_tokens == 40 - 5
        assert costs(result)["big", "judge"].prompt_tokens == 5


def test_by_its_probabilities_a_likely_answer_stays():
    result, (big, _) = answer(Review(by="logprob", objection=0.3), "4 + 1 = 5", Reader)
    assert (result.text, big.asked) == (DRAFT, [])


@pytest.mark.parametrize("by", ["words", "logprob"])
def test_of_an_empty_answer_nothing_stays(by):
    engines = [Reader("big", "1: five" if by == "words" else "five", 9), Recorder("tiny", "", 1)]
    request = Request(CHAT, Sampling(max_tokens=40))
    assert asyncio.run(AsyncEnsemble(engines, All(), Review(by=by)).generate(request)).text == "five"


def test_an_answer_that_is_accepted_is_not_reviewed():
    result, (big, _) = answer(Review(accept="logprob"), "OK", logprob=-0.01)
    assert (result.text, big.asked, result.verdicts[0].sufficient) == (DRAFT, [], True)
    result, (big, _) = answer(Review(accept="logprob"), "OK", logprob=-0.5)
    assert (result.text, len(big.asked), result.verdicts[0].sufficient) == (DRAFT, 1, False)


def test_closing_stops_the_reviewer_and_errors_are_raised():
    ledger = UsageLedger()
    engines = [Recorder("big", "2: and so it is five", 9), Recorder("tiny", DRAFT, 1)]

    async def run():
        async with aclosing(Review().run(Request(CHAT), engines, ledger)) as events:
            async for event in events:
                if isinstance(event, Piece) and event.engine == "big":
                    break

    asyncio.run(run())
    assert engines[0].written == 2
    assert ledger.total.completion_tokens == sum(engine.written for engine in engines)
    with pytest.raises(EngineError, match="tiny failed"):
        answer(Review(), "OK", fail_after=2)


def test_who_judges_by_probabilities_has_to_have_them():
    engines = [Blind("big", "OK", 9), Recorder("tiny", DRAFT, 1)]
    AsyncEnsemble(engines, All(), Review())
    with pytest.raises(CapabilityError, match=r"review .large. needs prefix, score of engine 'big'"):
        AsyncEnsemble(engines, All(), Review(by="logprob"))


def test_an_objection_by_probability_needs_probabilities():
    engines = [Recorder("big", "OK", 9), Recorder("tiny", DRAFT, 1)]
    with pytest.raises(ConfigError, match="review: `objection` is a probability, which needs `by: logprob`"):
        AsyncEnsemble(engines, All(), Review(objection=0.5))


def test_a_template_without_the_answer_is_refused():
    engines = [Recorder("big", "OK", 9), Recorder("tiny", DRAFT, 1)]
    with pytest.raises(ConfigError, match=r"review: the template lacks \{answer\}"):
        AsyncEnsemble(engines, All(), Review(template="{question}"))
