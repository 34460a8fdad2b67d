"""The official SDK against a server: what it sends is understood, and what it gets is what it expects."""

import asyncio
import functools
import json
import math
import time
from collections import Counter

import openai
import pytest
import torch
from openai.types.chat import ChatCompletion
from transformers import AutoModelForCausalLM, AutoTokenizer

from ensemblehub import builtin

ECHO = """
model_specs:
  - {name: big, engine: echo, replies: {"": "Goal: add. Planning: add. Retrieval: none. Action: add."}, parameters: 9,
     delay: 0.01}
  - {name: small, engine: echo, replies: {"": "It is 4. No more."}, parameters: 1, delay: 0.01}
  - {name: silent, engine: echo, replies: {"": "never said"}, fail_after: 0, parameters: 12}
  - {name: frail, engine: echo, replies: {"": "One two three four."}, fail_after: 2, parameters: 11}
ensemble:
  models: [big, small]
  output_aggregation_method: tandem
  output_aggregation_params: {levels: {low: 2, high: 4}, judge: "fixed:high"}
  request_params: {judge: {choices: ["fixed:low", "fixed:high"]}}
ensembles:
  turns: {models: [frail, small], output_aggregation_method: loop, on_error: drop}
  careful:
    models: [silent, small]
    output_aggregation_method: tandem
    output_aggregation_params: {levels: {low: 2, high: 4}, judge: "fixed:high"}
    on_error: drop
"""
BUILTIN = """
model_specs:
  - {name: mentor, engine: hf, path: "builtin:mentor"}
  - {name: intern, engine: hf, path: "builtin:intern"}
  - {name: guest, engine: hf, path: "builtin:guest"}
ensemble:
  models: [mentor, intern]
  output_aggregation_method: tandem
  output_aggregation_params: {profile: builtin, levels: {low: 24, medium: 64}, judge: "fixed:low"}
ensembles:
  together: {models: [intern, guest], output_aggregation_method: gac}
  twins: {models: [mentor, intern], output_aggregation_method: gac}
server: {max_output_tokens: 600}
"""
NARROW = """
model_specs:
  - {name: slow, engine: echo, replies: {"": "1 2 3 4 5 6 7 8"}, delay: 0.2}
server: {max_running: 1, max_queued: 0}
"""
QUESTION = "There are 8 bowls. How many bowls are there?"
OTHER = "Tom has 3 pens. How many pens has Tom?"
HARD = "Ann has 7 red hats and 5 blue hats. How many hats has Ann?"
INSIGHT = "Goal: add. Planning: add."
ANSWER = "It is 4. No more."
SEQUENCE = "There are 8 bowls and 12 cups. How many"
pytestmark = pytest.mark.anyio


def user(text=QUESTION):
    return [{"role": "user", "content": text}]


def client_of(server, **options):
    return openai.OpenAI(
        base_url=f"{server.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60, **options}
    )


@pytest.fixture(scope="module")
def echo(serve):
    return serve(ECHO)


@pytest.fixture(scope="module")
def client(echo):
    with client_of(echo) as client:
        yield client


