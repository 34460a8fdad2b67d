"""The replies of the server as schemas, for `/openapi.json`, `/docs` and generated clients.

Replies are made in `answers` and `about`, and are not read by these; a test holds them to it.  Fields may be added.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ensemblehub.config.sections import Bound


class Reply(BaseModel):
    """A part of a reply."""

    model_config = ConfigDict(protected_namespaces=())


class ErrorBody(Reply):
    """What is wrong: in words, by kind, in which field, and for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Reply):
    """OpenAI's error object."""

    error: ErrorBody


class ModelAbout(Reply):
    """What answers under a name."""

    kind: Literal["model", "ensemble"]
    method: str
    members: list[str]


class Model(Reply):
    """An ensemble, or one of its models alone."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None = Field(
        default=None, description="Longest prompt and answer together, in tokens."
    )
    ensemble: ModelAbout


class ModelList(Reply):
    """All that is served."""

    object: Literal["list"]
    data: list[Model]


class Level(Reply):
    """A checkpoint of a Tandem."""

    level: str
    mentor_tokens: int
    threshold: float


class Composition(Reply):
    """How an ensemble is made up; `bounds` are the options that a request may set."""

    id: str
    method: str
    selection: str
    granularity: str
    members: list[str]
    roles: dict[str, str]
    params: dict[str, Any]
    levels: list[Level]
    bounds: dict[str, Bound]


class Member(Reply):
    """A model: its size, FLOPs a token, context in tokens, and abilities."""

    id: str
    parameters: int
    token_flops: float
    context: int
    can: list[str]


class Configuration(Reply):
    """All ensembles and models."""

    version: str
    ensembles: list[Composition]
    members: list[Member]


class Health(Reply):
    """Whether requests are answered."""

    status: Literal["loading", "ready", "draining", "stopped", "failed"]


class Methods(Reply):
    """What a configuration may name."""

    model_selection: list[str]
    output_aggregation: list[str]
    scorers: list[str]


class ServerStatus(Health):
    """What the server is made of and does now."""

    version: str
    available_methods: Methods
    model_count: int
    reward_count: int
    ensembles: list[str]
    running: int
    queued: int
    queued_tokens: int


class Tokenized(Reply):
    """Token ids of a text, for the model that is named."""

    tokens: list[int]
    count: int
    max_model_len: int
    model: str


class Detokenized(Reply):
    """The text of token ids."""

    prompt: str
    model: str


class Verdict(Reply):
    """What the judge said of an insight."""

    level: str
    mentor_tokens: int
    probability: float
    threshold: float
    sufficient: bool


class Decision(Reply):
    """A choice between candidates; `scores` are pairs of name and score."""

    about: str
    chosen: list[str]
    scores: list[list[str | float]]
    reason: str


class Segment(Reply):
    """Text of one author; `length` in tokens."""

    round: int
    model: str
    purpose: str
    text: str
    length: int


class Attribution(Reply):
    """Who wrote what."""

    summary: str
    segments: list[Segment]


class Metadata(Reply):
    """How an answer came about."""

    selected_models: list[str]
    method: str
    attribution: Attribution
    verdicts: list[Verdict]
    choices: list[Decision]


class TopLogprob(Reply):
    """A token with its logprob (nats); `bytes` are its own, also where it is a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A written token and the top alternatives at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    """Logprobs of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: list[TokenLogprob] | None = None


class FunctionCall(Reply):
    """What a tool call calls; `arguments` as JSON."""

    name: str = ""
    arguments: str = ""


class ToolCall(Reply):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(Reply):
    """The answer, with a Tandem's insight as `reasoning_content`."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


Finish = Literal["stop", "length", "tool_calls"]


class ChatChoice(Reply):
    """One answer of a chat."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    metadata: Metadata


class TextLogprobs(Reply):
    """Logprobs of a completion's tokens, those of an echoed prompt included; the first of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    entropies: list[float | None]


class TextChoice(Reply):
    """One completion."""

    index: int
    text: str
    reasoning_content: str | None = None
    reasoning: str | None = None
    logprobs: TextLogprobs | None
    finish_reason: Finish
    metadata: Metadata


class CachedTokens(Reply):
    """Tokens of the prompt that were computed before."""

    cached_tokens: int


class ReasoningTokens(Reply):
    """Tokens of the insight."""

    reasoning_tokens: int


class Spent(Reply):
    """What one engine spent for one purpose: tokens, FLOPs, US dollars and seconds."""

    engine: str
    purpose: str
    calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    discarded_tokens: int
    flops: float
    prefill_flops: float
    decode_flops: float
    usd: float
    seconds: float
    estimated: bool


class CostDetails(Reply):
    """Every call of every engine, and what the mentor alone would have cost, where a judge knows it."""

    flops: float
    cold_flops: float = Field(
        description="FLOPs of the same calls where no cache holds anything of earlier requests."
    )
    usd: float
    seconds: float
    estimated: bool
    spent: list[Spent]
    estimated_mentor_alone_flops: list[float] | None = Field(
        description="Expected, and the ends of a 95 % interval; cold: the mentor reads its whole prompt."
    )
    estimated_saving: float | None = Field(
        description="1 - cold_flops / the expected FLOPs of the mentor alone; both cold, so caches do not count."
    )


class Usage(Reply):
    """Tokens of prompt and answer, and what they cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens
    cost: float | None = Field(description="US dollars; null where no price is known.")
    cost_details: CostDetails


class ChatCompletion(Reply):
    """A reply to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextCompletion(Reply):
    """A reply to raw prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


_DATA = {
    "type": "string",
    "description": "A chunk as JSON, or an Error at the end of a stream that breaks off, or [DONE].",
}
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": _DATA}}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Whole, or with `stream: true` as server-sent events",
        "content": {"text/event-stream": {"itemSchema": _EVENT}},
    }
}
_STATUSES = (400, 401, 403, 404, 413, 415, 429, 500, 502, 503, 504, "default")
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": Error} for status in _STATUSES}
_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
PLAIN: dict[int | str, dict[str, Any]] = {
    status: {"content": _ERROR} for status in _STATUSES
}  # where 200 is no JSON
