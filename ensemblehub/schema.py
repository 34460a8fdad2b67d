"""Requests, events and results: frozen dataclasses; `annotated_types` states the bounds.

Units: logprobs and entropies in nats, time in seconds, money in US dollars, compute in floating-point
operations (FLOPs; a multiply-add counts as two).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

from annotated_types import Ge, Gt, Le

from ensemblehub.cost import Cost as Cost
from ensemblehub.cost import ModelInfo as ModelInfo
from ensemblehub.cost import Price as Price
from ensemblehub.cost import Purpose as Purpose
from ensemblehub.cost import Usage as Usage
from ensemblehub.cost import UsageLine as UsageLine

Capability = Literal["prefix", "logprobs", "score", "decode", "tools", "response_format"]
Finish = Literal["stop", "length", "tool_calls"]
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """A message of a conversation.

    Attributes:
        extra: Further fields as JSON (`tool_calls`, `tool_call_id`), for engines that call tools.
    """

    role: Role
    content: str
    extra: str = ""

    @property
    def wire(self) -> dict[str, Any]:
        """The message in the form of OpenAI's API."""
        return {"role": self.role, "content": self.content} | (json.loads(self.extra) if self.extra else {})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Message:
        """Read a message in the form of OpenAI's API; parts of type `text` are joined.

        Raises:
            ValueError: The role is unknown, or the content is not text.
        """
        role = "system" if fields.get("role") == "developer" else fields.get("role")
        if role not in get_args(Role):
            raise ValueError(f"a message needs a role of {', '.join(get_args(Role))}, and content")
        content = fields.get("content")
        extra = {key: value for key, value in fields.items() if key not in ("role", "content") and value}
        if content is None and extra.get("tool_calls"):
            content = ""
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = "".join(map(_text_of_part, content))
        if not isinstance(content, str):
            raise ValueError(f"the content of a message is not text: {json.dumps(content)[:40]}")
        return cls(cast(Role, role), content, json.dumps(extra) if extra else "")


def _text_of_part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise ValueError(f"a message holds {kind or json.dumps(part)[:40]}, and only text can be asked")
    return str(part["text"])


@dataclass(frozen=True)
class Chat:
    """A conversation, rendered with the engine's chat template.

    Attributes:
        thinking: the template's `enable_thinking`; None leaves the template's own default.
    """

    messages: tuple[Message, ...]
    thinking: bool | None = None


@dataclass(frozen=True)
class Text:
    """A raw prompt, tokenized unchanged, including special tokens."""

    text: str


@dataclass(frozen=True)
class TokenIds:
    """A raw prompt in the engine's own token ids."""

    ids: tuple[int, ...]


Prompt = Chat | Text | TokenIds


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters.

    Attributes:
        max_tokens: Maximum length of the answer.
        max_completion_tokens: Maximum length of insight and answer together; None bounds the answer only.
        min_tokens: Number of tokens before which the end-of-text token is masked.
        temperature: 0 is greedy.
        top_p, top_k: Nucleus and top-k limits; 1.0 and 0 disable them.
        min_p: Minimum probability relative to the most probable token; 0 disables it.
        stop: Strings that end the answer; they are not part of it.
        stop_token_ids: Token ids that end the answer, in addition to the model's end-of-text ids.
        seed: Seed of the request's random generator; None draws one.
        logit_bias: Values added to the logits, by token id.
        top_logprobs: Number of alternatives that each `Token` carries.
        ignore_eos: Whether generation continues after the end-of-text token.
        fit_context: Whether `max_tokens` is reduced to what the prompt leaves of the context; otherwise a
            request that does not fit is refused.
    """

    max_tokens: int = 512
    min_tokens: Annotated[int, Ge(0)] = 0
    temperature: Annotated[float, Ge(0)] = 0.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: Annotated[float, Gt(0)] = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int = 0
    ignore_eos: bool = False
    min_p: Annotated[float, Ge(0), Le(1)] = 0.0
    max_completion_tokens: int | None = None
    fit_context: bool = False

    @property
    def limits(self) -> bool:
        """Whether top-k, top-p or min-p exclude tokens."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def required(self) -> int:
        """Number of tokens that the context must hold after the prompt."""
        return min(1, self.max_tokens) if self.fit_context else self.max_tokens