@pytest.fixture
async def asking(echo):
    async with openai.AsyncOpenAI(
        base_url=f"{echo.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


@pytest.fixture(scope="module")
def pair(serve):
    """A client of the built-in models."""
    with client_of(serve(BUILTIN)) as client:
        yield client


@functools.cache
def tokenizer(name="intern"):
    return AutoTokenizer.from_pretrained(builtin.resolve(f"builtin:{name}"))


@functools.cache
def weights(name):
    return AutoModelForCausalLM.from_pretrained(
        builtin.resolve(f"builtin:{name}"), dtype=torch.float32
    ).eval()


def logprobs(name, ids):
    """Log-probabilities of the token after each of `ids`, (tokens, vocabulary), by a pass of its own."""
    with torch.no_grad():
        return weights(name)(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def likelihoods(lines, ids):
    return [lines[at - 1, ids[at]].item() for at in range(1, len(ids))]


def chat_ids(text=QUESTION, name="intern"):
    return tokenizer(name).apply_chat_template(user(text), add_generation_prompt=True)["input_ids"]


def untimed(usage):
    """The usage without what differs from run to run."""
    kept = usage.model_dump(exclude_none=True)
    details = kept["cost_details"]
    details.pop("seconds")
    details["spent"] = [{**line, "seconds": 0} for line in details["spent"]]
    return kept


class Stream:
    """A stream of one or more answers, put together."""

    def __init__(self, chunks):
        self.chunks = list(chunks)
        self.parts = [(chunk.choices[0], chunk.model_extra) for chunk in self.chunks if chunk.choices]
        self.usage = self.chunks[-1].usage

    def said(self, what, index=0):
        found = [getattr(choice.delta, what, None) for choice, _ in self.parts if choice.index == index]
        return "".join(text or "" for text in found)

    def finish(self, index=0):
        (reason,) = [
            choice.finish_reason for choice, _ in self.parts if choice.index == index and choice.finish_reason
        ]
        return reason


def streamed(client, **ask):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return Stream(client.chat.completions.create(**ask, **options))


# What is served


def test_models_are_listed_and_found(client):
    found = {model.id: model for model in client.models.list()}
    assert list(found) == ["ensemble", "turns", "careful", "big", "small", "silent", "frail"]
    assert found["ensemble"].model_extra["max_model_len"] is None  # a script knows no end
    assert all(model.object == "model" for model in found.values())
    assert found["ensemble"].model_extra["ensemble"] == {
        "kind": "ensemble",
        "method": "tandem",
        "members": ["big", "small"],
    }
    small = client.models.retrieve("small")
    assert small == found["small"]
    assert small.model_extra["ensemble"]["kind"] == "model"
    with pytest.raises(openai.NotFoundError, match="did you mean 'small'"):
        client.models.retrieve("smal")


# Chat


def expected(reply):
    """What every reply of the echo pair says."""
    (choice,) = reply.choices
    assert reply.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert choice.message.content == ANSWER
    assert choice.finish_reason == "stop"
    assert choice.message.reasoning_content == INSIGHT
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 9, 12)
    assert usage.completion_tokens_details.reasoning_tokens == 4


def test_a_chat_is_answered(client):
    reply = client.chat.completions.create(model="ensemble", messages=user("2 + 2?"))
    expected(reply)
    assert reply._request_id
    assert [verdict["level"] for verdict in reply.choices[0].metadata["verdicts"]] == ["low", "high"]
    assert reply.choices[0].metadata["selected_models"] == ["big", "small"]


async def test_a_chat_is_answered_asynchronously(asking):
    expected(await asking.chat.completions.create(model="ensemble", messages=user("2 + 2?")))
    stream = await asking.chat.completions.create(
        model="ensemble", messages=user("2 + 2?"), stream=True, stream_options={"include_usage": True}
    )
    read = Stream([chunk async for chunk in stream])
    assert (read.said("content"), read.said("reasoning_content"), read.finish()) == (ANSWER, INSIGHT, "stop")
    assert read.usage.completion_tokens == 9


async def test_a_stream_that_is_left_early_leaves_the_server_well(asking):
    stream = await asking.chat.completions.create(model="ensemble", messages=user("2 + 2?"), stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.model_extra.get("reasoning_content"):
            break
    await stream.close()
    expected(await asking.chat.completions.create(model="ensemble", messages=user("2 + 2?")))


async def test_many_at_once_get_what_each_gets_alone(asking):
    async def said_by(model, stream):
        ask = {"model": model, "messages": user("2 + 2?")}
        if not stream:
            return (await asking.chat.completions.create(**ask)).choices[0].message.content
        chunks = await asking.chat.completions.create(**ask, stream=True)
        return Stream([chunk async for chunk in chunks]).said("content")

    models = ["ensemble", "big", "small", "careful"] * 8
    texts = await asyncio.gather(*(said_by(model, place % 3 == 0) for place, model in enumerate(models)))
    big = "Goal: add. Planning: add. Retrieval: none. Action: add."
    assert texts == [big if model == "big" else ANSWER for model in models]


def test_a_stream_says_what_the_whole_reply_says(client):
    ask = {"model": "ensemble", "messages": user("2 + 2?")}
    whole, read = client.chat.completions.create(**ask), streamed(client, **ask)
    (choice,) = whole.choices
    assert read.said("content") == choice.message.content
    assert read.said("reasoning_content") == choice.message.reasoning_content
    assert read.finish() == choice.finish_reason
    assert untimed(read.usage) == untimed(whole.usage)
    assert read.chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in read.chunks[:-1])
    assert len({chunk.id for chunk in read.chunks}) == 1
    assert {chunk.object for chunk in read.chunks} == {"chat.completion.chunk"}


def test_the_sdks_own_accumulator_understands_a_stream(client):
    options = {"stream_options": {"include_usage": True}}
    with client.chat.completions.stream(model="ensemble", messages=user("2 + 2?"), **options) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        reply = stream.get_final_completion()
    assert "".join(texts) == reply.choices[0].message.content == ANSWER
    assert reply.choices[0].message.reasoning_content == INSIGHT
    assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("stop", 9)


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_ends_with_done_and_nothing_behind_it(client, usage):
    ask = {
        "model": "ensemble",
        "messages": user("2 + 2?"),
        "stream": True,
        "stream_options": {"include_usage": usage},
    }
    with client.chat.completions.with_streaming_response.create(**ask) as raw:
        lines = [line for line in raw.iter_lines() if line]
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert [bool(chunk.get("usage")) for chunk in chunks] == [False] * (len(chunks) - 1) + [usage]


def test_without_include_usage_a_stream_has_none(client):
    read = Stream(client.chat.completions.create(model="ensemble", messages=user("2 + 2?"), stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in read.chunks)
    assert read.said("content") == ANSWER


def test_the_role_comes_first_and_every_chunk_names_its_engine(client):
    read = streamed(client, model="ensemble", messages=user("2 + 2?"))
    (first, about), *rest = read.parts
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    assert about["ensemble"]["start"]["roles"] == {"mentor": "big", "intern": "small"}
    assert all(choice.delta.role is None for choice, _ in rest)
    verdicts = [verdict for _, extra in rest for verdict in extra["ensemble"].get("verdicts", [])]
    assert [(verdict["level"], verdict["sufficient"]) for verdict in verdicts] == [
        ("low", False),
        ("high", True),
    ]
    for choice, extra in rest:
        by = extra["ensemble"]
        if choice.delta.content:
            assert (by["engine"], by["purpose"]) == ("small", "answer")
        else:
            assert choice.delta.model_extra.get("reasoning_content")
            assert (by["engine"], by["purpose"]) == ("big", "insight")


def test_the_builtin_pair_streams_what_it_says_whole(pair):
    ask = {"model": "ensemble", "messages": user(), "max_tokens": 60}
    pair.chat.completions.create(**ask)  # from here on, everything that can be kept is
    whole, read = pair.chat.completions.create(**ask), streamed(pair, **ask)
    message = whole.choices[0].message
    assert message.reasoning_content
    assert "8" in message.content
    assert read.said("content") == message.content
    assert read.said("reasoning_content") == message.reasoning_content
    assert untimed(read.usage) == untimed(whole.usage)
    engines = {extra["ensemble"].get("engine") for choice, extra in read.parts if choice.delta.content}
    assert engines == {"intern"}


# How to generate


def test_n_answers_are_drawn_from_one_seed_and_each_is_billed(pair):
    ask = {"model": "intern", "messages": user(HARD), "n": 4, "seed": 5, "temperature": 1, "max_tokens": 24}
    first, again = (pair.chat.completions.create(**ask) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert [choice.message.content for choice in again.choices] == texts
    assert len(set(texts)) == 4
    other = pair.chat.completions.create(**{**ask, "seed": 6})
    assert [choice.message.content for choice in other.choices] != texts
    assert first.usage.prompt_tokens == len(chat_ids(HARD))
    (line,) = first.usage.cost_details["spent"]
    assert line["calls"] == 4
    assert line["completion_tokens"] == first.usage.completion_tokens
    read = streamed(pair, **ask)
    assert [read.said("content", index) for index in range(4)] == texts


@pytest.mark.parametrize("model", ["intern", "twins", "together"])
def test_min_p_leaves_out_what_is_too_improbable(pair, model):
    likely = (
        pair.chat.completions.create(
            model=model, messages=user(HARD), max_tokens=1, logprobs=True, top_logprobs=20
        )
        .choices[0]
        .logprobs.content[0]
        .top_logprobs
    )
    best, second = likely[0], likely[1]
    share = math.exp((second.logprob - best.logprob) / 2)  # of the second at temperature 2

    def drawn(min_p):
        ask = {"model": model, "messages": user(HARD), "max_tokens": 1, "temperature": 2, "n": 24, "seed": 1}
        reply = pair.chat.completions.create(**ask, logprobs=True, extra_body={"min_p": min_p})
        return {choice.logprobs.content[0].token for choice in reply.choices}

    assert drawn(min(1.0, share * 1.001)) == {best.token}
    kept = [entry for entry in likely if math.exp((entry.logprob - best.logprob) / 2) >= share * 0.999]
    assert len(drawn(share * 0.999)) <= len(kept) < len(drawn(0.0))


@pytest.mark.parametrize("model", ["twins", "together", "ensemble"])
def test_a_seed_settles_what_an_ensemble_draws(pair, model):
    ask = {"model": model, "messages": user(HARD), "n": 2, "temperature": 1, "max_tokens": 24}
    first, again, other = (pair.chat.completions.create(**ask, seed=seed).choices for seed in (5, 5, 6))
    texts = [[choice.message.content for choice in choices] for choices in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 2


@pytest.mark.parametrize(
    "narrow", [{"extra_body": {"top_k": 1}}, {"top_p": 1e-6}, {"extra_body": {"min_p": 1}}]
)
def test_drawing_from_the_top_token_alone_is_greedy(pair, narrow):
    ask = {"model": "intern", "messages": user(HARD), "max_tokens": 24}
    greedy = pair.chat.completions.create(**ask).choices[0].message.content
    drawn = pair.chat.completions.create(**ask, temperature=2, seed=1, **narrow).choices[0].message.content
    free = pair.chat.completions.create(**ask, temperature=2, seed=1).choices[0].message.content
    assert drawn == greedy != free


def test_each_of_n_answers_has_its_own_insight_and_usage(client):
    single = client.chat.completions.create(model="ensemble", messages=user("2 + 2?"))
    three = client.chat.completions.create(model="ensemble", messages=user("2 + 2?"), n=3)
    assert [choice.message.reasoning_content for choice in three.choices] == [INSIGHT] * 3
    assert three.usage.cost_details["flops"] == 3 * single.usage.cost_details["flops"]
    assert (three.usage.prompt_tokens, three.usage.completion_tokens) == (3, 27)


@pytest.mark.parametrize("stop", ["add", ["add", " No"]])
def test_stop_ends_the_answer_and_not_the_insight(client, stop):
    reply = client.chat.completions.create(model="ensemble", messages=user("2 + 2?"), stop=stop)
    (choice,) = reply.choices
    assert choice.message.reasoning_content == INSIGHT
    assert choice.message.content == (ANSWER if stop == "add" else "It is 4.")
    assert choice.finish_reason == "stop"
    read = streamed(client, model="ensemble", messages=user("2 + 2?"), stop=stop)
    assert (read.said("content"), read.said("reasoning_content")) == (choice.message.content, INSIGHT)
    assert read.finish() == "stop"


def test_stop_ends_the_answer_of_a_model_too(pair):
    whole = pair.chat.completions.create(model="ensemble", messages=user()).choices[0].message
    short = pair.chat.completions.create(model="ensemble", messages=user(), stop=" =").choices[0]
    assert " =" in whole.reasoning_content
    assert short.message.reasoning_content == whole.reasoning_content
    assert short.message.content == whole.content.partition(" =")[0]
    assert short.finish_reason == "stop"
    read = streamed(pair, model="ensemble", messages=user(), stop=" =")
    assert (read.said("content"), read.finish()) == (short.message.content, "stop")


def test_max_tokens_limits_the_answer(client):
    reply = client.chat.completions.create(model="ensemble", messages=user("2 + 2?"), max_tokens=2)
    assert reply.choices[0].message.content == "It is"
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].message.reasoning_content == INSIGHT


@pytest.mark.parametrize(
    ("limits", "insight", "answer", "finish"),
    [
        ({"max_completion_tokens": 9}, INSIGHT, ANSWER, "stop"),
        ({"max_completion_tokens": 8}, INSIGHT, "It is 4. No", "length"),
        ({"max_completion_tokens": 5}, INSIGHT, "It", "length"),
        ({"max_completion_tokens": 4}, "Goal: add. Planning:", "It", "length"),
        ({"max_completion_tokens": 2}, "Goal:", "It", "length"),
        ({"max_completion_tokens": 1}, None, "It", "length"),
        ({"max_completion_tokens": 8, "max_tokens": 2}, INSIGHT, "It is", "length"),
        ({"max_completion_tokens": 6, "max_tokens": 5}, INSIGHT, "It is", "length"),
    ],
)
def test_max_completion_tokens_limits_insight_and_answer_together(client, limits, insight, answer, finish):
    ask = {"model": "ensemble", "messages": user("2 + 2?"), **limits}
    whole, read = client.chat.completions.create(**ask), streamed(client, **ask)
    (choice,) = whole.choices
    assert (getattr(choice.message, "reasoning_content", None), choice.message.content) == (insight, answer)
    assert (read.said("reasoning_content"), read.said("content")) == (insight or "", answer)
    assert choice.finish_reason == read.finish() == finish
    assert whole.usage.completion_tokens == read.usage.completion_tokens <= limits["max_completion_tokens"]
    text = client.completions.create(
        model="ensemble", prompt="2 + 2?", **{"max_tokens": 16, "extra_body": limits}
    )
    assert (getattr(text.choices[0], "reasoning_content", None), text.choices[0].text) == (insight, answer)


def test_max_completion_tokens_limits_a_model_alone(pair):
    reply = pair.chat.completions.create(
        model="intern", messages=user(), max_completion_tokens=3, max_tokens=9
    )
    assert reply.usage.completion_tokens == 3
    assert reply.choices[0].finish_reason == "length"


@pytest.mark.parametrize("most", [2, 30])
def test_max_completion_tokens_limits_what_the_builtin_pair_writes(pair, most):
    reply = pair.chat.completions.create(model="ensemble", messages=user(), max_completion_tokens=most)
    details = reply.usage.completion_tokens_details
    assert reply.usage.completion_tokens == most
    assert 0 < details.reasoning_tokens <= min(24, most - 1)
    assert reply.choices[0].finish_reason == "length"


@pytest.mark.parametrize("model", ["intern", "twins"])
def test_a_chat_has_logprobs(pair, model):
    reply = pair.chat.completions.create(
        model=model, messages=user(), max_tokens=6, logprobs=True, top_logprobs=3
    )
    entries = reply.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == reply.choices[0].message.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == reply.choices[0].message.content
    for entry in entries:
        assert [entry.token, entry.logprob] == [
            entry.top_logprobs[0].token,
            entry.top_logprobs[0].logprob,
        ]  # greedy
        values = [candidate.logprob for candidate in entry.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5
    read = streamed(pair, model=model, messages=user(), max_tokens=6, logprobs=True, top_logprobs=3)
    found = [entry for choice, _ in read.parts if choice.logprobs for entry in choice.logprobs.content or []]
    assert [entry.token for entry in found] == [entry.token for entry in entries]
    assert [entry.logprob for entry in found] == pytest.approx([entry.logprob for entry in entries], abs=1e-4)


def test_logprobs_of_a_chat_are_the_models_own(pair):
    reply = pair.chat.completions.create(
        model="intern", messages=user(), max_tokens=8, logprobs=True, top_logprobs=2
    )
    entries = reply.choices[0].logprobs.content
    read = chat_ids()
    ids = [*read, *tokenizer().encode("".join(entry.token for entry in entries))]
    assert len(ids) == len(read) + 8
    lines = logprobs("intern", ids)
    assert [entry.logprob for entry in entries] == pytest.approx(likelihoods(lines, ids)[-8:], abs=1e-4)
    for entry, line in zip(entries, lines[len(read) - 1 :], strict=False):
        best = line.topk(2).values.tolist()
        assert [candidate.logprob for candidate in entry.top_logprobs] == pytest.approx(best, abs=1e-4)


def test_logit_bias_forces_a_token(pair):
    (index,) = tokenizer().encode(" bowls")
    ask = {"model": "intern", "messages": user(), "max_tokens": 3}
    reply = pair.chat.completions.create(**ask, logit_bias={str(index): 100})
    assert reply.choices[0].message.content == " bowls" * 3
    (first,) = tokenizer().encode("Facts")
    assert pair.chat.completions.create(**ask).choices[0].message.content.startswith("Facts")
    without = pair.chat.completions.create(**ask, logit_bias={str(first): -100})
    assert not without.choices[0].message.content.startswith("Facts")
    for model in ("twins", "together"):
        with pytest.raises(openai.BadRequestError, match="logit_bias"):
            pair.chat.completions.create(**{**ask, "model": model}, logit_bias={str(index): 100})


def greedily(ids, count, favoured, presence=0.0, frequency=0.0, repetition=1.0):
    """What the intern writes by the definitions of OpenAI's two penalties and of vLLM's."""
    read, written = len(ids), Counter()
    while len(ids) < read + count:
        with torch.no_grad():
            line = weights("intern")(torch.tensor([ids])).logits[0, -1].double()
        line[favoured] += 50
        if repetition != 1.0:
            for index in set(ids):
                line[index] *= repetition if line[index] < 0 else 1 / repetition
        for index, times in written.items():
            line[index] -= presence + frequency * times
        ids = [*ids, int(line.argmax())]
        written[ids[-1]] += 1
    return tokenizer().decode(ids[read:])


@pytest.mark.parametrize(
    ("asked", "by_hand"),
    [
        ({}, {}),
        ({"presence_penalty": 2}, {"presence": 2}),
        ({"frequency_penalty": 2, "presence_penalty": -1}, {"frequency": 2, "presence": -1}),
        ({"extra_body": {"repetition_penalty": 1.4}}, {"repetition": 1.4}),
    ],
)
def test_penalties_are_what_they_are_elsewhere(pair, asked, by_hand):
    favoured = [index for word in (" bowls", " cups", " mugs", " pens") for index in tokenizer().encode(word)]
    ask = {"model": "intern", "prompt": SEQUENCE, "max_tokens": 16}
    ask["logit_bias"] = {str(index): 50 for index in favoured}  # between which the penalties decide
    text = pair.completions.create(**ask, **asked).choices[0].text
    assert text == greedily(tokenizer().encode(SEQUENCE), 16, favoured, **by_hand)
    if asked:
        assert text != pair.completions.create(**ask).choices[0].text
        for model in ("twins", "together"):
            with pytest.raises(openai.BadRequestError, match="penalty"):
                pair.completions.create(model=model, prompt=SEQUENCE, **asked)


@pytest.mark.parametrize("model", ["intern", "twins"])
def test_a_last_message_is_continued(pair, model):
    whole = pair.chat.completions.create(model=model, messages=user()).choices[0].message.content
    head = whole[: whole.index("\n") + 1]
    begun = [*user(), {"role": "assistant", "content": head}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    rest = pair.chat.completions.create(model=model, messages=begun, extra_body=extra)
    assert rest.choices[0].message.content == whole.removeprefix(head)
    assert rest.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_what_stands_behind_the_last_mark_is_kept(pair, stream):
    ask = {"model": "intern", "messages": user(), "extra_body": {"extract_after": ["Facts:", "Answer:"]}}
    if not stream:
        assert pair.chat.completions.create(**ask).choices[0].message.content == "\\boxed{8}"
        return
    read = streamed(pair, **ask)
    assert [choice.delta.content for choice, _ in read.parts if choice.delta.content] == ["\\boxed{8}"]
    assert read.finish() == "stop"


# Several prompts, and raw ones


def test_conversations_are_answered_together(pair):
    alone = [pair.chat.completions.create(model="intern", messages=user(text)) for text in (QUESTION, OTHER)]
    texts = [reply.choices[0].message.content for reply in alone]
    body = {"model": "intern", "messages": [user(QUESTION), user(OTHER)]}
    posted = pair.post("/chat/completions", body=body, cast_to=ChatCompletion)
    extra = pair.chat.completions.create(
        model="intern", messages=[], extra_body={"messages": body["messages"]}
    )
    for reply in (posted, extra):
        assert [choice.message.content for choice in reply.choices] == texts
        assert [choice.index for choice in reply.choices] == [0, 1]
        assert reply.usage.prompt_tokens == sum(single.usage.prompt_tokens for single in alone)
        assert reply.usage.completion_tokens == sum(single.usage.completion_tokens for single in alone)


def test_prompts_come_as_texts_or_token_ids_one_or_several(pair):
    texts = ["There are 8", "Tom has 3 pens."]
    ids = [tokenizer().encode(text) for text in texts]
    ask = {"model": "intern", "max_tokens": 5}
    alone = [pair.completions.create(**ask, prompt=text) for text in texts]
    answers = [reply.choices[0].text for reply in alone]
    assert all(answers)
    assert [pair.completions.create(**ask, prompt=prompt).choices[0].text for prompt in ids] == answers
    for prompt in (texts, ids):
        reply = pair.completions.create(**ask, prompt=prompt)
        assert reply.object == "text_completion"
        assert [choice.text for choice in reply.choices] == answers
        assert reply.usage.prompt_tokens == sum(map(len, ids))
    twice = pair.completions.create(**ask, prompt=texts, n=2)
    assert [choice.text for choice in twice.choices] == [text for text in answers for _ in range(2)]
    assert twice.usage.prompt_tokens == sum(map(len, ids))


def test_a_text_completion_streams(pair):
    ask = {"model": "intern", "prompt": "There are 8", "max_tokens": 5}
    whole = pair.completions.create(**ask)
    chunks = list(pair.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 5


def test_a_text_completion_of_tandem_carries_the_insight_beside_the_text(client):
    ask = {"model": "ensemble", "prompt": "2 + 2?"}
    (choice,) = client.completions.create(**ask).choices
    assert (choice.text, choice.reasoning_content) == (ANSWER, INSIGHT)
    parts = [chunk.choices[0] for chunk in client.completions.create(**ask, stream=True)]
    assert "".join(part.text for part in parts) == ANSWER
    assert "".join(part.model_extra.get("reasoning_content", "") for part in parts) == INSIGHT


@pytest.mark.parametrize("count", [0, 1, 3])
def test_text_completions_have_logprobs_in_the_old_form(pair, count):
    reply = pair.completions.create(model="intern", prompt="There are 8", max_tokens=4, logprobs=count)
    known, text = reply.choices[0].logprobs, reply.choices[0].text
    assert "".join(known.tokens) == text
    assert [
        text[at:][: len(token)] for at, token in zip(known.text_offset, known.tokens, strict=True)
    ] == known.tokens
    read = tokenizer().encode("There are 8")
    ids = [*read, *tokenizer().encode(text)]
    assert known.token_logprobs == pytest.approx(likelihoods(logprobs("intern", ids), ids)[-4:], abs=1e-4)
    for token, value, top in zip(known.tokens, known.token_logprobs, known.top_logprobs, strict=True):
        assert top[token] == value == max(top.values())
        assert len(top) == max(1, count)


def test_echo_repeats_the_prompt(client, pair):
    assert (
        client.completions.create(model="small", prompt="Go on: ", echo=True).choices[0].text
        == "Go on: " + ANSWER
    )
    ask = {"model": "intern", "prompt": "There are 8", "max_tokens": 4}
    plain = pair.completions.create(**ask).choices[0].text
    assert pair.completions.create(**ask, echo=True).choices[0].text == "There are 8" + plain
    chunks = pair.completions.create(**ask, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "There are 8" + plain


# What a request may say about the ensemble


def test_a_request_chooses_a_method_and_a_parameter(client):
    ask = {"model": "ensemble", "messages": user("2 + 2?")}
    for method in ("turns", "loop"):
        reply = client.chat.completions.create(**ask, extra_body={"ensemble": {"method": method}})
        assert reply.model == "turns"
        assert reply.choices[0].metadata["method"] == "loop"
        assert reply.choices[0].message.content == "One two" + ANSWER
    low = {"ensemble": {"method": "tandem", "params": {"judge": "fixed:low"}}}
    (choice,) = client.chat.completions.create(**ask, extra_body=low).choices
    assert (choice.message.content, choice.message.reasoning_content) == (ANSWER, "Goal: add.")
    assert [(verdict["level"], verdict["sufficient"]) for verdict in choice.metadata["verdicts"]] == [
        ("low", True)
    ]
    assert streamed(client, **ask, extra_body=low).said("reasoning_content") == "Goal: add."
    expected(client.chat.completions.create(**ask))  # the next request finds everything as it was


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "options", "code", "param", "says"),
    [
        (
            "ensemble",
            {"params": {"judge": "fixed:none"}},
            "out_of_bounds",
            "params.judge",
            "fixed:low, fixed:high",
        ),
        ("ensemble", {"params": {"levels": {"low": 1}}}, None, "params.levels", "it may set: judge"),
        ("turns", {"params": {"max_rounds": 1}}, None, "params.max_rounds", "it may set: none"),
        ("ensemble", {"method": "gac"}, None, "method", "not configured here"),
        ("small", {"method": "turns"}, None, "method", "one model"),
        ("ensemble", {"model_specs": []}, "invalid_value", "model_specs", "not permitted"),
    ],
)
def test_what_a_request_may_not_say_about_the_ensemble_is_refused(
    client, model, options, code, param, says, stream
):
    with pytest.raises(openai.BadRequestError, match=says) as refused:
        client.chat.completions.create(
            model=model, messages=user(), stream=stream, extra_body={"ensemble": options}
        )
    assert (refused.value.code, refused.value.param) == (code, f"ensemble.{param}")


# Usage


def test_prompt_tokens_are_the_interns(pair):
    read = len(chat_ids())
    for model in ("ensemble", "intern", "together"):
        reply = pair.chat.completions.create(model=model, messages=user(), max_tokens=4)
        assert reply.usage.prompt_tokens == read
        assert reply.usage.total_tokens == read + reply.usage.completion_tokens
    reply = pair.completions.create(model="intern", prompt=SEQUENCE, max_tokens=1)
    assert reply.usage.prompt_tokens == len(tokenizer().encode(SEQUENCE))


@pytest.mark.parametrize(("most", "finish"), [(9, "length"), (300, "stop")])
def test_completion_tokens_are_those_of_insight_and_answer(pair, most, finish):
    reply = pair.chat.completions.create(model="ensemble", messages=user(), max_tokens=most)
    (choice,), usage = reply.choices, reply.usage
    written = (choice.message.reasoning_content, choice.message.content)
    insight, answer = (len(tokenizer().encode(text)) for text in written)
    insight, answer = insight + 1, answer + (finish == "stop")  # an end of text is a token too
    assert choice.finish_reason == finish
    assert usage.completion_tokens_details.reasoning_tokens == insight
    assert usage.completion_tokens == insight + answer
    written = {
        (line["engine"], line["purpose"]): line["completion_tokens"] for line in usage.cost_details["spent"]
    }
    assert written == {("judge", "judge"): 0, ("mentor", "insight"): insight, ("intern", "answer"): answer}


def test_what_was_read_before_is_cached(pair):
    ask = {"messages": user("Sam has 9 old cups and 4 new cups. How many cups has Sam?"), "max_tokens": 8}
    for model in ("intern", "mentor", "ensemble"):
        first, second = (pair.chat.completions.create(model=model, **ask).usage for _ in range(2))
        cached = [usage.prompt_tokens_details.cached_tokens for usage in (first, second)]
        assert cached[0] < cached[1] <= second.prompt_tokens
        assert cached[1] > second.prompt_tokens // 2
        assert second.cost_details["flops"] < first.cost_details["flops"]


@pytest.mark.parametrize("model", ["ensemble", "mentor", "twins", "together"])
def test_the_usage_adds_up(pair, model):
    usage = pair.chat.completions.create(model=model, messages=user(), max_tokens=20, n=2).usage
    cost = usage.cost_details
    assert cost["flops"] > 0
    assert sum(line["flops"] for line in cost["spent"]) == pytest.approx(cost["flops"])
    assert sum(line["seconds"] for line in cost["spent"]) == pytest.approx(cost["seconds"])
    for line in cost["spent"]:
        assert line["prefill_flops"] + line["decode_flops"] == pytest.approx(line["flops"])
    engines = {line["engine"] for line in cost["spent"]} - {"judge"}
    members = {"mentor": {"mentor"}, "together": {"intern", "guest"}}
    assert engines == members.get(model, {"mentor", "intern"})


# Errors


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"max_tokens": 601}, "out_of_bounds", "max_tokens"),
        ({"max_completion_tokens": 601}, "out_of_bounds", "max_completion_tokens"),
        ({"n": 65}, "out_of_bounds", "n"),
        ({"extra_body": {"temprature": 1}}, "unknown_field", "temprature"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": user("There are 8 bowls. " * 3000)}, "context_length_exceeded", "messages"),
        ({"top_logprobs": 30, "logprobs": True}, "invalid_value", "top_logprobs"),
        ({"logprobs": True, "extra_body": {"extract_after": "Answer:"}}, None, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "add"}}]}, "unsupported", "tools"),
    ],
)
def test_a_bad_request_says_what_is_wrong(pair, change, code, param):
    with pytest.raises(openai.BadRequestError) as refused:
        pair.chat.completions.create(**{"model": "intern", "messages": user(), **change})
    assert refused.value.status_code == 400
    assert (refused.value.code, refused.value.type) == (code, "invalid_request_error")
    assert (refused.value.param or "").startswith(param)
    assert refused.value.request_id


