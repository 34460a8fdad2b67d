"""What a live OpenAI-compatible endpoint can do: a few short requests, and a sentence for each ability.

Asks through the engine itself, so that what is seen is what an ensemble would get.  Every request is billed to the
ledger.  Whatever an endpoint does is a finding, never a failure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from ensemblehub.cost import UsageLedger
from ensemblehub.errors import EnsembleHubError, RequestError
from ensemblehub.generators.base import Finding
from ensemblehub.generators.openai.endpoint import Refused
from ensemblehub.generators.openai.engine import OpenAIEngine, OpenAIOptions, prefix_way
from ensemblehub.generators.openai.errors import one_line
from ensemblehub.generators.openai.patience import Patience
from ensemblehub.generators.openai.reply import number
from ensemblehub.schema import Chat, Message, Piece, Request, Sampling, Text

ASK = "What is the capital of France? Answer in one short sentence."
HEAD, REST = "The capital of France is Par", "is"  # a model that begins anew does not begin with "is"
READ = "The capital of France is Paris."
WAYS = ("continue_final_message", "flag", "assistant")
LIKELIEST = (
    0,
    20,
    5,
    1,
)  # what servers give of a prompt: exact entropies, vLLM's default, OpenAI's most, the least
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
_BEGUN = '{"city":'
_DIALECTS = {"vllm": "vllm", "sglang": "vllm", "ensemblehub": "vllm"}  # by who owns a listed model
_MOST = Patience(first_token=60.0, inter_token=30.0, total=90.0, tries=2)
_REFUSED = (401, 403)


@dataclass
class Probe:
    """The requests that are made of one endpoint.

    Attributes:
        settings: as configured, as far as it has proved right.
        answer: what the model says to `ASK`.
    """

    engine: OpenAIEngine
    ledger: UsageLedger
    settings: OpenAIOptions
    answer: str = ""

    async def findings(self) -> list[Finding]:
        """All that was seen; where nothing can be asked, that alone."""
        found = [await self._listed()]
        if not found[0].declared or found[0].seen:
            found.append(await self._streams())
            if found[-1].seen:
                found += [
                    await step()
                    for step in (self._logprobs, self._prefix, self._score, self._tools, self._format)
                ]
                found.insert(2, self._usage())
        return found

    async def _listed(self) -> Finding:
        """Whether the endpoint is there, takes the key, and lists the model."""
        name, engine = self.engine.address.model, self._as()
        try:
            answer = await engine.listed()
        except Refused as error:
            refused = error.status in _REFUSED
            return Finding(
                "models", False, refused, f"it {'refuses the key' if refused else 'lists no models'}: {error}"
            )
        except EnsembleHubError as error:
            return Finding("models", False, True, f"nothing can be asked: {error}")
        finally:
            await engine.close()
        return self._read_list(answer, name)

    def _read_list(self, answer: Mapping[str, Any], name: str) -> Finding:
        listed = answer.get("data")
        entries = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        own = next((one for one in entries if one.get("id") == name), None)
        if own is None:
            told = [entry.get("id") for entry in entries[:5]]
            names = ", ".join(one_line(identifier) for identifier in told if isinstance(identifier, str))
            return Finding(
                "models", False, False, f"{name} is not among the {len(entries)} models it lists ({names})"
            )
        return Finding("models", True, True, f"it lists {name} among {len(entries)}", self._of_entry(own))

    def _of_entry(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Options that a listed model tells by itself."""
        options: dict[str, Any] = {}
        owner = entry.get("owned_by")
        dialect = _DIALECTS.get(owner) if isinstance(owner, str) else None
        if dialect and self.settings.dialect != dialect:
            options["dialect"] = dialect
        told = (number(entry.get(name), 10**9) for name in ("max_model_len", "context_length"))
        context = next((int(length) for length in told if length), 0)
        if context and not self.settings.context:
            options["context"] = context
        return options

    async def _streams(self) -> Finding:
        options: dict[str, Any] = {}
        try:
            pieces = await self._written(Request(_chat(ASK), _short(24)))
        except RequestError as error:
            if "max_completion_tokens" not in str(error) or self.settings.max_tokens_field != "max_tokens":
                return Finding("streaming", False, True, f"it does not answer: {error}")
            options = {"max_tokens_field": "max_completion_tokens"}
            self.settings = replace(self.settings, **options)
            try:
                pieces = await self._written(Request(_chat(ASK), _short(24)))
            except EnsembleHubError as again:
                return Finding("streaming", False, True, f"it does not answer: {again}")
        except EnsembleHubError as error:
            return Finding("streaming", False, True, f"it does not answer: {error}")
        self.answer = "".join(piece.text for piece in pieces)
        count = sum(bool(piece.text) for piece in pieces)
        return Finding(
            "streaming", True, True, f"an answer came in {count} parts, as it was written", options
        )

    def _usage(self) -> Finding:
        bill = self.ledger.calls[-1].cost
        told = [call.cost for call in self.ledger.calls if not call.cost.estimated]
        if not told:
            return Finding("usage", False, False, "it tells no usage: bills are estimates")
        cached = " and cached tokens" if any(cost.cached_tokens for cost in told) else ""
        return Finding(
            "usage", True, False, f"it bills tokens itself{', dollars' if bill.usd else ''}{cached}"
        )

    async def _logprobs(self) -> Finding:
        async def see() -> str:
            pieces = await self._written(Request(_chat(ASK), _short(2, top_logprobs=2)), logprobs=True)
            known = [token for piece in pieces for token in piece.tokens if token.logprob is not None]
            if not known:
                return ""
            return f"what it writes has logprobs, with {max(len(token.top) for token in known)} alternatives asked of 2"

        return await self._seen(
            "logprobs", self.settings.logprobs, see, "what it writes has none", {"logprobs": True}
        )

    async def _prefix(self) -> Finding:
        declared = prefix_way(self.settings)
        ways = [declared] if declared != "none" else []
        reasons, way = [], ""
        for way in [*ways, *(one for one in WAYS if one not in ways)]:
            try:
                proof = await self._continued(way)
            except EnsembleHubError as error:
                reasons.append(f"{way}: {error}")
                continue
            if proof:
                options = {} if way == declared else {"prefix": way}
                right = declared in ("none", way)
                sentence = f"it continues a given start of an answer ({way}): {proof}"
                if not right:
                    sentence = f"not by {declared}, which is declared; {sentence}"
                return Finding("prefix", right, declared != "none", sentence, options)
            reasons.append(f"{way}: it began anew")
        return Finding("prefix", False, declared != "none", f"it continues no answer: {'; '.join(reasons)}")

    async def _continued(self, way: str) -> str:
        """What shows that the endpoint went on behind a start; empty where nothing does."""
        text = _text(await self._written(Request(_chat(ASK), _short(8), HEAD), prefix=way))
        if text.startswith(REST) and not text[len(REST) : len(REST) + 1].isalpha():
            return f"after {HEAD!r} it wrote {text[:16]!r}"
        head, rest = _cut(self.answer)
        if not rest:
            return ""
        text = _text(await self._written(Request(_chat(ASK), _short(16), head), prefix=way))
        same = text.strip()[: len(rest.strip())] == rest.strip()[: len(text.strip())]
        anew = self.answer.strip().startswith(text.strip()[:8])
        return (
            f"after {head!r} it wrote what it had written before"
            if len(text.strip()) >= 4 and same and not anew
            else ""
        )

    async def _score(self) -> Finding:
        declared, reason = self.settings.score != "none", ""
        if declared:
            prompt = _chat(ASK) if self.settings.tokenizer else Text(READ)
            try:
                await self._read(prompt)
                return Finding(
                    "score", True, True, f"it reads prompts as declared; {self._kind(self.settings)}"
                )
            except EnsembleHubError as error:
                reason = f"{error}; "
        for count in LIKELIEST:
            try:
                await self._read(Text(READ), tokenizer=None, score="echo", entropy_top_k=count)
            except EnsembleHubError as error:
                last = str(error)
                continue
            options = {"score": "echo", "entropy_top_k": count}
            told = self._kind(replace(self.settings, entropy_top_k=count))
            more = "" if self.settings.tokenizer else "; `tokenizer`, the model's own, lets it score chats"
            sentence = f"{reason}it reads prompts (echo with logprobs); {told}{more}"
            return Finding("score", not declared, declared, sentence, options)
        return Finding("score", False, declared, f"it reads no prompts: {reason or last}")

    @staticmethod
    def _kind(settings: OpenAIOptions) -> str:
        count = settings.entropy_top_k
        return f"entropies are those of the {count} likeliest tokens" if count else "entropies are exact"

    async def _tools(self) -> Finding:
        async def see() -> str:
            extra = {"tools": [{"type": "function", "function": TOOL}]}
            ask = _chat("What is the weather in Paris now? Call the tool.")
            pieces = await self._written(Request(ask, _short(64), extra=extra), tools=True)
            return "the model called a tool" if any(piece.tool_calls for piece in pieces) else ""

        nothing = "the model called no tool, though asked to"
        return await self._seen("tools", self.settings.tools, see, nothing, {"tools": True})

    async def _format(self) -> Finding:
        async def see() -> str:
            extra = {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}
            text = _text(
                await self._written(Request(_chat(ASK), _short(48), extra=extra), response_format=True)
            )
            begun = "".join(text.split())[
                : len(_BEGUN)
            ]  # a model that cannot go on may fill it with white space
            return "an answer keeps to a JSON schema" if begun and _BEGUN.startswith(begun) else ""

        nothing = "an answer did not keep to the JSON schema that was asked for"
        return await self._seen(
            "response_format", self.settings.response_format, see, nothing, {"response_format": True}
        )

    async def _seen(
        self,
        ability: str,
        declared: bool,
        see: Callable[[], Awaitable[str]],
        nothing: str,
        options: dict[str, Any],
    ) -> Finding:
        try:
            proof = await see()
        except EnsembleHubError as error:
            return Finding(ability, False, declared, f"it was refused: {error}")
        return Finding(
            ability, bool(proof), declared, proof or nothing, options if proof and not declared else {}
        )

    async def _written(self, request: Request, **changes: Any) -> list[Piece]:
        engine = self._as(**changes)
        try:
            async with aclosing(engine.stream(request, self.ledger.meter("answer"))) as stream:
                return [piece async for piece in stream]
        finally:
            await engine.close()

    async def _read(self, prompt: Chat | Text, **changes: Any) -> None:
        engine = self._as(**changes)
        try:
            await engine.score(Request(prompt), self.ledger.meter("score"))
        finally:
            await engine.close()

    def _as(self, **changes: Any) -> OpenAIEngine:
        """The engine with other options, and less patience."""
        return OpenAIEngine(
            self.engine.name, replace(self.settings, patience=_short_of(self.settings), **changes)
        )


def _short_of(settings: OpenAIOptions) -> Patience:
    given = settings.patience
    names = ("first_token", "inter_token", "total", "tries")
    return replace(given, **{name: min(getattr(given, name), getattr(_MOST, name)) for name in names})


def _chat(question: str) -> Chat:
    return Chat((Message("user", question),))


def _short(tokens: int, **more: Any) -> Sampling:
    return Sampling(max_tokens=tokens, **more)


def _text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _cut(text: str) -> tuple[str, str]:
    """The two halves of a text, cut between words; the second is empty where there are too few."""
    at = text.find(" ", len(text) // 2)
    return (text[:at], text[at:]) if at > 0 and len(text[at:].strip()) >= 4 else (text, "")


async def probe(engine: OpenAIEngine, ledger: UsageLedger) -> list[Finding]:
    """What the endpoint of an engine can do, seen by asking it."""
    return await Probe(engine, ledger, engine.settings).findings()
