"""Reading a prompt through an API: what is asked, what comes of it, what is an error, and the usage."""

import asyncio
import json
import math

import pytest
from faulty import STALL, upstream

from ensemblehub import builtin, registry
from ensemblehub.cost import UsageLedger
from ensemblehub.errors import CapabilityError, ConfigError, ContextOverflowError, EngineError, RequestError
from ensemblehub.generators.openai.engine import OpenAIEngine, OpenAIOptions
from ensemblehub.generators.openai.patience import Patience
from ensemblehub.schema import Chat, Message, Request, Text

pytest.importorskip("transformers")

QUICK = Patience(connect=1, first_token=0.4, inter_token=0.4, total=3, tries=2, backoff=0.01)
CHAT = Chat((Message("system", "Be brief."), Message("user", "2 + 2?")))
RAW = Text("2 + 2 =")
HALF, QUARTER = math.log(0.5), math.log(0.25)
TOKENS = ["2", " +", " 2", " ="]
USAGE = {"prompt_tokens": 4, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}}


def said(tokens=(*TOKENS, " 4"), logprobs=(None, HALF, -3.0, HALF, -0.1), top=None, usage=USAGE, **more):
    """The answer to a prompt of four tokens, behind which one was written."""
    beside = [{name: -3.0} if name != " +" else {} for name in (" +", " 2", " =", " 4")]
    top = top or [None, *({" +": HALF, " -": QUARTER} | more for more in beside)]
    told = {"tokens": list(tokens), "token_logprobs": list(logprobs), "top_logprobs": top, **more}
    body = {"choices": [{"text": "2 + 2 = 4", "logprobs": told}], "usage": usage}
    return (200, {"content-type": "application/json"}, json.dumps(body))


class Read:
    """What came of reading a prompt with an API that plays scripts."""

    def __init__(self, *scripts, prompt=RAW, prefix="", **options):
        self.ledger, self.scored, self.error = UsageLedger(), None, None
        asyncio.run(self._read(scripts, Request(prompt, prefix=prefix), options))

    async def _read(self, scripts, request, options):
        async with upstream(*scripts) as (self.api, url):
            given = {"score": "echo", "patience": QUICK, "entropy_top_k": 2, **options}
            self.engine = OpenAIEngine("far", OpenAIOptions("m-1b", base_url=url, **given))
            try:
                self.scored = await self.engine.score(request, self.ledger.meter("judge"))
            except Exception as error:
                self.error = error
            await self.engine.close()

    @property
    def tokens(self):
        return self.scored.tokens

    @property
    def cost(self):
        return self.ledger.total


def test_a_raw_text_is_read_in_the_servers_own_tokens():
    read = Read(said())
    asked = read.api.asked[0]
    assert (asked["path"], asked["prompt"]) == ("/v1/completions", "2 + 2 =")
    assert (asked["echo"], asked["logprobs"], asked["max_tokens"], asked["temperature"]) == (True, 2, 1, 0.0)
    assert "stream" not in asked
    assert [token.text for token in read.tokens] == TOKENS
    assert [token.logprob for token in read.tokens] == [None, HALF, -3.0, HALF]
    assert [(token.message, token.start, token.end) for token in read.tokens] == [
        (0, 0, 1),
        (0, 1, 3),
        (0, 3, 5),
        (0, 5, 7),
    ]
    assert (read.tokens[2].best, read.tokens[2].top[0].text) == (HALF, " +")


def test_an_entropy_is_that_of_the_top_tokens_with_the_rest_as_one():
    read = Read(said())
    assert read.tokens[0].entropy is None
    for token in read.tokens[1:]:  # 1/2, 1/4 and the rest, 1/4
        assert token.entropy == pytest.approx(1.5 * math.log(2))
    read = Read(said(), entropy_top_k=1)
    assert read.tokens[1].entropy == pytest.approx(math.log(2))


