"""Prompt profiles: how the mentor is asked for insights, and how the intern sees them.

A profile holds the words for one model family.  Insights follow GPRA (Goal, Planning, Retrieval, Action;
paper section "Thinking Insight Generation").  Prompts share prefixes: system and guide first, then the
question, the insight last; level 0 is the same rendering without the insight.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Literal

from ensemblehub.builtin import prompts
from ensemblehub.errors import ConfigError, EngineError, RequestError, did_you_mean
from ensemblehub.schema import Chat, Message, Piece, Request, Scored, ScoredToken, Text

log = logging.getLogger(__name__)
InsightMode = Literal["prompt", "continuation"]
Scope = Literal["question+insight", "insight"]
LEVEL_0 = "none"  # the level at which the intern sees no insight
QUESTION = "question"  # the level of a verdict on the bare question, where a draft follows
DRAFT = "draft"  # the level of a draft's verdict elsewhere, and of the thresholds of a judge of drafts


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

    @property
    def head(self) -> str:
        """The opening as it is shown."""
        return re.sub(self.marks, "", self.opening).lstrip("\n")

    def shown(self, written: str) -> str:
        """Return the insight as the intern sees it: with its opening, without the model family's markers."""
        return re.sub(self.marks, "", self.opening + written).lstrip("\n") if written else ""


_REQUEST = """You are the mentor of a smaller model that will solve the user's problem. Do not solve it to \
the end. Write structured insights that let the smaller model solve it, under these four headings, \
each on its own line:
Goal: the objective, the constraints and the required form of the answer.
Planning: the strategy and the sub-problems in order, with edge cases.
Retrieval: the facts, formulas and definitions that are needed, or N/A.
Action: the key calculations or logic steps.
Be concise, keep the notation of the problem, begin with the heading "Goal:" at once, and do not state the \
final answer. What the user says of the answer's form, such as a box or a code block, is meant for the \
smaller model."""
_GUIDE = """Solve the user's problem. Insights of a mentor may follow it under the headings Goal (what \
is asked), Planning (the strategy), Retrieval (the facts) and Action (key steps); they may be cut off or \
wrong, so check them as you go. Reason step by step and put the final answer in \\boxed{}; if code is \
asked for, end with one Python code block instead."""
_HEADER = "\n\n[Thinking Insights]\n"

# For small instruction-tuned coders, which write a box or a program into an insight when either is mentioned;
# chosen on training questions of MBPP (`results/qwen_coder/words/`).
_SHORT_REQUEST = """You are the mentor of a smaller model that will answer the user. Write no code and no final \
answer. Write notes for it in plain words, as short as possible, under these headings, each on its own line: \
Goal (what is asked), Planning (the method), Retrieval (facts, built-ins, formulas), Action (the steps). \
Begin with "Goal:"."""
_SHORT_GUIDE = """Answer the user in exactly the form that is asked for. Notes of a mentor may follow the \
question; they may be cut off or wrong, so check them."""
_SHORT_HEADER = "\n\nNotes:\n"

