"""Third-party clients against the server: two turns each, with the reply's own message sent back."""

import asyncio
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched
litellm = pytest.importorskip(
    "litellm", reason="the clients have an environment of their own: make test-clients"
)
openai = pytest.importorskip("openai")
langchain_openai = pytest.importorskip("langchain_openai")
pydantic_ai = pytest.importorskip("pydantic_ai")

from langchain_core.exceptions import ContextOverflowError  # noqa: E402
from langchain_core.messages import HumanMessage, ToolMessage  # noqa: E402
from pydantic_ai.models.openai import OpenAIChatModel  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

INSIGHT = "Goal: add. Planning: add."
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
LONG = "word " * 400
NODE = Path(__file__).parent / "ai_sdk"


def user(text):
    return {"role": "user", "content": text}


# LiteLLM


@pytest.mark.client("LiteLLM", "answers", "streams")
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
@pytest.mark.parametrize("stream", [False, True])
def test_litellm_talks_for_three_turns(url, provider, stream):
    ask = {"model": f"{provider}/ensemble", "api_base": url, "api_key": "none", "stream": stream}
    ask |= {"temperature": 0, "user": "me", "metadata": {"trace_id": "1"}}
    ask |= {"stream_options": {"include_usage": True}} if stream else {}
    turns, said = [user("2 + 2?")], []
    for question in ("Sure?", "Sure? Really?", None):
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "error", message="(?s).*erializ.*"
            )  # of a usage that is not what it expects
            reply = litellm.completion(messages=turns, **ask)
            reply = litellm.stream_chunk_builder(list(reply), messages=turns) if stream else reply
            message = reply.model_dump()["choices"][0]["message"]
        assert message["reasoning_content"] == INSIGHT
        assert reply.usage.completion_tokens_details.reasoning_tokens == 4
        said.append(message["content"])
        turns += [message, user(question)]
    assert said == ["It is 4.", "Yes, 4.", "Yes, 4."]


@pytest.mark.client("LiteLLM", "errors")
def test_litellm_recognises_a_context_that_overflows(url):
    for stream in (False, True):
        for provider in ("openai", "hosted_vllm"):
            ask = {"model": f"{provider}/ensemble", "api_base": url, "api_key": "none", "stream": stream}
            with pytest.raises(litellm.ContextWindowExceededError):
                list(litellm.completion(messages=[user(LONG)], **ask))


def test_litellm_asks_for_an_effort(url):
    ask = {"model": "hosted_vllm/ensemble", "api_base": url, "api_key": "none", "messages": [user("2 + 2?")]}
    found = [litellm.completion(**ask, reasoning_effort=effort) for effort in ("low", "high", "none")]
    thoughts = [reply.choices[0].message.get("reasoning_content") for reply in found]
    assert thoughts == ["Goal: add.", INSIGHT, None]


@pytest.mark.client("LiteLLM", "tools")
@pytest.mark.parametrize("stream", [False, True])
def test_litellm_calls_a_tool_and_sends_its_reply(url, stream):
    ask = {"model": "openai/caller", "api_base": url, "api_key": "none", "tools": [TOOL], "stream": stream}
    ask |= {"stream_options": {"include_usage": True}} if stream else {}
    turns = [user("2 + 2?")]
    reply = litellm.completion(messages=turns, **ask)
    reply = litellm.stream_chunk_builder(list(reply), messages=turns) if stream else reply
    message, usage = reply.choices[0].message, reply.usage
    (call,) = message.tool_calls
    assert (message.content, call.function.name, call.function.arguments) == (None, "add", '{"a": 2, "b": 2}')
    assert usage.completion_tokens == 12
    turns += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "4"}]
    reply = litellm.completion(messages=turns, **{**ask, "stream": False, "stream_options": None})
    assert reply.choices[0].message.content == "The tool says 4."


# The official SDK through LiteLLM's proxy


@pytest.mark.client("LiteLLM's proxy", "answers", "streams")
@pytest.mark.parametrize("stream", [False, True])
def test_two_turns_through_litellms_proxy(proxy, stream):
    turns, said = [user("2 + 2?")], []
    with openai.OpenAI(**proxy, max_retries=0) as client:
        for _ in range(2):
            if stream:
                options = {"stream_options": {"include_usage": True}}
                with client.chat.completions.stream(model="ensemble", messages=turns, **options) as events:
                    reply = events.get_final_completion() if list(events) else None
            else:
                reply = client.chat.completions.create(model="ensemble", messages=turns)
            message = reply.choices[0].message.model_dump()
            assert message["reasoning_content"] == INSIGHT
            said.append(message["content"])
            turns += [message, user("Sure?")]
    assert said == ["It is 4.", "Yes, 4."]