@pytest.mark.parametrize("model", ["ensemble", "intern", "twins", "together"])
def test_a_context_that_overflows_is_said_in_openais_words(pair, model):
    long, about = "There are 8 bowls. " * 1000, {"ensemble": {"context_tokens": 3000}}
    echo = {"echo": True, "logprobs": 1, "extra_body": about if model == "ensemble" else {}}
    asks = [
        lambda: pair.chat.completions.create(model=model, messages=user(long)),
        lambda: next(iter(pair.chat.completions.create(model=model, messages=user(long), stream=True))),
        lambda: pair.completions.create(model=model, prompt=long),
        lambda: pair.completions.create(model=model, prompt=long, max_tokens=0, **echo),
    ]
    for ask in asks:
        with pytest.raises(
            openai.BadRequestError, match="This model's maximum context length is 2048"
        ) as refused:
            ask()
        assert refused.value.code == "context_length_exceeded"
        assert refused.value.param in ("messages", "prompt")


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_is_not_there(client, stream):
    with pytest.raises(openai.NotFoundError, match="did you mean 'ensemble'") as refused:
        client.chat.completions.create(model="ensembl", messages=user(), stream=stream)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert refused.value.type == "not_found_error"


async def test_a_key_is_needed_where_one_is_set(serve):
    server = serve(ECHO, "--api-key", "sesame")
    calls = (
        lambda client: client.models.list(),
        lambda client: client.chat.completions.create(model="small", messages=user()),
    )
    for call in calls:
        with (
            client_of(server, api_key="sesam") as client,
            pytest.raises(openai.AuthenticationError) as refused,
        ):
            call(client)
        assert refused.value.code == "invalid_api_key"
        with client_of(server, api_key="sesame") as client:
            assert call(client)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="no", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="small", messages=user(), stream=True)