def test_the_models_name_says_how_entropies_are_taken_so_that_kinds_are_never_mixed():
    def name(**options):
        return OpenAIEngine("far", OpenAIOptions("m", base_url="http://x:1/v1", **options)).model

    assert name() == name(score="echo", entropy_top_k=0) == "m at x:1"
    assert name(score="echo") == "m at x:1 (entropy of the 20 likeliest)"
    assert name(score="echo", entropy_top_k=5) == "m at x:1 (entropy of the 5 likeliest)"
    with pytest.raises(ConfigError, match="entropy_top_k"):
        registry.build(OpenAIOptions, {"path": "m", "entropy_top_k": -1}, "model")


def test_exact_entropies_are_taken_where_the_server_gives_them():
    read = Read(said(entropies=[None, 0.5, 0.25, 1.0, 0.0]), entropy_top_k=0)
    assert [token.entropy for token in read.tokens] == [None, 0.5, 0.25, 1.0]
    assert read.api.asked[0]["logprobs"] == 1
    for given in ({}, {"entropies": [None, 0.5, None, 1.0, 0.0]}):
        assert "gives no exact entropies: set `entropy_top_k`" in str(
            Read(said(**given), entropy_top_k=0).error
        )


def test_the_start_of_an_answer_is_a_message_of_its_own():
    read = Read(said(), prompt=Text("2 + "), prefix="2 =")
    assert read.api.asked[0]["prompt"] == "2 + 2 ="
    assert [(token.message, token.start, token.end) for token in read.tokens] == [
        (0, 0, 1),
        (0, 1, 3),
        (0, 3, 5),
        (1, 1, 3),
    ]


def test_tokens_that_are_no_text_alone_and_those_that_the_server_adds_have_their_place():
    tokens = ["<s>", "a", "\ufffd", "\ufffd", "b"]
    read = Read(
        said(
            tokens=[*tokens, "c"],
            logprobs=(None, *[HALF] * 5),
            top=[{"a": HALF, "b": -1.0}] * 6,
            usage={"prompt_tokens": 5, "completion_tokens": 1},
        ),
        prompt=Text("a\u2603b"),
    )
    assert [(token.message, token.start, token.end) for token in read.tokens] == [
        (None, 0, 0),
        (0, 0, 1),
        (0, 1, 1),
        (0, 1, 1),
        (0, 2, 3),
    ]


def test_what_it_writes_behind_the_prompt_is_recorded_as_discarded():
    cost = Read(said()).cost
    assert (cost.prompt_tokens, cost.cached_tokens, cost.completion_tokens, cost.discarded_tokens) == (
        4,
        2,
        1,
        1,
    )
    assert cost.flops == pytest.approx(2 * 1e9 * (4 - 2))
    assert (cost.calls, cost.estimated) == (1, False)
    cost = Read(said(usage=None)).cost
    assert (cost.completion_tokens, cost.discarded_tokens, cost.estimated) == (1, 1, True)


def test_a_chat_is_sent_in_the_models_own_ids():
    read = Read(said(), prompt=CHAT, tokenizer=builtin.resolve("builtin:intern"), dialect="vllm")
    renderer = read.engine.tokenizer
    asked = read.api.asked[0]
    assert asked["prompt"] == list(renderer(Request(CHAT)).ids)
    assert (asked["max_tokens"], asked["return_tokens_as_token_ids"]) == (0, True)
    assert f"5 tokens for the {len(asked['prompt'])} of the prompt" in str(read.error)


def test_a_reading_in_ids_has_origins_texts_and_alternatives():
    engine = OpenAIEngine("far", OpenAIOptions("m", tokenizer=builtin.resolve("builtin:intern")))
    rendered = engine.tokenizer(Request(CHAT))
    ids, text = rendered.ids, engine.tokenizer.decode(rendered.ids)
    names = [f"token_id:{index}" for index in ids]

    def answer(names, text):
        top = [None, *({name: HALF, "token_id:9": -1.5} for name in names[1:])]
        told = {"tokens": names, "token_logprobs": [None, *[HALF] * (len(names) - 1)], "top_logprobs": top}
        body = {"choices": [{"text": text, "logprobs": told}], "usage": {"prompt_tokens": len(names)}}
        return (200, {}, json.dumps(body))

    def read(*told):
        return Read(answer(*told), prompt=CHAT, tokenizer=builtin.resolve("builtin:intern"), dialect="vllm")

    good = read(names, text)
    assert [token.id for token in good.tokens] == list(ids)
    assert [(t.text, t.message, t.start, t.end) for t in good.tokens] == [
        (at.text, at.message, at.start, at.end) for at in rendered.origins
    ]
    assert good.tokens[3].top[0].id == ids[3]
    assert good.tokens[3].top[0].text == engine.tokenizer.decode([ids[3]])
    for told in ((names, "something else"), ([*names[:-1], "token_id:9"], text)):
        assert "`tokenizer` is not that of its model" in str(read(*told).error)


