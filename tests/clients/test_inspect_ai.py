"""inspect_ai against the server: its provider for APIs that are compatible with OpenAI's."""

import asyncio

import pytest

from tests.clients.test_cells import leaves, user

inspect_ai = pytest.importorskip(
    "inspect_ai", reason="the clients have environments of their own: make test-clients"
)

from inspect_ai import model as inspect_model  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.scorer import includes  # noqa: E402
from inspect_ai.solver import generate, use_tools  # noqa: E402
from inspect_ai.tool import tool  # noqa: E402

INSIGHT = "Goal: add. Planning: add."
LONG = "word " * 400
asked = []


def reached(url, name="ensemble", **options):
    return inspect_model.get_model(
        f"openai-api/ensemblehub/{name}", base_url=url, api_key="none", memoize=False, **options
    )


@tool
def add():
    async def execute(a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: the first
            b: the second
        """
        asked.append((a, b))
        return a + b

    return execute


def evaluated(url, name, folder, *solvers, text="2 + 2?", **options):
    """The log of one task with one sample."""
    task = inspect_ai.Task(
        dataset=[Sample(input=text, target="4")], solver=[*solvers, generate()], scorer=includes()
    )
    (log,) = inspect_ai.eval(
        task, model=reached(url, name, **options), log_dir=str(folder), display="none", max_retries=0
    )
    return log


@pytest.mark.client("inspect_ai", "answers")
def test_a_task_is_answered_and_graded(url, tmp_path):
    log = evaluated(url, "ensemble", tmp_path)
    (sample,) = log.samples
    assert (log.status, sample.output.completion) == ("success", "It is 4.")
    assert sample.scores["includes"].value == "C"
    content = sample.output.message.content
    assert [part.reasoning for part in content if part.type == "reasoning"] == [INSIGHT]
    (usage,) = log.stats.model_usage.values()
    assert (usage.output_tokens, usage.reasoning_tokens) == (7, 4)


def test_two_turns_with_the_replys_own_message(url):
    async def talk():
        turns = [inspect_model.ChatMessageUser(content="2 + 2?")]
        async with reached(url) as model:
            first = await model.generate(turns)
            turns += [first.message, inspect_model.ChatMessageUser(content="Sure?")]
            return first.completion, (await model.generate(turns)).completion

    assert asyncio.run(talk()) == ("It is 4.", "Yes, 4.")


@pytest.mark.client("inspect_ai", "streams")
def test_a_stream_is_read_as_it_comes(url):
    events = []

    async def take(event):
        events.append(event)

    async def talk():
        async with reached(url) as model:
            return await model.generate("2 + 2?", on_stream=take)

    assert asyncio.run(talk()).completion == "It is 4."
    texts = [event.text for event in events if isinstance(event, inspect_model.StreamTextEvent)]
    assert len(texts) > 1
    assert "".join(texts) == "It is 4."
    thoughts = [event for event in events if isinstance(event, inspect_model.StreamReasoningEvent)]
    assert "".join(event.reasoning for event in thoughts) == INSIGHT


@pytest.mark.client("inspect_ai", "tools")
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_sent_back(url, tmp_path, stream):
    asked.clear()
    log = evaluated(url, "caller", tmp_path, use_tools(add()), stream=stream)
    (sample,) = log.samples
    assert (log.status, sample.output.completion) == ("success", "The tool says 4.")
    assert asked == [(2, 2)]
    assert [message.role for message in sample.messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.client("inspect_ai", "errors")
def test_errors_are_told(url, tmp_path):
    log = evaluated(url, "ensemble", tmp_path, text=LONG)
    (sample,) = log.samples
    assert sample.output.stop_reason == "model_length"
    log = evaluated(url, "nobody", tmp_path)
    assert log.status == "error"
    assert "nobody" in log.error.message


@pytest.mark.client("inspect_ai", "cancels")
def test_it_leaves(url, stopped):
    async def ask():
        async with reached(url, "slow") as model:
            await model.generate([inspect_model.ChatMessageUser(**user())])

    leaves(url, stopped, ask)