@pytest.mark.client("LiteLLM's proxy", "errors")
def test_litellms_proxy_passes_on_that_a_context_overflows(proxy):
    refusing = pytest.raises(openai.BadRequestError, match="ContextWindowExceededError")
    with openai.OpenAI(**proxy, max_retries=0) as client, refusing:
        client.chat.completions.create(model="ensemble", messages=[user(LONG)])


# LangChain


def chain(url, model="ensemble", **options):
    return langchain_openai.ChatOpenAI(model=model, base_url=url, api_key="none", max_retries=0, **options)


@pytest.mark.client("LangChain", "answers", "streams")
@pytest.mark.parametrize("stream", [False, True])
def test_langchain_talks_for_two_turns(url, stream):
    model = chain(url, temperature=0, reasoning_effort="high", verbosity="low", store=True, stream_usage=True)
    turns, said = [HumanMessage("2 + 2?")], []
    for _ in range(2):
        reply = summed(model.stream(turns)) if stream else model.invoke(turns)
        assert reply.usage_metadata["output_token_details"]["reasoning"] == 4
        said.append(reply.content)
        turns += [reply, HumanMessage("Sure?")]
    assert said == ["It is 4.", "Yes, 4."]


def summed(chunks):
    first, *others = chunks
    for chunk in others:
        first += chunk
    return first


@pytest.mark.client("LangChain", "errors")
def test_langchain_recognises_a_context_that_overflows(url):
    with pytest.raises(ContextOverflowError):
        chain(url).invoke(LONG)
    with pytest.raises(ContextOverflowError):
        list(chain(url).stream(LONG))


@pytest.mark.client("LangChain", "tools")
@pytest.mark.parametrize("stream", [False, True])
def test_langchain_calls_a_tool_and_sends_its_reply(url, stream):
    model, turns = chain(url, "caller").bind_tools([TOOL]), [HumanMessage("2 + 2?")]
    called = summed(model.stream(turns)) if stream else model.invoke(turns)
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 2, "b": 2})
    turns += [called, ToolMessage("4", tool_call_id=call["id"])]
    assert model.invoke(turns).content == "The tool says 4."
    kept = chain(url).bind_tools([TOOL], tool_choice="none").invoke([HumanMessage("2 + 2?")])
    assert (kept.content, kept.tool_calls) == ("It is 4.", [])


# pydantic-ai


def agent(url, name="ensemble"):
    return pydantic_ai.Agent(OpenAIChatModel(name, provider=OpenAIProvider(base_url=url, api_key="none")))


@pytest.mark.client("pydantic-ai", "answers", "streams")
def test_pydantic_ai_talks_for_three_turns_and_sees_the_insight_once(url):
    assistant = agent(url)

    async def talk():
        first = await assistant.run("2 + 2?")
        second = await assistant.run("Sure?", message_history=first.all_messages())
        async with assistant.run_stream("Sure?", message_history=second.all_messages()) as third:
            said = [part async for part in third.stream_text(delta=True)]
            return first, second, "".join(said), third.all_messages()[-1]

    first, second, said, last = asyncio.run(talk())
    assert (first.output, second.output, said) == ("It is 4.", "Yes, 4.", "Yes, 4.")
    for reply in (first.all_messages()[-1], last):
        assert [part.content for part in reply.parts if part.part_kind == "thinking"] == [INSIGHT]


@pytest.mark.client("pydantic-ai", "tools")
def test_pydantic_ai_calls_a_tool(url):
    assistant, asked = agent(url, "caller"), []

    @assistant.tool_plain
    def add(a: int, b: int) -> int:
        asked.append((a, b))
        return a + b

    assert assistant.run_sync("2 + 2?").output == "The tool says 4."
    assert asked == [(2, 2)]


@pytest.mark.client("pydantic-ai", "errors")
def test_pydantic_ai_recognises_a_context_that_overflows(url):
    with pytest.raises(pydantic_ai.exceptions.ModelContextWindowExceededError):
        agent(url).run_sync(LONG)


# The AI SDK


@pytest.mark.client("AI SDK", "answers", "streams", "tools", "errors")
@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_ai_sdk_talks_for_two_turns_and_calls_a_tool(url):
    assert (NODE / "node_modules").is_dir(), "its packages are not installed: make test-clients installs them"
    done = subprocess.run(["node", "talk.mjs", url], cwd=NODE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.client("AI SDK", "cancels")
@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_ai_sdk_leaves(url, stopped):
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["node", "leave.mjs", url], cwd=NODE, stdin=pipe, stdout=pipe, text=True
    ) as process:
        assert process.stdout.readline() == "left\n"
        stopped()
        assert process.poll() is None  # it was the abort that stopped the answer, not the end of the process