def test_without_a_tokenizer_only_raw_text_is_read():
    read = Read(said(), prompt=CHAT)
    assert isinstance(read.error, RequestError)
    assert "option `tokenizer`) only raw text can be scored" in str(read.error)
    assert read.api.asked == []
    assert not read.ledger.calls


def test_an_api_that_is_not_declared_to_score_is_not_asked():
    assert "score" not in OpenAIEngine("far", OpenAIOptions("m")).capabilities
    read = Read(said(), score="none")
    assert isinstance(read.error, CapabilityError)
    assert read.api.asked == []


PLAIN = (200, {}, json.dumps({"choices": [{"text": "2 + 2 = 4", "logprobs": None}], "usage": USAGE}))
WRONG = {
    "logprobs are ignored": (PLAIN, "gave no logprobs of the prompt, so it cannot score"),
    "the prompt is not repeated": (
        said(tokens=[" 4"], logprobs=[HALF], top=[{}]),
        "did not repeat the prompt",
    ),
    "a logprob is missing": (
        said(logprobs=(None, HALF, None, HALF, -0.1), top=[{}] * 5),
        "no logprob of some tokens",
    ),
    "a list is short": (said(logprobs=(None, HALF)), "logprobs of 5 tokens for the 4"),
    "too few top tokens": (
        said(top=[{"a": HALF}] * 5),
        "gives 1 of the top tokens of a prompt, not 2",
    ),
    "other shapes": ((200, {}, '{"choices": {"0": 1}}'), "gave no logprobs"),
    "numbers that are none": (said(logprobs=(None, "a", True, math.nan, 1)), "text that is no logprob"),
    "other text": (said(tokens=["x"] * 5), "did not repeat the prompt"),
    "not JSON": ((200, {}, "oops"), "not JSON"),
    "broken": ((500, {}, "oops"), "HTTP 500"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_no_reading_is_an_error(fault):
    script, says = WRONG[fault]
    read = Read(script)
    assert isinstance(read.error, EngineError)
    assert read.error.engine == "far"
    assert says in str(read.error)
    assert len(read.ledger.calls) == 1


def test_a_score_that_is_cancelled_is_recorded_as_an_estimate():
    async def ask():
        async with upstream([STALL]) as (api, url):
            engine = OpenAIEngine("far", OpenAIOptions("m", base_url=url, score="echo"))
            ledger = UsageLedger()
            task = asyncio.create_task(engine.score(Request(Text("x" * 40)), ledger.meter("judge")))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.1)
            await engine.close()
            return api.left, ledger.total

    left, cost = asyncio.run(ask())
    assert left == 1
    assert (cost.prompt_tokens, cost.completion_tokens, cost.estimated) == (11, 0, True)


def test_what_does_not_fit_the_context_is_known_before_it_is_asked():
    given = {"tokenizer": builtin.resolve("builtin:intern"), "dialect": "vllm", "context": 10}
    read = Read(said(), prompt=CHAT, **given)
    assert isinstance(read.error, ContextOverflowError)
    assert "maximum context length is 10 tokens" in str(read.error)
    assert read.api.asked == []
    assert not read.ledger.calls


def test_a_character_that_is_named_by_its_bytes_stands_in_the_last_of_its_tokens():
    names = ["bytes:\\xe6", "bytes:\\x97", "bytes:\\xa5", "!"]
    read = Read(said(tokens=[*names, " 4"]), prompt=Text("\u65e5!"))
    assert [token.text for token in read.tokens] == ["", "", "\u65e5", "!"]
    assert [(token.start, token.end) for token in read.tokens][2:] == [(0, 1), (1, 2)]