@dataclass(frozen=True)
class Request:
    """A request to an engine or an ensemble.

    Attributes:
        prefix: The answer so far; the engine continues it and returns only what follows.
        written: The pieces that end `prefix`; an engine continues its own pieces by their token ids.
        extra: Fields of OpenAI's API that are passed to the engine (`tools`, `response_format`).
    """

    prompt: Prompt
    sampling: Sampling = Sampling(fit_context=True)
    prefix: str = ""
    id: str = ""
    written: tuple[Piece, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def continued(self, text: str) -> Request:
        """Return the request with `text` appended to the prefix."""
        return replace(self, prefix=self.prefix + text, written=())

    def after(self, text: str, tokens: int) -> Request:
        """Return the request for what follows `text`, which has `tokens` tokens; at least one is left."""
        sampling = self.sampling
        left = max(1, sampling.max_tokens - tokens)
        least = min(max(0, sampling.min_tokens - tokens), left)
        return replace(self.continued(text), sampling=replace(sampling, max_tokens=left, min_tokens=least))

    def seeded(self, *parts: object) -> Request:
        """Return the request with a seed derived from its seed and `parts` (round, engine, sample number).

        A request without a seed is returned as it is.
        """
        if self.sampling.seed is None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=derived_seed(self.sampling.seed, *parts)))

    def spending(self, tokens: int) -> Request:
        """Return the request with `tokens` subtracted from `max_completion_tokens`; at least one is left."""
        sampling = self.sampling
        if sampling.max_completion_tokens is None:
            return self
        left = max(1, sampling.max_completion_tokens - tokens)
        most = min(sampling.max_tokens, left)
        least = min(sampling.min_tokens, most)
        bounded = replace(sampling, max_completion_tokens=left, max_tokens=most, min_tokens=least)
        return replace(self, sampling=bounded)