@pytest.fixture(scope="module")
def narrow(serve):
    return serve(NARROW)


@pytest.mark.parametrize("stream", [False, True])
def test_beyond_the_queue_there_is_a_rate_limit_error_that_says_when_to_come_again(narrow, stream):
    ask = {"model": "slow", "messages": user()}
    with client_of(narrow) as client:
        first = client.chat.completions.create(**ask, stream=True)
        next(first)
        with pytest.raises(openai.RateLimitError, match="the server is busy") as refused:
            client.chat.completions.create(**ask, stream=stream)
        assert refused.value.code == "overloaded"
        assert refused.value.type == "rate_limit_error"
        assert int(refused.value.response.headers["retry-after"]) in (
            1,
            2,
        )  # about as long as one answer takes
        assert Stream(first).said("content") == "1 2 3 4 5 6 7 8"  # the one that was there first lost nothing
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**ask, n=2, stream=stream)


def test_a_client_that_retries_waits_as_long_as_it_is_told_and_is_answered(narrow):
    ask = {"model": "slow", "messages": user()}
    with client_of(narrow) as client, client_of(narrow, max_retries=3) as patient:
        first = client.chat.completions.create(**ask, stream=True)
        next(first)
        started = time.monotonic()
        reply = patient.chat.completions.create(**ask)
        assert reply.choices[0].message.content == "1 2 3 4 5 6 7 8"
        assert time.monotonic() - started > 1.0
        first.close()


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_before_it_says_anything_is_a_server_error(client, stream):
    with pytest.raises(openai.InternalServerError, match="silent failed after 0 tokens") as failed:
        client.chat.completions.create(model="silent", messages=user(), stream=stream)
    assert (failed.value.status_code, failed.value.code) == (502, "engine_error")


