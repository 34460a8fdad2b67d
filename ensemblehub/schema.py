"""The vocabulary that everything passes along: frozen dataclasses, standard library only.

Knows no engine, no strategy and no file format.  Units: logprobs and entropies in nats, time in seconds,
money in US dollars, compute in floating-point operations (FLOPs, a multiply-add counting two).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Capability = Literal["prefix", "logprobs", "score", "decode", "tools", "response_format"]
Purpose = Literal["insight", "judge", "answer", "propose", "score", "select"]
Finish = Literal["stop", "length", "tool_calls"]
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        extra: fields besides, as JSON (`tool_calls`, `tool_call_id`), for engines that call tools.
    """

    role: Role
    content: str
    extra: str = ""

    @property
    def wire(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        return {"role": self.role, "content": self.content} | (json.loads(self.extra) if self.extra else {})


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
    """A raw prompt, tokenised as it is, special tokens included."""

    text: str


@dataclass(frozen=True)
class TokenIds:
    """A raw prompt in the engine's own token ids."""

    ids: tuple[int, ...]


Prompt = Chat | Text | TokenIds


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when writing ends.

    Attributes:
        max_tokens: tokens to write at most.
        max_completion_tokens: tokens of insight and answer together at most; None where only the answer is bounded.
        min_tokens: tokens before which the end-of-text token cannot be chosen.
        temperature: 0 is greedy.
        top_p, top_k: nucleus and top-k limits; 1.0 and 0 switch them off.
        min_p: tokens less probable than this share of the most probable one are not drawn; 0 switches it off.
        stop: strings that end the answer and are not part of it.
        stop_token_ids: ids that end the answer besides the model's own end-of-text ids.
        seed: of this request's own random generator; None draws one.
        logit_bias: added to the logits, by token id.
        top_logprobs: how many alternatives each `Token` carries.
        ignore_eos: go on after the end-of-text token.
        fit_context: `max_tokens` is a default; where the prompt leaves less room in the context, it is cut to that
            room. Without it, a request that does not fit is refused.
    """

    max_tokens: int = 512
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int = 0
    ignore_eos: bool = False
    min_p: float = 0.0
    max_completion_tokens: int | None = None
    fit_context: bool = False

    @property
    def limits(self) -> bool:
        """Whether top-k, top-p or min-p leave tokens out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def required(self) -> int:
        """Tokens that the context must have room for behind the prompt."""
        return min(1, self.max_tokens) if self.fit_context else self.max_tokens


@dataclass(frozen=True)
class Request:
    """What is asked of an engine or an ensemble.

    Attributes:
        prefix: the answer so far; the engine continues it and returns only what comes after.
        written: the turns that end `prefix`, as they were written.  An engine may continue what it wrote
            itself token by token, since the same text in other tokens would have to be computed again.
        extra: fields of OpenAI's API that only the engine's own server understands (`tools`, `response_format`).
    """

    prompt: Prompt
    sampling: Sampling = Sampling(fit_context=True)
    prefix: str = ""
    id: str = ""
    written: tuple[Piece, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def continued(self, text: str) -> Request:
        """The same request with `text` added to the answer so far."""
        return replace(self, prefix=self.prefix + text, written=())

    def seeded(self, *parts: object) -> Request:
        """The same request with a seed derived from its own and `parts` (round, engine, sample number, ...).

        Without a seed of its own, every run draws anew.
        """
        if self.sampling.seed is None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=derived_seed(self.sampling.seed, *parts)))

    def spending(self, tokens: int) -> Request:
        """The same request once `tokens` of its `max_completion_tokens` are written; one is always left."""
        sampling = self.sampling
        if sampling.max_completion_tokens is None:
            return self
        left = max(1, sampling.max_completion_tokens - tokens)
        most = min(sampling.max_tokens, left)
        least = min(sampling.min_tokens, most)
        bounded = replace(sampling, max_completion_tokens=left, max_tokens=most, min_tokens=least)
        return replace(self, sampling=bounded)

    def with_prompt(self, prompt: Prompt) -> Request:
        """The same request about another prompt, with nothing answered yet."""
        return replace(self, prompt=prompt, prefix="", written=())


def derived_seed(seed: int, *parts: object) -> int:
    """A seed of 63 bits for one part of a request; the same on every machine, different for different parts."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Alternative:
    """A token that could have stood in a place, and its logprob (nats).

    Attributes:
        part: its bytes, where they are no text by themselves (a part of a character).
    """

    text: str
    logprob: float
    id: int | None = None
    part: bytes | None = None


@dataclass(frozen=True)
class Token:
    """One written token; `logprob` and `entropy` (nats, full distribution) are None where unknown.

    Attributes:
        text: what it completes: a whole character stands in the last of its tokens.
        top: the likeliest tokens in its place, most likely first; as many as were asked for.
        part: its own bytes, where they are no text by themselves (a part of a character).
    """

    text: str
    id: int | None = None
    logprob: float | None = None
    entropy: float | None = None
    top: tuple[Alternative, ...] = ()
    part: bytes | None = None


@dataclass(frozen=True)
class ScoredToken:
    """One token of a prompt that was read.

    Attributes:
        logprob, entropy: of the prediction of this token (nats); None for the first token of the prompt.
        message: index of the message it belongs to, None for the template's own tokens.
        start, end: character span in that message (in the rendered prompt for template tokens).
        best: logprob of the likeliest token at this position (nats); None where unknown.
        top: the likeliest tokens at this position, most likely first; one at least, where they are known.
        part: its own bytes, where they are no text by themselves (a part of a character).
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
    """Every token of a rendered prompt, in order."""

    tokens: tuple[ScoredToken, ...]

    def of(self, message: int, start: int = 0) -> tuple[ScoredToken, ...]:
        """The tokens of one message, from character `start` on."""
        return tuple(token for token in self.tokens if token.message == message and token.end > start)


