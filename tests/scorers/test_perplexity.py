"""The perplexity scorer: by hand on the echo engine, and on a shipped model against a direct forward pass."""

import asyncio
import math

import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.errors import CapabilityError, ConfigError, EngineError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Message, Request, Scored, ScoredToken, Text
from ensemblehub.scorers.perplexity import PerplexityOptions, PerplexityScorer

QUESTION = Request(Chat((Message("user", "How many?"),)))


def scored(scorer, request, texts, ledger=None):
    return asyncio.run(scorer.score(request, texts, (ledger or UsageLedger()).meter("score")))


class Scripted(EchoEngine):
    """Reads every word with the logprob and best logprob that a table has for it."""

    def __init__(self, table):
        super().__init__("m", EchoOptions())
        self.table = table

    async def score(self, request, meter):
        read = await super().score(request, meter)
        known = [(token, *self.table.get(token.text.strip(), (-9.0, -9.0))) for token in read.tokens]
        return Scored(
            tuple(
                ScoredToken(t.text, None, logprob, 0.0, t.message, t.start, t.end, best)
                for t, logprob, best in known
            )
        )


def test_only_the_tokens_of_the_text_count():
    engine = Scripted({"two": (-1.0, math.log(0.8)), "three": (-2.0, math.log(0.4)), "so": (-5.0, -5.0)})
    scorer = PerplexityScorer("ppl", PerplexityOptions(model="m"), [engine])
    for request in (QUESTION.continued("so"), Request(Text("How many?"), prefix="so")):
        assert scored(scorer, request, [" two three", " two"]) == pytest.approx(
            [(-1.5 + 0.6) / 2, (-1.0 + 0.8) / 2]
        )


def test_an_empty_text_is_judged_by_the_answer_so_far():
    engine = Scripted({"so": (-1.0, math.log(0.5))})
    scorer = PerplexityScorer("ppl", PerplexityOptions(model="m"), [engine])
    assert scored(scorer, QUESTION.continued("so"), [""]) == pytest.approx([-0.25])
    with pytest.raises(EngineError, match="no text"):
        scored(scorer, QUESTION, [""])


def test_the_engine_records_what_it_reads():
    ledger, engine = UsageLedger(), EchoEngine("m", EchoOptions())
    scored(PerplexityScorer("ppl", PerplexityOptions(model="m"), [engine]), QUESTION, ["a b", "c"], ledger)
    assert [(line.engine, line.purpose, line.cost.prompt_tokens) for line in ledger.usage.lines] == [
        ("m", "score", 7)
    ]


def test_an_engine_that_does_not_tell_the_top_token_is_an_error():
    scorer = PerplexityScorer("ppl", PerplexityOptions(model="m"), [Scripted({"a": (-1.0, None)})])
    with pytest.raises(EngineError, match="engine 'm' does not tell"):
        scored(scorer, QUESTION, ["a"])


def test_wrong_options_are_refused_before_loading():
    engine = EchoEngine("mentor", EchoOptions())
    for options in (PerplexityOptions(), PerplexityOptions(model="mentor", path="x")):
        with pytest.raises(ConfigError, match="either"):
            PerplexityScorer("ppl", options, [engine])
    with pytest.raises(ConfigError, match="did you mean 'mentor'"):
        PerplexityScorer("ppl", PerplexityOptions(model="mentr"), [engine])
    engine.capabilities = frozenset({"prefix"})
    with pytest.raises(CapabilityError, match="needs score of engine 'mentor'"):
        PerplexityScorer("ppl", PerplexityOptions(model="mentor"), [engine])


def test_a_missing_folder_is_one_line_before_loading(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="nowhere") as raised:
        PerplexityScorer("ppl", PerplexityOptions(path=str(tmp_path / "nowhere")), [])
    assert "\n" not in str(raised.value)


def test_a_model_of_its_own_against_a_direct_forward_pass():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from ensemblehub import builtin

    path, text = builtin.resolve("builtin:intern"), " There are 3 mugs.\nAnswer: 3"
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    turns = [{"role": "user", "content": "How many?"}]
    head = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(f"{head}So:{text}", add_special_tokens=False)
    start = len(tokenizer.encode(f"{head}So:", add_special_tokens=False))
    assert tokenizer.decode(ids[start:]) == text
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    own = [logprobs[place - 1, ids[place]].item() for place in range(start, len(ids))]
    best = [logprobs[place - 1].max().exp().item() for place in range(start, len(ids))]
    ledger = UsageLedger()

    async def ask():
        scorer = PerplexityScorer("ppl", PerplexityOptions(path=path, device="cpu"), [])
        await scorer.load()
        try:
            return await scorer.score(QUESTION.continued("So:"), [text], ledger.meter("score"))
        finally:
            await scorer.close()

    assert asyncio.run(ask()) == pytest.approx([(sum(own) / len(own) + sum(best) / len(best)) / 2], abs=1e-4)
    assert [line.engine for line in ledger.usage.lines] == ["ppl"]
    assert ledger.total.prompt_tokens == len(ids)
    assert ledger.total.prefill_flops > 0