async def test_an_engine_that_fails_in_a_stream_is_an_error_there(client, asking):
    stream = client.chat.completions.create(model="frail", messages=user(), stream=True)
    assert "".join(next(stream).choices[0].delta.content for _ in range(3)) == "One two"
    with pytest.raises(openai.APIError, match="frail failed after 2 tokens") as failed:
        next(stream)
    assert failed.value.code == "engine_error"
    stream = await asking.chat.completions.create(model="frail", messages=user(), stream=True)
    assert "".join([(await anext(stream)).choices[0].delta.content for _ in range(3)]) == "One two"
    with pytest.raises(openai.APIError, match="frail failed after 2 tokens"):
        await anext(stream)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="frail", messages=user())


@pytest.mark.parametrize(
    ("model", "gone", "text"), [("turns", "frail", "One two" + ANSWER), ("careful", "silent", ANSWER)]
)
def test_where_failing_engines_are_dropped_the_others_go_on_and_the_reply_says_so(client, model, gone, text):
    reply = client.chat.completions.create(model=model, messages=user())
    (choice,) = reply.choices
    assert (choice.message.content, choice.finish_reason) == (text, "stop")
    (dropped,) = choice.metadata["choices"]
    assert dropped["reason"].startswith(f"dropped {gone}: ")
    assert choice.metadata["selected_models"] == dropped["chosen"] == ["small"]
    assert {line["engine"] for line in reply.usage.cost_details["spent"]} == {gone, "small"}
    read = streamed(client, model=model, messages=user())
    assert (read.said("content"), read.finish()) == (text, "stop")
    assert [choice for _, extra in read.parts for choice in extra["ensemble"].get("choices", [])] == [dropped]
    assert untimed(read.usage) == untimed(reply.usage)


