import pytest

from ensemblehub.errors import RequestError
from ensemblehub.schema import Chat, Message, Request, Sampling, Scored, ScoredToken, Text, TokenIds
from ensemblehub.tandem import insights
from ensemblehub.tandem.insights import PROFILES, Dialogue

ASK = Request(
    Chat((Message("system", "Be kind."), Message("user", "2 + 2?"))), Sampling(max_tokens=50, stop=("\n",))
)


@pytest.mark.parametrize("name", PROFILES)
def test_level_0_is_the_same_rendering_without_the_insight(name):
    profile = PROFILES[name]
    bare, guided = (Dialogue(ASK, profile).intern_request(text).prompt for text in ("", "Goal: add"))
    assert bare.messages[0] == guided.messages[0]
    assert bare.messages[0].content.startswith(profile.guide)
    assert bare.messages[0].content.endswith("Be kind.")
    assert guided.messages[-1].content == bare.messages[-1].content + profile.header + "Goal: add"


def test_the_mentor_keeps_the_seed_and_not_the_answers_limits():
    ask = Dialogue(ASK, PROFILES["qwen3"]).mentor_request(7)
    assert (ask.sampling.max_tokens, ask.sampling.stop, ask.prompt.thinking) == (7, (), True)
    assert ask.prefix == "<think>\nGoal:"


@pytest.mark.parametrize(
    ("name", "written", "seen"),
    [
        ("deepseek-r1", " add\nPlanning: count</think>\n", "Goal: add\nPlanning: count\n"),
        ("qwen3-no-think", " add", "Goal: add"),
        ("gpt-oss", "<|channel|>analysis<|message|>Goal: add<|end|>", "Goal: add"),
        ("instruct", "Goal: add", "Goal: add"),
        ("deepseek-r1", "", ""),
    ],
)
def test_the_intern_sees_the_insight_without_the_familys_marks(name, written, seen):
    assert PROFILES[name].shown(written) == seen


def test_the_judge_reads_question_and_insight_or_the_insight_alone():
    def token(text, message, start):
        return ScoredToken(text, 0, -1.0, 1.0, message, start, start + len(text))

    question, insight = [token("2 + 2?", 1, 0)], [token("\n\n", 1, 6), token("Goal", 1, 8)]
    scored = Scored((token("<s>", None, 0), token("guide", 0, 0), *question, *insight, token("<a>", None, 0)))
    dialogue = Dialogue(ASK, PROFILES["instruct"])
    assert dialogue.judged_tokens(scored, "question+insight") == (*question, *insight)
    assert dialogue.judged_tokens(scored, "insight") == tuple(insight)


def test_what_cannot_be_asked_of_two_models():
    assert insights.chat_of(Request(Text("x"))).messages == (Message("user", "x"),)
    with pytest.raises(RequestError, match="token ids"):
        insights.chat_of(Request(TokenIds((1,))))
    with pytest.raises(RequestError, match="no message"):
        insights.chat_of(Request(Chat(())))
