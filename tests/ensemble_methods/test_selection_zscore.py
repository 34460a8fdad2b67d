"""z-scores worked out by hand, the automatic k, and statistics that are missing or of another model."""

import asyncio
import json
import math

import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection import zscore
from ensemblehub.ensemble_methods.model_selection.zscore import QuestionReading, Stats, ZScore
from ensemblehub.ensemble_methods.output_aggregation.single import Single
from ensemblehub.errors import ArtifactError, CapabilityError, ConfigError, EngineError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.registry import build
from ensemblehub.schema import Chat, Message, Request, Scored, ScoredToken, Text

ASK = Request(Text("how many mugs are there"))


def engine(name, perplexity, confidence, **options):
    """Reads everything with this perplexity and confidence."""
    logprobs = {"logprob": -math.log(perplexity), "best": math.log(confidence)}
    return EchoEngine(name, EchoOptions({"": f"I am {name}"}, **logprobs, **options))


ENGINES = [engine("a", 4, 0.5), engine("b", 2, 0.8), engine("c", 1.5, 0.4)]
STATS = {
    "a": Stats(3, 1, 0.5, 0.2),  # (3 - 4) / 1 + (0.5 - 0.5) / 0.2 = -1, and unusual
    "b": Stats(3, 0.5, 0.6, 0.1),  # (3 - 2) / 0.5 + (0.8 - 0.6) / 0.1 = 4
    "c": Stats(2, 1, 0.6, 0.4),  # (2 - 1.5) / 1 + (0.4 - 0.6) / 0.4 = 0
}


def chosen(selection, engines=ENGINES, ledger=None):
    ledger = ledger or UsageLedger()
    return [engine.name for engine in asyncio.run(selection.select(ASK, engines, ledger))]


def test_z_is_that_of_the_formula():
    readings = [QuestionReading(4, 0.5), QuestionReading(2, 0.8), QuestionReading(1.5, 0.4)]
    assert [STATS[name].z(reading) for name, reading in zip("abc", readings, strict=True)] == pytest.approx(
        [-1, 4, 0]
    )


def test_the_most_familiar_come_first_and_their_reading_is_recorded():
    ledger = UsageLedger()
    assert chosen(ZScore(k=3, stats=STATS), ledger=ledger) == ["b", "c", "a"]
    assert chosen(ZScore(k=1, stats=STATS)) == ["b"]
    assert [(line.engine, line.purpose, line.cost.prompt_tokens) for line in ledger.usage.lines] == [
        (name, "select", 5) for name in "abc"
    ]


def test_the_automatic_k_is_three_only_where_most_find_the_question_unusual():
    assert chosen(ZScore(stats=STATS)) == ["b", "c"]
    usual = Stats(1.2, 1, 0.5, 1)  # below everyone's perplexity
    assert len(chosen(ZScore(stats=dict.fromkeys("abc", usual)))) == 3
    ten = [engine(str(index), 4, 0.5) for index in range(10)]
    nine_of_ten = {member.name: Stats(3.0 if index else 5.0, 1, 0.5, 1) for index, member in enumerate(ten)}
    assert len(chosen(ZScore(stats=nine_of_ten), ten)) == 3
    eight_of_ten = nine_of_ten | {"1": Stats(5, 1, 0.5, 1)}
    assert len(chosen(ZScore(stats=eight_of_ten), ten)) == 2
    assert chosen(ZScore(stats=STATS), ENGINES[:1]) == ["a"]
    assert ZScore(stats=STATS).min_engines(ENGINES) == 2
    assert ZScore(stats=STATS).min_engines(ENGINES[:1]) == 1


class Fixed(Engine):
    """Reads what it is given."""

    name, capabilities = "fixed", frozenset({"score"})

    def __init__(self, tokens):
        self.tokens = tuple(ScoredToken("x", 0, p, 1.0, message, 0, 1, best) for message, p, best in tokens)

    def stream(self, request, meter):
        raise EngineError("only reads")

    async def score(self, request, meter):
        assert request.prefix == ""
        return Scored(self.tokens)


def test_only_the_words_of_the_user_count():
    """p = 1/2 and 1/8: perplexity sqrt(2 · 8) = 4; confidence (0.5 + 0.9) / 2 = 0.7."""
    log = math.log
    reader = Fixed(
        [
            (None, None, None),
            (0, log(0.01), log(0.02)),
            (None, log(0.3), log(0.4)),
            (1, log(1 / 2), log(0.5)),
            (1, log(1 / 8), log(0.9)),
            (2, log(0.001), log(0.002)),
        ]
    )
    chat = Chat((Message("system", "s"), Message("user", "u"), Message("assistant", "a")))
    reading = asyncio.run(zscore.read(reader, Request(chat, prefix="so"), UsageLedger()))
    assert (reading.ppl, reading.conf) == pytest.approx((4, 0.7))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([(None, None, None)], "the question is empty"),
        ([(0, -1.0, None)], "'fixed' gives no top tokens"),
    ],
)
def test_a_question_that_cannot_be_read_is_one_line(tokens, message):
    with pytest.raises(RequestError, match=message):
        asyncio.run(zscore.read(Fixed(tokens), ASK, UsageLedger()))


def test_a_failing_engine_ends_the_selection_with_its_own_error():
    class Broken(Fixed):
        async def score(self, request, meter):
            raise EngineError("out of memory")

    broken = Broken([])
    with pytest.raises(EngineError, match="out of memory"):
        chosen(ZScore(stats=STATS | {"fixed": STATS["a"]}), [*ENGINES, broken])


def refusal(options, error=ConfigError, engines=ENGINES):
    selection = build(ZScore, options, "selection 'zscore'")
    with pytest.raises(error) as caught:
        AsyncEnsemble(engines, selection, Single())
    (line,) = str(caught.value).splitlines()
    return line


def test_missing_statistics_name_the_command():
    assert "no statistics of 'c'" in refusal({"stats": {name: STATS[name] for name in "ab"}})
    assert "ensemblehub stats --config" in refusal({})


def test_impossible_options_are_refused_before_loading():
    assert "from 1 to 3" in refusal({"stats": STATS, "k": 4})
    assert "'b' is not above 0" in refusal({"stats": STATS | {"b": Stats(1, 0, 1, 1)}})
    writer = Fixed([])
    writer.capabilities = frozenset()
    assert "needs score of engine 'fixed'" in refusal({"stats": STATS}, CapabilityError, [writer])


def test_statistics_of_another_model_or_a_damaged_file_are_refused(tmp_path):
    file = tmp_path / "stats.json"
    whole = {name: vars(own) | {"model": name, "n": 9} for name, own in STATS.items()}
    file.write_text(json.dumps(whole))
    AsyncEnsemble(ENGINES, build(ZScore, {"stats_file": str(file)}, "here"), Single())
    file.write_text(json.dumps(whole | {"b": whole["b"] | {"model": "bee@123"}}))
    assert "'b' are of bee@123, not b" in refusal({"stats_file": str(file)}, ArtifactError)
    AsyncEnsemble(
        ENGINES, build(ZScore, {"stats_file": str(file), "stats": {"b": vars(STATS["b"])}}, "here"), Single()
    )
    file.write_text(json.dumps({"a": {"ppl_mean": 3}}))
    assert "a.ppl_std: Field required" in refusal({"stats_file": str(file)}, ArtifactError)
    file.write_text("{")
    assert "is not JSON" in refusal({"stats_file": str(file)}, ArtifactError)
    assert "cannot read the statistics" in refusal({"stats_file": str(tmp_path / "no")}, ArtifactError)