# Log-likelihoods


def scored(client, model, prompt, max_tokens=0, **options):
    reply = client.completions.create(
        model=model, prompt=prompt, echo=True, max_tokens=max_tokens, **{"logprobs": 1, **options}
    )
    return [choice.logprobs for choice in reply.choices]


@pytest.mark.parametrize("ids", [False, True], ids=["text", "ids"])
@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("model", ["mentor", "intern", "guest"])
def test_a_models_log_likelihoods_are_its_own(pair, model, max_tokens, count, ids):
    read = tokenizer(model).encode(SEQUENCE)
    (known,) = scored(pair, model, read if ids else SEQUENCE, max_tokens, logprobs=count)
    assert len(known.tokens) == len(read) + max_tokens
    assert "".join(known.tokens).startswith(SEQUENCE)
    if max_tokens:
        best = int(logprobs(model, read)[-1].argmax())
        read = [*read, best]
        assert known.tokens[-1] == tokenizer(model).decode([best])
    lines = logprobs(model, read)
    assert known.token_logprobs[0] is None
    assert known.top_logprobs[0] is None
    assert known.token_logprobs[1:] == pytest.approx(likelihoods(lines, read), abs=1e-4)
    for token, value, top, line in zip(
        known.tokens[1:], known.token_logprobs[1:], known.top_logprobs[1:], lines, strict=False
    ):
        assert top[token] == value
        if count:
            assert max(top.values()) == pytest.approx(line.max().item(), abs=1e-4)