def derived_seed(seed: int, *parts: object) -> int:
    """Derive a 63-bit seed for one part of a request; equal on every machine."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Alternative:
    """An alternative token at a position, with its logprob (nats).

    Attributes:
        part: The token's bytes where they are not valid UTF-8 by themselves.
    """

    text: str
    logprob: float
    id: int | None = None
    part: bytes | None = None


@dataclass(frozen=True)
class Token:
    """A generated token; `logprob` and `entropy` (nats, full distribution) are None where unknown.

    Attributes:
        text: Text that the token completes; a character of several tokens belongs to the last of them.
        top: The top tokens at this position, most probable first.
        part: The token's bytes where they are not valid UTF-8 by themselves.
    """

    text: str
    id: int | None = None
    logprob: float | None = None
    entropy: float | None = None
    top: tuple[Alternative, ...] = ()
    part: bytes | None = None


@dataclass(frozen=True)
class ScoredToken:
    """A token of a scored prompt.

    Attributes:
        logprob, entropy: Of the prediction of this token (nats); None for the first token.
        message: Index of the message it belongs to; None for the chat template's own tokens.
        start, end: Character span in that message (in the rendered prompt for template tokens).
        best: Logprob of the most probable token at this position (nats); None where unknown.
        top: The top tokens at this position, most probable first; empty where unknown.
        part: The token's bytes where they are not valid UTF-8 by themselves.
    """

    text: str
    id: int | None
    logprob: float | None
    entropy: float | None
    message: int | None
    start: int
    end: int
    best: float | None = None
    top: tuple[Alternative, ...] = ()
    part: bytes | None = None


@dataclass(frozen=True)
class Scored:
    """All tokens of a rendered prompt, in order."""

    tokens: tuple[ScoredToken, ...]

    def of(self, message: int, start: int = 0) -> tuple[ScoredToken, ...]:
        """Return the tokens of one message, from character `start` on."""
        return tuple(token for token in self.tokens if token.message == message and token.end > start)

    def after(self, prompt: Prompt, start: int = 0) -> tuple[ScoredToken, ...]:
        """Return the tokens of the answer to `prompt`, from character `start` on."""
        return self.of(len(prompt.messages) if isinstance(prompt, Chat) else 1, start)


@dataclass(frozen=True)
class Piece:
    """A piece of generated text in a stream.

    Attributes:
        finish: Set on the last piece of a stream: "stop" (end of text, or a stop string: `StoppedBy` where the
            engine knows which) or "length".
        index: Index of the answer where there are several.
        visible: False for text that may be retracted (proposals, drafts); visible text never is.
        round: Number of the turn, from 1, where an answer is written in turns; else 0.
        tool_calls: Parts of tool calls, as OpenAI streams them.
    """

    type: ClassVar[Literal["piece"]] = "piece"

    text: str
    engine: str
    purpose: Purpose
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None
    index: int = 0
    visible: bool = True
    round: int = 0
    tool_calls: tuple[Any, ...] = ()

    @property
    def length(self) -> int:
        """Number of tokens; text without tokens, of an engine that reports none, counts as one."""
        return max(len(self.tokens), bool(self.text))

    def cut(self, tokens: int) -> Piece:
        """Return the piece up to its first `tokens` tokens; `finish` is "length" where that is not all."""
        kept = self.tokens[:tokens]
        if len(kept) == len(self.tokens):
            return self
        length = sum(len(token.text) for token in kept)
        return replace(self, text=self.text[:length], tokens=kept, finish="length")

    @property
    def answer_text(self) -> str:
        """The text as part of the answer: empty for insights, proposals and drafts."""
        return self.text if self.purpose == "answer" and self.visible else ""


@dataclass(frozen=True)
class Verdict:
    """A judge's decision at one checkpoint: sufficient where `probability` reaches `threshold`.

    `criterion` says what that number is where no trained judge gave it: `logprob`, `ask`, a class, ...
    """

    type: ClassVar[Literal["verdict"]] = "verdict"

    level: str
    mentor_tokens: int
    probability: float
    threshold: float
    sufficient: bool
    criterion: str = field(default="", compare=False)


@dataclass(frozen=True)
class Choice:
    """A decision between candidates.

    Attributes:
        about: The participating models, one of several proposals, or the final answer.
        chosen: Names of the winners (engine names, or `engine#sample`).
        scores: Name and score of every candidate, where there are scores; higher is better.
        reason: One sentence for a person; says how a tie was broken.
    """

    type: ClassVar[Literal["choice"]] = "choice"

    about: Literal["models", "proposal", "answer"]
    chosen: tuple[str, ...]
    scores: tuple[tuple[str, float], ...] = ()
    reason: str = ""


Event = Piece | Verdict | Choice


@dataclass(frozen=True)
class Result:
    """The answer to a request.

    Attributes:
        pieces: All text, with neighbouring pieces of one engine and purpose joined.
        verdicts, choices: Decisions, in order.
        usage: Cost by engine and purpose.
        seconds: Wall-clock time.
    """

    pieces: tuple[Piece, ...]
    verdicts: tuple[Verdict, ...]
    usage: Usage
    seconds: float = 0.0
    choices: tuple[Choice, ...] = ()

    @property
    def text(self) -> str:
        """The answer, without insights and drafts."""
        return "".join(piece.answer_text for piece in self.pieces)

    @property
    def insight(self) -> str:
        """The mentor's insight; empty where there is none."""
        return "".join(piece.text for piece in self.pieces if piece.purpose == "insight")

    @property
    def finish(self) -> Finish | None:
        """How the answer ended: "stop", "length" or "tool_calls"; None where a stream was closed early."""
        return next((piece.finish for piece in reversed(self.pieces) if piece.finish), None)

    @property
    def cost(self) -> Cost:
        """Total cost; short for `usage.cost`."""
        return self.usage.cost

    def to_dict(self) -> dict[str, Any]:
        """The result as plain, JSON-compatible values; tokens are left out."""
        shown = ("engine", "purpose", "text", "visible")
        return {
            "text": self.text,
            "insight": self.insight,
            "finish": self.finish,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "choices": [asdict(choice) for choice in self.choices],
            "pieces": [{name: getattr(piece, name) for name in shown} for piece in self.pieces],
            "usage": self.usage.to_dict(),
            "seconds": self.seconds,
        }
