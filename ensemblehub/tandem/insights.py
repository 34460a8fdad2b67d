"""How the mentor is asked for insights and how the intern is shown them.

One profile per model family: the words, whether the mentor thinks while it writes, and the marks its
family puts around its thoughts.  Insights follow GPRA (Goal, Planning, Retrieval, Action; paper section
"Thinking Insight Generation").  Knows no engine and no judge.

The layout makes prefixes match: system and guide first, then the question, the insight last; level 0 is
the same rendering without the insight.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Literal

from ensemblehub.builtin import prompts
from ensemblehub.errors import RequestError
from ensemblehub.schema import Chat, Message, Request, Scored, ScoredToken, Text

InsightMode = Literal["prompt", "continuation"]
Scope = Literal["question+insight", "insight"]
LEVEL_0 = "none"  # the level at which the intern sees no insight
SECTIONS = ("Goal", "Planning", "Retrieval", "Action")
_HEADING = re.compile(
    rf"^[\s>#*\-\d.)]*({'|'.join(SECTIONS)})\b[*\s]*[:：]?[*]*", re.MULTILINE | re.IGNORECASE
)


@dataclass(frozen=True)
class Profile:
    """The words for one family of models.

    Attributes:
        request: what the mentor is told, as system text.
        thinking: the template's `enable_thinking` for the mentor's insight; None leaves its default.
        opening: the start of the mentor's own turn.
        guide: what the intern is told, as system text, with or without an insight.
        header: stands between question and insight.
        marks: regular expression of the family's marks around thoughts, taken out of the insight.
    """

    request: str
    guide: str
    header: str
    thinking: bool | None = None
    opening: str = ""
    marks: str = r"</?think>"

    @property
    def fingerprint(self) -> str:
        """Changes with any word; a judge is trained for one wording."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


_REQUEST = """You are the mentor of a smaller model that will solve the user's problem. Do not solve it to the \
end. Write structured insights that let the smaller model solve it, under these four headings, each on its own line:
Goal: the objective, the constraints and the required form of the answer.
Planning: the strategy and the sub-problems in order, with edge cases.
Retrieval: the facts, formulas and definitions that are needed, or N/A.
Action: the key calculations or logic steps.
Be concise, keep the notation of the problem, begin with the heading "Goal:" at once, and do not state the final \
answer. What the user says of the answer's form, such as a box or a code block, is meant for the smaller model."""
_GUIDE = """Solve the user's problem. Insights of a mentor may follow it under the headings Goal (what is asked), \
Planning (the strategy), Retrieval (the facts) and Action (key steps); they may be cut off or wrong, so check them \
as you go. Reason step by step and put the final answer in \\boxed{}; if code is asked for, end with one Python \
code block instead."""
_HEADER = "\n\n[Thinking Insights]\n"

PROFILES: dict[str, Profile] = {
    "instruct": Profile(_REQUEST, _GUIDE, _HEADER),
    "deepseek-r1": Profile(_REQUEST, _GUIDE, _HEADER, opening="<think>\nGoal:"),
    "qwen3": Profile(_REQUEST, _GUIDE, _HEADER, thinking=True, opening="<think>\nGoal:"),
    "qwen3-no-think": Profile(_REQUEST, _GUIDE, _HEADER, thinking=False, opening="Goal:"),
    "gpt-oss": Profile(
        _REQUEST + "\n\nReasoning: low",
        _GUIDE,
        _HEADER,
        marks=r"<\|(?:start|end|channel|message|return)\|>|(?<=\|>)(?:assistant|analysis|final|commentary)",
    ),
    "builtin": Profile(
        prompts.INSIGHT_REQUEST, prompts.INSIGHT_GUIDE, prompts.INSIGHT_HEADER, thinking=False
    ),
}


def chat_of(request: Request) -> Chat:
    """The conversation of a request; a raw text becomes a user's turn.

    Raises:
        RequestError: an empty chat, or token ids, which cannot be shown to two models.
    """
    if isinstance(request.prompt, Chat):
        if not request.prompt.messages:
            raise RequestError("the chat has no message")
        return request.prompt
    if isinstance(request.prompt, Text):
        return Chat((Message("user", request.prompt.text),))
    raise RequestError("text or a chat is needed, not token ids: two models read it")


def mentor_request(request: Request, profile: Profile, tokens: int) -> Request:
    """Ask the mentor for `tokens` tokens of insight at most; stop strings and biases are the answer's own."""
    chat = replace(_with_system(chat_of(request), profile.request), thinking=profile.thinking)
    sampling = replace(
        request.sampling,
        max_tokens=tokens,
        fit_context=False,
        min_tokens=0,
        stop=(),
        logit_bias={},
        top_logprobs=0,
    )
    return replace(request, prompt=chat, sampling=sampling, prefix=profile.opening)


def intern_request(request: Request, profile: Profile, insight: str, mode: InsightMode) -> Request:
    """Ask the intern for the answer, given the insight so far (none: level 0)."""
    chat = _with_system(chat_of(request), profile.guide)
    if mode == "continuation":
        return replace(request, prompt=chat, prefix=insight + request.prefix)
    if insight:
        last = chat.messages[-1]
        guided = replace(last, content=last.content + profile.header + insight)
        chat = replace(chat, messages=(*chat.messages[:-1], guided))
    return replace(request, prompt=chat)


def shown(written: str, profile: Profile) -> str:
    """What the intern is shown of what the mentor wrote: with its opening, without the family's marks."""
    return re.sub(profile.marks, "", profile.opening + written).lstrip("\n") if written else ""


def head(profile: Profile) -> str:
    """How an insight begins that continues the profile's opening, as it is shown."""
    return re.sub(profile.marks, "", profile.opening).lstrip("\n")


def read_tokens(scored: Scored, request: Request, mode: InsightMode, scope: Scope) -> tuple[ScoredToken, ...]:
    """The tokens a judge looks at: question and insight (Q ⊕ I), or the insight alone."""
    chat = chat_of(request)
    question = len(chat.messages) - 1 + (chat.messages[0].role != "system")
    if mode == "continuation":
        insight = scored.of(question + 1)
        return insight if scope == "insight" else scored.of(question) + insight
    return scored.of(question, len(chat.messages[-1].content) if scope == "insight" else 0)


def sections(insight: str) -> dict[str, str]:
    """The insight by GPRA heading; headings may be bold, numbered or bulleted, and a cut insight lacks some."""
    return {heading[1].capitalize(): insight[heading.end() : end].strip() for heading, end in _spans(insight)}


def without(insight: str, section: str) -> str:
    """The insight less one of its `SECTIONS`, heading and all; the same where it has no such section."""
    kept = insight
    for heading, end in reversed(_spans(insight)):
        if heading[1].capitalize() == section:
            kept = kept[: heading.start()] + kept[end:]
    return kept.strip("\n")


def unstructured(insight: str) -> str:
    """The insight without its headings."""
    kept = insight
    for heading, _ in reversed(_spans(insight)):
        kept = kept[: heading.start()] + kept[heading.end() :].lstrip(" ")
    return kept


def _spans(insight: str) -> list[tuple[re.Match[str], int]]:
    """Every GPRA heading, and where its section ends."""
    found = list(_HEADING.finditer(insight))
    return list(
        zip(found, [*(match.start() for match in found[1:]), len(insight)][: len(found)], strict=True)
    )


def _with_system(chat: Chat, text: str) -> Chat:
    head, rest = chat.messages[:1], chat.messages
    if head and head[0].role == "system":
        text, rest = f"{text}\n\n{head[0].content}", chat.messages[1:]
    return replace(chat, messages=(Message("system", text), *rest))
