"""The replies of the server as schemas, for `/openapi.json`, `/docs` and generated clients.

Replies are made in `chunks`, `completion`, `usage` and `info`, and not validated when they are sent; a test
compares them with these schemas.  Fields may be added.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ensemblehub.config.sections import Bound
from ensemblehub.ensemble_methods.base import Checkpoint
from ensemblehub.schema import Choice, Finish, Verdict


class ReplyObject(BaseModel):
    """A JSON object of a reply."""

    model_config = ConfigDict(protected_namespaces=())


class ErrorDetail(ReplyObject):
    """The message, its kind, the wrong field and a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(ReplyObject):
    """OpenAI's error object."""

    error: ErrorDetail


class ModelMembers(ReplyObject):
    """The models that answer under a name."""

    kind: Literal["model", "ensemble"]
    method: str
    members: list[str]


class ModelObject(ReplyObject):
    """An ensemble, or one of its models."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None = Field(
        default=None, description="Longest prompt and answer together, in tokens."
    )
    ensemble: ModelMembers


class ModelList(ReplyObject):
    """All that is served."""

    object: Literal["list"]
    data: list[ModelObject]


class Composition(ReplyObject):
    """The parts of an ensemble; a request may set what is in `bounds`, and leave out or require `optional`."""

    id: str
    method: str
    selection: str
    granularity: str
    members: list[str]
    roles: dict[str, str]
    params: dict[str, Any]
    levels: list[Checkpoint]
    bounds: dict[str, Bound]
    optional: list[str]


class MemberObject(ReplyObject):
    """A model: its size, FLOPs per token, context in tokens, and capabilities."""

    id: str
    parameters: int
    token_flops: float
    context: int
    can: list[str]


class Configuration(ReplyObject):
    """All ensembles and models."""

    version: str
    ensembles: list[Composition]
    members: list[MemberObject]


class Health(ReplyObject):
    """Health of the server."""

    status: Literal["loading", "ready", "draining", "stopped", "failed"]


class ServerStatus(Health):
    """The server's ensembles and current load."""

    version: str
    available_methods: dict[str, list[str]]
    model_count: int
    reward_count: int
    ensembles: list[str]
    running: int
    queued: int
    queued_tokens: int


class Tokenized(ReplyObject):
    """Token ids of a text, for the model that is named."""

    tokens: list[int]
    count: int
    max_model_len: int
    model: str


class Detokenized(ReplyObject):
    """The text of token ids."""

    prompt: str
    model: str


class AttributedSegment(ReplyObject):
    """Text of one author; `length` in tokens."""

    round: int
    model: str
    purpose: str
    text: str
    length: int


class Attribution(ReplyObject):
    """The author of a part of the text."""

    summary: str
    segments: list[AttributedSegment]


class AnswerMetadata(ReplyObject):
    """Metadata of an answer: authors and why, verdicts, choices; of a stream in its last chunk."""

    finish: Literal["stop", "length", "tool_calls", "budget"] = Field(
        description="Why the answer ended; `budget`, where others say `length`, if it may spend no more."
    )
    request_id: str
    selected_models: list[str]
    method: str
    explanation: str = Field(description="One sentence on who wrote the answer and why.")
    estimated_saving: float | None = Field(description="As in `cost_details`, of this answer.")
    attribution: Attribution
    verdicts: list[Verdict]
    choices: list[Choice]


class TopLogprob(ReplyObject):
    """A token with its logprob (nats); `bytes` are its own, also where it is a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A written token and the top alternatives at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ReplyObject):
    """Logprobs of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: list[TokenLogprob] | None = None


class FunctionCall(ReplyObject):
    """The function of a tool call; `arguments` as JSON."""

    name: str = ""
    arguments: str = ""


class ToolCall(ReplyObject):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(ReplyObject):
    """The answer, with a Tandem's insight as `reasoning_content`."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(ReplyObject):
    """An answer of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    metadata: AnswerMetadata


class TextLogprobs(ReplyObject):
    """Logprobs of a completion's tokens, those of an echoed prompt included; its first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    entropies: list[float | None]


class TextChoice(ReplyObject):
    """An answer of a text completion."""

    index: int
    text: str
    reasoning_content: str | None = None
    reasoning: str | None = None
    logprobs: TextLogprobs | None
    finish_reason: Finish
    metadata: AnswerMetadata


class PromptTokensDetails(ReplyObject):
    """Tokens of the prompt that were computed before."""

    cached_tokens: int


class CompletionTokensDetails(ReplyObject):
    """Tokens of the insight."""

    reasoning_tokens: int


class UsageLineObject(ReplyObject):
    """Usage of one engine for one purpose: tokens, FLOPs, US dollars and seconds."""

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


class CostDetails(ReplyObject):
    """Usage by engine and purpose, and the estimated cost of the mentor alone if known."""

    flops: float
    cold_flops: float = Field(
        description="FLOPs of the same calls where no cache holds anything of earlier requests."
    )
    usd: float
    seconds: float
    estimated: bool
    spent: list[UsageLineObject]
    estimated_mentor_alone_flops: list[float] | None = Field(
        description="Expected, and the ends of a 95 % interval; cold: the mentor reads its whole prompt."
    )
    estimated_saving: float | None = Field(
        description="1 - cold_flops / the expected FLOPs of the mentor alone; both without caches."
    )
    explanation: str | None = Field(
        description="One sentence: of a Tandem where the mentor stopped, its judge's probabilities, the saving; "
        "null for several answers, whose `metadata` have one each."
    )


class UsageObject(ReplyObject):
    """Tokens of prompt and answer, and their cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    cost: float | None = Field(description="US dollars; null where no price is known.")
    cost_details: CostDetails


class CompletionObject(ReplyObject):
    """What the replies to chats and to raw prompts have in common."""

    id: str
    created: int
    model: str
    usage: UsageObject


class ChatCompletion(CompletionObject):
    """A reply to a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextCompletion(CompletionObject):
    """A reply to raw prompts."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


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
PLAIN: dict[int | str, dict[str, Any]] = {  # of a route whose 200 is no JSON
    status: {"content": _ERROR} for status in _STATUSES
}