def test_several_prompts_are_scored_at_once(pair):
    prompts = [SEQUENCE, QUESTION, OTHER]
    for model in ("intern", "twins", "together"):
        alone = [scored(pair, model, prompt)[0].token_logprobs for prompt in prompts]
        for known, values in zip(scored(pair, model, prompts), alone, strict=True):
            assert known.token_logprobs[1:] == pytest.approx(values[1:], abs=1e-4)


def mixture(ids):
    """Of mentor and intern: the log of the mean of their probabilities."""
    mentor, intern = logprobs("mentor", ids), logprobs("intern", ids)
    return torch.logaddexp(mentor, intern) - math.log(2)


@pytest.mark.parametrize("ids", [False, True], ids=["text", "ids"])
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_the_log_likelihood_of_twins_is_that_of_the_mean_of_their_probabilities(pair, max_tokens, ids):
    read = tokenizer().encode(SEQUENCE)
    (known,) = scored(pair, "twins", read if ids else SEQUENCE, max_tokens)
    if max_tokens:
        read = [*read, int(mixture(read)[-1].argmax())]
    lines = mixture(read)
    assert known.token_logprobs[0] is None
    assert known.token_logprobs[1:] == pytest.approx(likelihoods(lines, read), abs=1e-4)
    top_logprobs = [max(top.values()) for top in known.top_logprobs[1:]]
    assert top_logprobs == pytest.approx(lines[: len(top_logprobs)].max(-1).values.tolist(), abs=1e-4)
    assert "".join(known.tokens) == tokenizer().decode(read)


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("size", [8, 100])
@pytest.mark.parametrize("model", ["intern", "twins"])
def test_an_end_of_text_within_a_prompt_is_read_like_any_token(pair, model, size, max_tokens):
    words = tokenizer().encode(SEQUENCE)
    read = [*words[:3], tokenizer().eos_token_id, *(words * 10)[: size - 4]]
    for count in (1, 4):
        (known,) = scored(pair, model, read, max_tokens, logprobs=count)
        lines = mixture(read) if model == "twins" else logprobs(model, read)
        found = known.token_logprobs[1:]
        assert found[: size - 1] == pytest.approx(likelihoods(lines, read), abs=1e-4)
        assert found[size - 1 :] == pytest.approx([lines[-1].max().item()] * max_tokens, abs=1e-4)


