"""What the other tests here do not show of a client: streams, errors, tools, and leaving before the end."""

import asyncio
import os
import subprocess
import sys
import time

import pytest

httpx = pytest.importorskip("httpx2", reason="the clients have environments of their own: make test-clients")
LONG = "word " * 400


def user(text="2 + 2?"):
    return {"role": "user", "content": text}


async def running(url):
    """Wait until the server writes an answer."""
    end = time.monotonic() + 60
    while not httpx.get(f"{url.removesuffix('/v1')}/status").json()["running"]:
        assert time.monotonic() < end, "nothing was asked"
        await asyncio.sleep(0.02)


# OpenAI's SDK


@pytest.fixture
def client(url):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.client("openai", "answers", "streams")
def test_openai_answers_and_streams(client):
    ask = {"model": "ensemble", "messages": [user()]}
    assert client.chat.completions.create(**ask).choices[0].message.content == "It is 4."
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "It is 4."


@pytest.mark.client("openai", "errors")
def test_openai_tells_errors(client):
    import openai

    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.chat.completions.create(model="nobody", messages=[user()])
    with pytest.raises(openai.APIError, match="frail failed after 2 tokens"):
        list(client.chat.completions.create(model="frail", messages=[user()], stream=True))


@pytest.mark.client("openai", "tools")
def test_openai_calls_a_tool(client):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    (call,) = (
        client.chat.completions.create(model="caller", messages=[user()], tools=[tool])
        .choices[0]
        .message.tool_calls
    )
    assert call.function.name == "add"


@pytest.mark.client("openai", "cancels")
def test_openai_leaves(client, stopped):
    with client.chat.completions.create(model="slow", messages=[user()], stream=True) as stream:
        next(iter(stream))
    stopped()


# LiteLLM, LangChain, pydantic-ai


def leaves(url, stopped, ask):
    """A call of an asynchronous client is cancelled, and the model stops."""

    async def leave():
        task = asyncio.ensure_future(ask())
        await running(url)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(leave())
    stopped()


@pytest.mark.client("LiteLLM", "cancels")
def test_litellm_leaves(url, stopped):
    litellm = pytest.importorskip("litellm")
    ask = {"model": "hosted_vllm/slow", "api_base": url, "api_key": "none", "messages": [user()]}
    leaves(url, stopped, lambda: litellm.acompletion(**ask))


@pytest.mark.client("LangChain", "cancels")
def test_langchain_leaves(url, stopped):
    langchain_openai = pytest.importorskip("langchain_openai")
    model = langchain_openai.ChatOpenAI(model="slow", base_url=url, api_key="none", max_retries=0)
    leaves(url, stopped, lambda: model.ainvoke("2 + 2?"))


@pytest.mark.client("pydantic-ai", "cancels")
def test_pydantic_ai_leaves(url, stopped):
    pydantic_ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    agent = pydantic_ai.Agent(OpenAIChatModel("slow", provider=OpenAIProvider(base_url=url, api_key="none")))
    leaves(url, stopped, lambda: agent.run("2 + 2?"))


# LlamaIndex


def llama(url, model="ensemble"):
    like = pytest.importorskip("llama_index.llms.openai_like")
    return like.OpenAILike(
        model=model,
        api_base=url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        max_retries=0,
    )


@pytest.mark.client("LlamaIndex", "answers", "streams")
def test_llama_index_answers_and_streams(url):
    assert llama(url).complete("2 + 2?").text == "It is 4."
    assert "".join(part.delta or "" for part in llama(url).stream_complete("2 + 2?")) == "It is 4."


@pytest.mark.client("LlamaIndex", "tools")
def test_llama_index_calls_a_tool(url):
    model = llama(url, "caller")
    from llama_index.core.tools import FunctionTool

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    reply = model.predict_and_call([FunctionTool.from_defaults(add)], "2 + 2?")
    assert str(reply) == "4"


@pytest.mark.client("LlamaIndex", "errors")
def test_llama_index_tells_errors(url):
    model = llama(url)
    import openai

    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        model.complete(LONG)


# llm


@pytest.fixture
def command(url, tmp_path):
    """`command(model, ...)` starts the program `llm`."""
    pytest.importorskip("llm")
    entry = "- {{model_id: {0}, model_name: {0}, api_base: '{1}', api_key_name: none}}\n"
    models = "".join(entry.format(name, url) for name in ("ensemble", "slow", "frail"))
    (tmp_path / "extra-openai-models.yaml").write_text(models)

    def start(model, *options):
        arguments = [sys.executable, "-m", "llm", "-m", model, "--key", "none", *options, "2 + 2?"]
        env = {**os.environ, "LLM_USER_PATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.mark.client("llm", "streams")
def test_llm_streams(command):
    assert command("ensemble").communicate(timeout=100)[0].strip() == "It is 4."


@pytest.mark.client("llm", "errors")
def test_llm_tells_errors(command):
    process = command("frail", "--no-stream")
    assert "frail failed after 2 tokens" in process.communicate(timeout=100)[1]
    assert process.returncode != 0


@pytest.mark.client("llm", "cancels")
def test_llm_leaves(command, stopped):
    process = command("slow")
    assert process.stdout.read(1)
    process.terminate()
    process.communicate(timeout=30)
    stopped()
