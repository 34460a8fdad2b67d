"""Reward models: tiny random ones against forward passes written out by hand."""

import asyncio
import json
import math
import re
import time

import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.errors import ConfigError, ContextOverflowError, EngineError, RequestError
from ensemblehub.schema import Chat, Message, Request, Text, TokenIds

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ensemblehub import builtin  # noqa: E402
from ensemblehub.scorers.reward_model import RewardModelOptions, RewardModelScorer  # noqa: E402

STEP = "<extra_0>"
REPLY = "Facts: 3 mugs; 4 cups\nWork: 3 + 4 = 7\n\nAnswer: 7"
QUESTION = Request(Chat((Message("user", "How many?"),)))
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,
}
CUSTOM = """
import torch
from transformers import Qwen3Model, Qwen3PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

class Qwen3ForProcessRewardModel(Qwen3PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen3Model(config)
        self.score = torch.nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None):
        hidden = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        return TokenClassifierOutput(logits=self.score(hidden))
"""


def make_tokenizer():
    tokenizer = transformers.AutoTokenizer.from_pretrained(builtin.resolve("builtin:mentor"))
    tokenizer.add_special_tokens({"additional_special_tokens": [STEP]})
    return tokenizer


def save(folder, auto, labels=2, **config):
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    shape = transformers.Qwen3Config(**SHAPE, vocab_size=len(tokenizer), num_labels=labels, **config)
    auto.from_config(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def prm(tmp_path_factory):
    return save(tmp_path_factory.mktemp("prm"), transformers.AutoModelForTokenClassification)


@pytest.fixture(scope="module")
def orm(tmp_path_factory):
    return save(
        tmp_path_factory.mktemp("orm"), transformers.AutoModelForSequenceClassification, 1, pad_token_id=0
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return save(
        tmp_path_factory.mktemp("pair"), transformers.AutoModelForSequenceClassification, 2, pad_token_id=0
    )


def scorer_of(path, **options):
    return RewardModelScorer("rm", RewardModelOptions(path, device="cpu", **options))


def scored(scorer, request, texts, ledger=None):
    async def ask():
        await scorer.load()
        try:
            return await scorer.score(request, texts, (ledger or UsageLedger()).meter("score"))
        finally:
            await scorer.close()

    return asyncio.run(ask())


def conversation(reply, question="How many?", system=None):
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    tokenizer = make_tokenizer()
    return tokenizer.encode(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)


def by_hand(path, reply, separator="\n\n", **about):
    """Probabilities of the steps, in double precision."""
    model = transformers.AutoModelForTokenClassification.from_pretrained(path, dtype=torch.float64)
    ids = conversation("".join(step + STEP for step in re.split(separator, reply)), **about)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    places = [
        place for place, index in enumerate(ids) if index == make_tokenizer().convert_tokens_to_ids(STEP)
    ]
    return logits[places].softmax(-1)[:, 1].tolist(), len(ids)


@pytest.mark.parametrize(
    ("reduce", "reduced"),
    [("mean", lambda p: sum(p) / len(p)), ("min", min), ("product", math.prod), ("last", lambda p: p[-1])],
)
def test_a_process_model_by_hand(prm, reduce, reduced):
    steps, _ = by_hand(prm, REPLY, "; |\n+")
    assert len(steps) == 4
    assert len({round(step, 3) for step in steps}) == 4
    scorer = scorer_of(prm, reduce=reduce, step_separator="; |\n+")
    assert scored(scorer, QUESTION, [REPLY]) == pytest.approx([reduced(steps)], abs=1e-5)


def test_texts_of_different_lengths_are_padded_and_each_is_recorded_once(prm):
    texts = [REPLY, "Answer: 7", REPLY + "\n\nIndeed", "7", " 8"]
    hands = [by_hand(prm, text) for text in texts]
    ledger = UsageLedger()
    scores = scored(scorer_of(prm, batch_size=2), QUESTION, texts, ledger)
    assert scores == pytest.approx([sum(steps) / len(steps) for steps, _ in hands], abs=1e-5)
    assert [(line.engine, line.purpose) for line in ledger.usage.lines] == [("rm", "score")]
    assert sorted(call.cost.prompt_tokens for call in ledger.calls) == sorted(length for _, length in hands)
    assert ledger.total.prefill_flops > 0 == ledger.total.decode_flops
    assert ledger.total.seconds > 0


def test_the_model_info_counts_the_head_and_not_the_embedding(prm):
    info = scorer_of(prm).info
    model = transformers.AutoModelForTokenClassification.from_pretrained(prm)
    assert info.parameters == sum(weight.numel() for weight in model.parameters())
    assert info.active == info.parameters - model.get_input_embeddings().weight.numel()


def test_the_answer_so_far_is_judged_with_the_text(prm):
    cut = REPLY.index("Work")
    whole, parts = scorer_of(prm, step_separator="\n+"), scorer_of(prm, step_separator="\n+")
    assert scored(whole, QUESTION, [REPLY]) == scored(parts, QUESTION.continued(REPLY[:cut]), [REPLY[cut:]])


def test_system_prompts_and_raw_text(prm):
    asked = Request(Chat((Message("system", "Own."), Message("user", "How many?"))))
    for option, shown in ((None, "Own."), ("Other.", "Other.")):
        steps, _ = by_hand(prm, REPLY, system=shown)
        assert scored(scorer_of(prm, system=option), asked, [REPLY]) == pytest.approx(
            [sum(steps) / 2], abs=1e-5
        )
    steps, _ = by_hand(prm, REPLY)
    assert scored(scorer_of(prm), Request(Text("How many?")), [REPLY]) == pytest.approx(
        [sum(steps) / 2], abs=1e-5
    )


def test_special_tokens_in_question_and_reply_are_only_text(prm):
    scorer = scorer_of(prm)
    asked = Request(Chat((Message("user", f"What is {STEP}?"),)), prefix=f"It is {STEP}<|end|>\n\nDone")
    ids, marks = scorer.rendered(asked)
    step = make_tokenizer().convert_tokens_to_ids(STEP)
    assert [place for place, index in enumerate(ids) if index == step] == marks
    assert len(marks) == 2
    assert ids.count(make_tokenizer().eos_token_id) == 2  # the template's own
    assert f"It is {STEP}<|end|>{STEP}Done{STEP}" in make_tokenizer().decode(ids)


@pytest.mark.parametrize("reply", ["", "\n\n", "\n\n \n\n"])
def test_an_empty_reply_is_one_step(prm, reply):
    assert len(scorer_of(prm).rendered(QUESTION.continued(reply))[1]) == 1
    assert 0 < scored(scorer_of(prm), QUESTION, [reply])[0] < 1


def test_an_outcome_model_with_one_label(orm):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(orm, dtype=torch.float64)
    texts = [REPLY, "7"]
    with torch.no_grad():
        logits = [model(torch.tensor([conversation(text)])).logits.item() for text in texts]
    assert scored(scorer_of(orm), QUESTION, texts) == pytest.approx(logits, abs=1e-4)
    odds = [1 / (1 + math.exp(-logit)) for logit in logits]
    assert scored(scorer_of(orm, sigmoid=True), QUESTION, texts) == pytest.approx(odds, abs=1e-4)


def test_an_outcome_model_with_two_labels(pair):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(pair, dtype=torch.float64)
    with torch.no_grad():
        expected = model(torch.tensor([conversation(REPLY)])).logits.softmax(-1)[0, 1].item()
    assert scored(scorer_of(pair), QUESTION, [REPLY]) == pytest.approx([expected], abs=1e-5)


def test_custom_code_is_run_only_if_told_so(prm, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "custom"
    model = transformers.AutoModelForTokenClassification.from_pretrained(prm)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "modeling_custom.py").write_text(CUSTOM)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen3ForProcessRewardModel"]
    config["auto_map"] = {"AutoModel": "modeling_custom.Qwen3ForProcessRewardModel"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="trust_remote_code: true"):
        scorer_of(str(folder))
    steps, _ = by_hand(prm, REPLY)
    scorer = scorer_of(str(folder), trust_remote_code=True)
    assert scored(scorer, QUESTION, [REPLY]) == pytest.approx([sum(steps) / 2], abs=1e-5)


def test_what_cannot_be_a_reward_model_is_refused_before_loading(prm, orm, tmp_path):
    with pytest.raises(ConfigError, match="nowhere") as raised:
        scorer_of(str(tmp_path / "nowhere"))
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="Qwen3ForCausalLM is no reward model"):
        scorer_of(builtin.resolve("builtin:mentor"))
    with pytest.raises(ConfigError, match="is no process model"):
        scorer_of(orm, kind="process")
    with pytest.raises(ConfigError, match="3 labels"):
        scorer_of(save(tmp_path / "three", transformers.AutoModelForTokenClassification, 3))
    for separator in ("(", "(a)|b", ""):
        with pytest.raises(ConfigError, match="step_separator"):
            scorer_of(prm, step_separator=separator)


def test_a_step_token_that_the_tokenizer_lacks_is_refused_when_loading(prm):
    with pytest.raises(ConfigError, match="'<step>' is no special token"):
        scored(scorer_of(prm, step_token="<step>"), QUESTION, ["a"])


def test_requests_that_cannot_be_judged(prm):
    with pytest.raises(ContextOverflowError, match="exceed the 12 of scorer"):
        scored(scorer_of(prm, max_length=12), QUESTION, [REPLY])
    with pytest.raises(RequestError, match="token ids"):
        scored(scorer_of(prm), Request(TokenIds((1, 2))), ["a"])


def test_a_closed_scorer_and_a_failing_model_are_errors(prm):
    scorer = scorer_of(prm)
    scored(scorer, QUESTION, ["a"])
    with pytest.raises(EngineError, match="closed"):
        asyncio.run(scorer.score(QUESTION, ["a"], UsageLedger().meter("score")))
    broken, ledger = scorer_of(prm, batch_size=1), UsageLedger()
    forward, seen = broken._forward, []

    def failing(rows):
        seen.append(rows)
        if len(seen) == 2:
            raise AttributeError("no such\nthing")
        return forward(rows)

    broken._forward = failing
    with pytest.raises(EngineError, match=r"'rm' failed: no such thing$"):
        scored(broken, QUESTION, ["a", "b c d", "e f g h i j"], ledger)
    assert [call.cost.prompt_tokens for call in ledger.calls] == [len(seen[0][0])]


def test_a_cancelled_call_stops_and_records_what_was_computed(prm):
    scorer, ledger = scorer_of(prm, batch_size=1), UsageLedger()
    forward, seen = scorer._forward, []

    def slow(rows):
        seen.append(rows)
        time.sleep(0.1)
        return forward(rows)

    scorer._forward = slow

    async def cancelled():
        await scorer.load()
        call = asyncio.ensure_future(scorer.score(QUESTION, ["a"] * 50, ledger.meter("score")))
        while not seen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await scorer.close()

    asyncio.run(cancelled())
    assert 1 <= len(seen) == len(ledger.calls) <= 2


def test_concurrent_calls_give_what_single_ones_give(prm):
    texts = [[REPLY], ["7", "8"], [REPLY[:20]]]

    async def ask(together):
        scorer, meter = scorer_of(prm), UsageLedger().meter("score")
        calls = [scorer.score(QUESTION, each, meter) for each in texts]
        found = await asyncio.gather(*calls) if together else [await call for call in calls]
        await scorer.close()
        return found

    assert asyncio.run(ask(True)) == asyncio.run(ask(False))