PROFILES: dict[str, Profile] = {
    "instruct": Profile(_REQUEST, _GUIDE, _HEADER),
    "deepseek-r1": Profile(_REQUEST, _GUIDE, _HEADER, opening="<think>\nGoal:"),
    "qwen3": Profile(_REQUEST, _GUIDE, _HEADER, thinking=True, opening="<think>\nGoal:"),
    "qwen3-no-think": Profile(_REQUEST, _GUIDE, _HEADER, thinking=False, opening="Goal:"),
    "qwen-coder": Profile(_SHORT_REQUEST, _SHORT_GUIDE, _SHORT_HEADER),
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


def profile_named(name: str | Profile, where: str) -> Profile:
    """The profile of that name in `PROFILES`, or the one that is given; `studio` is read as `builtin`.

    Raises:
        ConfigError: there is none; names the nearest one.
    """
    if isinstance(name, Profile):
        return name
    if name == "studio":
        log.warning("%s: the profile `studio` is called `builtin` now", where)
        name = "builtin"
    if name not in PROFILES:
        raise ConfigError(f"{where}: {did_you_mean(name, PROFILES, 'profile')}")
    return PROFILES[name]


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


@dataclass(frozen=True)
class Dialogue:
    """A request and a profile's prompt words: gives the mentor's request and the intern's prompt.

    Attributes:
        request: the user's request; its sampling is the answer's.
        mode: whether the insight stands in the intern's prompt, or begins the intern's own answer.
    """

    request: Request
    profile: Profile
    mode: InsightMode = "prompt"

    def mentor_request(self, tokens: int) -> Request:
        """Ask the mentor for at most `tokens` tokens; stop strings, biases and format are the answer's own."""
        chat = _with_system(chat_of(self.request), self.profile.request)
        sampling = replace(
            self.request.sampling,
            max_tokens=tokens,
            fit_context=False,
            min_tokens=0,
            stop=(),
            logit_bias={},
            top_logprobs=0,
        )
        chat = replace(chat, thinking=self.profile.thinking)
        return replace(self.request, prompt=chat, sampling=sampling, prefix=self.profile.opening, extra={})

    def intern_request(self, insight: str = "") -> Request:
        """Ask the intern for the answer, given the insight so far (none: level 0)."""
        chat = _with_system(chat_of(self.request), self.profile.guide)
        if self.mode == "continuation":
            return replace(self.request, prompt=chat, prefix=insight + self.request.prefix)
        if insight:
            *before, last = chat.messages
            guided = replace(last, content=last.content + self.profile.header + insight)
            chat = replace(chat, messages=(*before, guided))
        return replace(self.request, prompt=chat)

    def judged_tokens(self, scored: Scored, scope: Scope) -> tuple[ScoredToken, ...]:
        """The tokens that a judge sees of an `intern_request`: question and insight, or the insight."""
        chat = chat_of(self.request)
        question = len(chat.messages) - 1 + (chat.messages[0].role != "system")
        if self.mode == "continuation":
            insight = scored.of(question + 1)
            return insight if scope == "insight" else scored.of(question) + insight
        return scored.of(question, len(chat.messages[-1].content) if scope == "insight" else 0)

    def spending(self, tokens: int) -> Dialogue:
        """The same dialogue once `tokens` of `max_completion_tokens` are written (see `Request.spending`)."""
        return replace(self, request=self.request.spending(tokens))


@dataclass
class Insight:
    """The mentor's insight as far as it has been read.

    Attributes:
        tolerant: an `EngineError` of the mentor ends the insight and sets `failed` instead of being raised.
        written: the mentor's text; `tokens` is its length.
        begun, ended: its first and its last piece have been read.
    """

    dialogue: Dialogue
    tolerant: bool = False
    written: str = ""
    tokens: int = 0
    begun: bool = False
    ended: bool = False
    failed: bool = False

    @property
    def shown(self) -> str:
        """The insight as the intern sees it."""
        return self.dialogue.profile.shown(self.written)

    async def read(self, stream: AsyncIterator[Piece], tokens: int) -> Piece | None:
        """The next piece of the mentor's stream; None once `tokens` tokens are read or the mentor has ended.

        The first piece begins with the profile's opening, as it is shown.
        """
        if self.ended or self.tokens >= tokens:
            return None
        try:
            piece = await anext(stream)
        except EngineError as error:
            if not self.tolerant:
                raise
            log.warning("the mentor failed (%s); the intern answers alone", error)
            self.ended = self.failed = True
            return None
        opening = "" if self.begun else self.dialogue.profile.head
        self.begun = True
        self.written += piece.text
        self.tokens += piece.length
        self.ended = piece.finish is not None
        return replace(piece, text=opening + piece.text, finish=None)


def _with_system(chat: Chat, text: str) -> Chat:
    head, rest = chat.messages[:1], chat.messages
    if head and head[0].role == "system":
        text, rest = f"{text}\n\n{head[0].content}", chat.messages[1:]
    return replace(chat, messages=(Message("system", text), *rest))