@dataclass(frozen=True)
class Piece:
    """Some text as it is written.

    Attributes:
        finish: set on the last piece of a stream: "stop" (end of text or a stop string) or "length".
        index: which of several answers it belongs to.
        visible: False for what may be retracted (proposals, drafts); a visible piece is never taken back.
        round: which turn of an answer that is written in turns, from 1; 0 where there are none.
        tool_calls: parts of tool calls, as OpenAI streams them.
    """

    text: str
    engine: str
    purpose: Purpose
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None
    index: int = 0
    visible: bool = True
    round: int = 0
    tool_calls: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A judge's word at one checkpoint."""

    level: str
    mentor_tokens: int
    probability: float
    threshold: float
    sufficient: bool


@dataclass(frozen=True)
class Choice:
    """A decision between candidates, and why it fell so.

    Attributes:
        about: what was chosen: the models that take part, one of several proposals, or the final answer.
        chosen: names of the winners (engine names, or `engine#sample`).
        scores: every candidate's name and score, where there are scores; higher is better.
        reason: one sentence for a person; says how a tie was broken.
    """

    about: Literal["models", "proposal", "answer"]
    chosen: tuple[str, ...]
    scores: tuple[tuple[str, float], ...] = ()
    reason: str = ""


Event = Piece | Verdict | Choice


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    prompt: float
    completion: float
    cached: float | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What is known of an engine's model without running it.

    Attributes:
        parameters: all parameters; `active` those a token passes through (0 where unknown).
        attention_flops: FLOPs per token and per position attended to.
        context: longest prompt and answer together, in tokens (0 where unknown).
        vocabulary: number of token ids (0 where unknown).
    """

    parameters: int = 0
    active: int = 0
    attention_flops: float = 0.0
    context: int = 0
    vocabulary: int = 0
    price: Price | None = None

    @property
    def token_flops(self) -> float:
        """FLOPs of one token without attention over the context: two per active parameter."""
        return 2.0 * self.active

    def flops(self, start: int, end: int) -> float:
        """FLOPs of the forward passes at positions `start` to `end - 1`, attention over the context included."""
        count = max(0, end - start)
        attended = count * (start + end + 1) / 2  # the token at position i attends to i + 1 positions
        return count * self.token_flops + attended * self.attention_flops


@dataclass(frozen=True)
class Cost:
    """What was spent; costs add up.

    Attributes:
        prompt_tokens: tokens read, `cached_tokens` of which were not computed again.
        completion_tokens: tokens written, `discarded_tokens` of which nobody used.
        estimated: True where a provider's final figure was not to be had.
        spared_flops: prefill FLOPs that were not computed because an earlier request had left them in a cache.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    discarded_tokens: int = 0
    prefill_flops: float = 0.0
    decode_flops: float = 0.0
    usd: float = 0.0
    seconds: float = 0.0
    calls: int = 0
    estimated: bool = False
    spared_flops: float = 0.0

    @property
    def flops(self) -> float:
        """Prefill and decoding together."""
        return self.prefill_flops + self.decode_flops

    @property
    def cold_flops(self) -> float:
        """What the same calls cost where no cache holds anything of an earlier request."""
        return self.flops + self.spared_flops

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.discarded_tokens + other.discarded_tokens,
            self.prefill_flops + other.prefill_flops,
            self.decode_flops + other.decode_flops,
            self.usd + other.usd,
            self.seconds + other.seconds,
            self.calls + other.calls,
            self.estimated or other.estimated,
            self.spared_flops + other.spared_flops,
        )


@dataclass(frozen=True)
class UsageLine:
    """Cost of one engine for one purpose."""

    engine: str
    purpose: Purpose
    cost: Cost


@dataclass(frozen=True)
class Usage:
    """Usage of a request by engine and purpose, in order of first use."""

    lines: tuple[UsageLine, ...] = ()

    @property
    def cost(self) -> Cost:
        """The sum of all lines."""
        return sum((line.cost for line in self.lines), Cost())


@dataclass(frozen=True)
class Result:
    """The answer to a request: its stream, folded, and its usage."""

    pieces: tuple[Piece, ...]  # merged by author
    verdicts: tuple[Verdict, ...]
    usage: Usage
    seconds: float = 0.0  # wall time
    choices: tuple[Choice, ...] = ()

    @property
    def text(self) -> str:
        """The answer, without insights and drafts."""
        return "".join(piece.text for piece in self.pieces if piece.purpose == "answer" and piece.visible)

    @property
    def insight(self) -> str:
        """The mentor's insight."""
        return "".join(piece.text for piece in self.pieces if piece.purpose == "insight")

    @property
    def finish(self) -> Finish | None:
        """How the answer ended."""
        return next((piece.finish for piece in reversed(self.pieces) if piece.finish), None)

    @property
    def cost(self) -> Cost:
        """The cost of the request, all engines and purposes together."""
        return self.usage.cost


def merged(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Join neighbouring pieces of one author, purpose, index, visibility and round."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        last = groups[-1][-1] if groups else None
        if last is not None and _author(last) == _author(piece) and last.finish is None:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return tuple(map(_joined, groups))


def _joined(group: Sequence[Piece]) -> Piece:
    tokens = tuple(token for piece in group for token in piece.tokens)
    calls = tuple(call for piece in group for call in piece.tool_calls)
    return replace(group[-1], text="".join(piece.text for piece in group), tokens=tokens, tool_calls=calls)


def _author(piece: Piece) -> tuple[str, str, int, bool, int]:
    return piece.engine, piece.purpose, piece.index, piece.visible, piece.round
