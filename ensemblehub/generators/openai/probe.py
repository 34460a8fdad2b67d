"""Probes the abilities of a live OpenAI-compatible endpoint with a few short requests.

The requests go through the engine itself, so that what is seen is what an ensemble would get.  All of them
are recorded in the ledger.  Whatever an endpoint does is a finding, never a failure.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ensemblehub.cost import UsageLedger, UsageMeter
from ensemblehub.errors import EnsembleHubError, RequestError, one_line
from ensemblehub.generators.base import Finding
from ensemblehub.generators.openai.errors import RefusedError
from ensemblehub.generators.openai.options import Address, Continuation, OpenAIOptions
from ensemblehub.generators.openai.usage import MOST_TOKENS, number
from ensemblehub.schema import Chat, Message, Piece, Prompt, Request, Sampling, Scored, Text

QUESTION = "What is the capital of France? Answer in one short sentence."
START = "The capital of France is Par"
REST = "is"  # a model that begins anew does not begin with it
READ = "The capital of France is Paris."
CONTINUATIONS: tuple[Continuation, ...] = ("continue_final_message", "flag", "assistant")
TOP_K = (0, 20, 5, 1)  # exact entropies, vLLM's default, OpenAI's maximum, the minimum
TOOL = {
    "name": "get_weather",
    "description": "The weather in a city now.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
SCHEMA = {
    "name": "capital",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
_SCHEMA_START = '{"city":'
_DIALECTS = {"vllm": "vllm", "sglang": "vllm", "ensemblehub": "vllm"}  # by the owner of a listed model


class ProbedEngine(Protocol):
    """The methods of the engine that a probe calls."""

    def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]: ...
    async def score(self, request: Request, meter: UsageMeter) -> Scored: ...
    async def listed(self) -> dict[str, Any]: ...
    async def close(self) -> None: ...


@dataclass
class Probe:
    """The requests that are made of one endpoint.

    Attributes:
        make: makes the engine for changed options.
        settings: the options as configured, corrected by what was found.
        answer: what the model answers to `QUESTION`.
    """

    make: Callable[[OpenAIOptions], ProbedEngine]
    ledger: UsageLedger
    settings: OpenAIOptions
    answer: str = ""

    async def findings(self) -> list[Finding]:
        """Return all findings; only the first ones if the endpoint cannot be reached."""
        listed = await self._listed()
        if listed.declared and not listed.seen:
            return [listed]
        streaming = await self._streaming()
        if not streaming.seen:
            return [listed, streaming]
        usage = self._usage()
        steps = (self._logprobs, self._prefix, self._score, self._tools, self._response_format)
        return [listed, streaming, usage, *[await step() for step in steps]]

    async def _listed(self) -> Finding:
        """Whether the endpoint is there, accepts the key, and lists the model."""
        try:
            async with self._engine() as engine:
                answer = await engine.listed()
        except RefusedError as error:
            refused = error.status in (401, 403)
            what = "refuses the key" if refused else "lists no models"
            return Finding("models", False, refused, f"it {what}: {error}")
        except EnsembleHubError as error:
            return Finding("models", False, True, f"nothing can be asked: {error}")
        return self._read_list(answer, Address.of(self.settings).model)

    def _read_list(self, answer: Mapping[str, Any], model: str) -> Finding:
        listed = answer.get("data")
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        for entry in entries:
            if entry.get("id") == model:
                sentence = f"it lists {model} among {len(entries)}"
                return Finding("models", True, True, sentence, self._options_of(entry))
        ids = [entry.get("id") for entry in entries[:5]]
        names = ", ".join(one_line(name) for name in ids if isinstance(name, str))
        sentence = f"{model} is not among the {len(entries)} models it lists ({names})"
        return Finding("models", False, False, sentence)

    def _options_of(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Options that the entry of a listed model tells."""
        options: dict[str, Any] = {}
        owner = entry.get("owned_by")
        dialect = _DIALECTS.get(owner) if isinstance(owner, str) else None
        if dialect and self.settings.dialect != dialect:
            options["dialect"] = dialect
        lengths = (number(entry.get(name), MOST_TOKENS) for name in ("max_model_len", "context_length"))
        context = next((int(length) for length in lengths if length), 0)
        if context and not self.settings.context:
            options["context"] = context
        return options

    async def _streaming(self) -> Finding:
        options: dict[str, Any] = {}
        try:
            try:
                pieces = await self._pieces(_request(24))
            except RequestError as error:
                field = "max_completion_tokens"
                if field not in str(error) or self.settings.max_tokens_field != "max_tokens":
                    raise
                options = {"max_tokens_field": field}
                self.settings = replace(self.settings, **options)
                pieces = await self._pieces(_request(24))
        except EnsembleHubError as error:
            return Finding("streaming", False, True, f"it does not answer: {error}")
        self.answer = _text(pieces)
        parts = sum(bool(piece.text) for piece in pieces)
        return Finding(
            "streaming", True, True, f"an answer came in {parts} parts, as it was written", options
        )

    def _usage(self) -> Finding:
        costs = [call.cost for call in self.ledger.calls if not call.cost.estimated]
        if not costs:
            return Finding("usage", False, False, "it reports no usage: costs are estimates")
        dollars = ", dollars" if self.ledger.calls[-1].cost.usd else ""
        cached = " and cached tokens" if any(cost.cached_tokens for cost in costs) else ""
        return Finding("usage", True, False, f"it reports tokens itself{dollars}{cached}")

    async def _logprobs(self) -> Finding:
        def proof(pieces: list[Piece]) -> str:
            known = [token for piece in pieces for token in piece.tokens if token.logprob is not None]
            most = max((len(token.top) for token in known), default=0)
            return f"what it writes has logprobs, with {most} alternatives asked of 2" if known else ""

        request = _request(2, top_logprobs=2)
        return await self._declared("logprobs", request, proof, "what it writes has none")

    async def _tools(self) -> Finding:
        def proof(pieces: list[Piece]) -> str:
            return "the model called a tool" if any(piece.tool_calls for piece in pieces) else ""

        chat = Chat((Message("user", "What is the weather in Paris now? Call the tool."),))
        extra = {"tools": [{"type": "function", "function": TOOL}]}
        request = Request(chat, Sampling(max_tokens=64), extra=extra)
        return await self._declared("tools", request, proof, "the model called no tool, though asked to")

    async def _response_format(self) -> Finding:
        def proof(pieces: list[Piece]) -> str:
            begun = "".join(_text(pieces).split())[: len(_SCHEMA_START)]  # the rest may be white space
            return "an answer keeps to a JSON schema" if begun and _SCHEMA_START.startswith(begun) else ""

        extra = {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}
        nothing = "an answer did not keep to the JSON schema that was asked for"
        return await self._declared("response_format", replace(_request(48), extra=extra), proof, nothing)

    async def _declared(
        self, ability: str, request: Request, proof: Callable[[list[Piece]], str], nothing: str
    ) -> Finding:
        """The finding of an ability that the option of the same name declares."""
        declared = getattr(self.settings, ability)
        try:
            seen = proof(await self._pieces(request, **{ability: True}))
        except EnsembleHubError as error:
            return Finding(ability, False, declared, f"it was refused: {error}")
        options = {ability: True} if seen and not declared else {}
        return Finding(ability, bool(seen), declared, seen or nothing, options)

    async def _prefix(self) -> Finding:
        declared = self.settings.continuation
        ways = sorted(CONTINUATIONS, key=lambda way: way != declared)  # the declared one first
        reasons = []
        for way in ways:
            try:
                proof = await self._continued(way)
            except EnsembleHubError as error:
                reasons.append(f"{way}: {error}")
                continue
            if not proof:
                reasons.append(f"{way}: it began anew")
                continue
            sentence = f"it continues a given start of an answer ({way}): {proof}"
            if declared in ("none", way):
                return Finding(
                    "prefix", True, declared == way, sentence, {} if way == declared else {"prefix": way}
                )
            sentence = f"not by {declared}, which is declared; {sentence}"
            return Finding("prefix", False, True, sentence, {"prefix": way})
        return Finding("prefix", False, declared != "none", f"it continues no answer: {'; '.join(reasons)}")

    async def _continued(self, way: Continuation) -> str:
        """The evidence that the endpoint continued a given start; empty where there is none."""
        text = _text(await self._pieces(replace(_request(8), prefix=START), prefix=way))
        if text.startswith(REST) and not text[len(REST) : len(REST) + 1].isalpha():
            return f"after {START!r} it wrote {text[:16]!r}"
        cut = self.answer.find(" ", len(self.answer) // 2)
        head = self.answer[: max(cut, 0)]
        rest = self.answer[len(head) :].strip()
        if not head or len(rest) < 4:
            return ""
        text = _text(await self._pieces(replace(_request(16), prefix=head), prefix=way)).strip()
        same = text[: len(rest)] == rest[: len(text)]
        anew = self.answer.strip().startswith(text[:8])
        return (
            f"after {head!r} it wrote what it had written before"
            if len(text) >= 4 and same and not anew
            else ""
        )

    async def _score(self) -> Finding:
        declared = self.settings.score != "none"
        reason = ""
        if declared:
            prompt = _request(1).prompt if self.settings.tokenizer else Text(READ)
            try:
                await self._scored(prompt)
            except EnsembleHubError as error:
                reason = f"{error}; "
            else:
                kind = _kind(self.settings.entropy_top_k)
                return Finding("score", True, True, f"it scores prompts as declared; {kind}")
        last = ""
        for top_k in TOP_K:
            try:
                await self._scored(Text(READ), tokenizer=None, score="echo", entropy_top_k=top_k)
            except EnsembleHubError as error:
                last = str(error)
                continue
            more = "" if self.settings.tokenizer else "; `tokenizer`, the model's own, lets it score chats"
            sentence = f"{reason}it scores prompts (echo with logprobs); {_kind(top_k)}{more}"
            options = {"score": "echo", "entropy_top_k": top_k}
            return Finding("score", not declared, declared, sentence, options)
        return Finding("score", False, declared, f"it scores no prompts: {reason or last}")

    async def _pieces(self, request: Request, **changes: Any) -> list[Piece]:
        async with (
            self._engine(**changes) as engine,
            aclosing(engine.stream(request, self.ledger.meter("answer"))) as stream,
        ):
            return [piece async for piece in stream]

    async def _scored(self, prompt: Prompt, **changes: Any) -> None:
        async with self._engine(**changes) as engine:
            await engine.score(Request(prompt), self.ledger.meter("score"))

    @asynccontextmanager
    async def _engine(self, **changes: Any) -> AsyncIterator[ProbedEngine]:
        """The engine with other options and short deadlines."""
        given = self.settings.patience
        patience = replace(
            given,
            first_token=min(given.first_token, 60.0),
            inter_token=min(given.inter_token, 30.0),
            total=min(given.total, 90.0),
            tries=min(given.tries, 2),
        )
        engine = self.make(replace(self.settings, patience=patience, **changes))
        try:
            yield engine
        finally:
            await engine.close()


def _kind(top_k: int) -> str:
    return f"entropies are those of the {top_k} most probable tokens" if top_k else "entropies are exact"


def _request(tokens: int, **sampling: Any) -> Request:
    return Request(Chat((Message("user", QUESTION),)), Sampling(max_tokens=tokens, **sampling))


def _text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)