def test_a_prompt_that_is_only_read_has_no_token_written(pair):
    read = [*tokenizer().encode("There are"), tokenizer().eos_token_id]
    for prompt in (tokenizer().encode(SEQUENCE), read):
        reply = pair.completions.create(model="twins", prompt=prompt, echo=True, logprobs=1, max_tokens=0)
        lines = [
            (line["prompt_tokens"], line["completion_tokens"]) for line in reply.usage.cost_details["spent"]
        ]
        assert lines == [(len(prompt), 0)] * 2


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("model", ["intern", "twins", "together", "ensemble"])
def test_a_token_id_that_is_not_there_is_refused(pair, model, place, count):
    read = tokenizer().encode("There are 8 bowls")
    read.insert(place, 5000)
    extra = {"ensemble": {"context_tokens": 3}} if model == "ensemble" else {}
    with pytest.raises(openai.BadRequestError, match="5000"):
        scored(pair, model, read, logprobs=count, extra_body=extra)


def test_other_tokenizers_read_the_same_bytes_or_the_prompt_is_refused(pair):
    parts = tokenizer().encode("\u65e5")  # a character of three bytes, each a token
    assert [tokenizer().decode([part]) for part in parts] == ["\ufffd"] * 3
    head, tail = tokenizer().encode("There are"), tokenizer().encode(" 8")
    for start in (parts, parts[1:2]):
        with pytest.raises(openai.BadRequestError, match="part of a character") as refused:
            scored(pair, "together", [*start, *tail])
        assert refused.value.code == "unsupported"
    for middle in (parts, parts[1:2]):
        (known,) = scored(pair, "together", [*head, *middle, *tail])
        assert len(known.tokens) == len(head) + len(middle) + len(tail)
        assert all(value < 0 for value in known.token_logprobs[1:])
    (known,) = scored(pair, "together", "There are\u65e5 8")
    (same,) = scored(pair, "together", [*head, *parts, *tail])
    assert known.tokens == same.tokens
    assert known.token_logprobs[1:] == pytest.approx(same.token_logprobs[1:], abs=1e-4)


def test_a_streamed_log_likelihood_is_the_same(pair):
    for model in ("intern", "twins"):
        (known,) = scored(pair, model, SEQUENCE, 1)
        chunks = pair.completions.create(
            model=model, prompt=SEQUENCE, echo=True, logprobs=1, max_tokens=1, stream=True
        )
        parts = [chunk.choices[0] for chunk in chunks]
        found = [part.logprobs for part in parts if part.logprobs]
        assert [token for part in found for token in part.tokens] == known.tokens
        values = [value for part in found for value in part.token_logprobs]
        assert values[1:] == pytest.approx(known.token_logprobs[1:], abs=1e-4)
        assert [at for part in found for at in part.text_offset] == known.text_offset
        assert "".join(part.text for part in parts) == "".join(known.tokens)


def test_models_of_different_tokenizers_have_a_log_likelihood_in_the_first_ones_tokens(pair):
    (known,) = scored(pair, "together", SEQUENCE)
    assert known.tokens == [tokenizer().decode([index]) for index in tokenizer().encode(SEQUENCE)]
    assert all(value < 0 for value in known.token_logprobs[1:])


def test_a_control_token_means_nothing_to_other_tokenizers(pair):
    end = tokenizer().eos_token_id
    read = [*tokenizer().encode("There are"), end, *tokenizer().encode(" 8 bowls")]
    for max_tokens in (0, 1):
        with pytest.raises(openai.BadRequestError, match=f"token id {end} is a control token") as refused:
            scored(pair, "together", read, max_tokens)
        assert refused.value.code == "unsupported"


def test_tandem_has_to_know_where_the_context_ends(pair):
    context = tokenizer().encode(QUESTION)
    read = [*context, *tokenizer().encode("Facts: bowls = 8")]
    with pytest.raises(openai.BadRequestError, match=r"ensemble\.context_tokens") as refused:
        scored(pair, "ensemble", read)
    assert str(len(read)) in str(refused.value)
    for wrong in (0, len(read) + 1):
        with pytest.raises(openai.BadRequestError, match=r"context_tokens"):
            scored(pair, "ensemble", read, extra_body={"ensemble": {"context_tokens": wrong}})
    for max_tokens in (0, 1):
        reply = pair.completions.create(
            model="ensemble",
            prompt=read,
            echo=True,
            logprobs=1,
            max_tokens=max_tokens,
            extra_body={"ensemble": {"context_tokens": len(context)}},
        )
        (choice,) = reply.choices
        values = choice.logprobs.token_logprobs
        assert values[: len(context)] == [None] * len(context)
        assert len(values) == len(read) + max_tokens
        assert all(value <= 0 for value in values[len(context) :])
        assert choice.reasoning_content
        assert {line["purpose"] for line in reply.usage.cost_details["spent"]} >= {"insight", "score"}
        assert choice.logprobs.tokens[: len(read)] == [tokenizer().decode([index]) for index in read]


def test_insights_of_a_log_likelihood_come_from_the_context_alone(pair):
    context = tokenizer().encode(QUESTION)
    found = []
    for rest in ("Facts: bowls = 8", "Facts: bowls = 3", "A bird."):
        reply = pair.completions.create(
            model="ensemble",
            prompt=[*context, *tokenizer().encode(rest)],
            echo=True,
            logprobs=1,
            max_tokens=0,
            extra_body={"ensemble": {"context_tokens": len(context)}},
        )
        values = reply.choices[0].logprobs.token_logprobs[len(context) :]
        found.append((reply.choices[0].reasoning_content, sum(values)))
    assert len({insight for insight, _ in found}) == 1
    assert found[0][1] > found[1][1] > found[2][1]


def test_segment_level_ensembles_have_no_log_likelihood(client):
    with pytest.raises(openai.BadRequestError, match="log-likelihood"):
        scored(client, "turns", "There are 8")


def test_a_reply_is_plain_json(client):
    raw = client.chat.completions.with_raw_response.create(model="ensemble", messages=user("2 + 2?"))
    assert raw.headers["content-type"] == "application/json"
    assert json.loads(raw.content)["choices"][0]["message"]["content"] == ANSWER
