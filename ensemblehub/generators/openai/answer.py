"""The streamed answer of an OpenAI-compatible API: its pieces, how it ends, and its usage.

Joins what providers split (surrogate pairs, tool calls), enforces stop strings and `max_tokens` where a
provider ignores them, and marks every figure that the provider did not report as an estimate.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import EngineError, one_line
from ensemblehub.generators.base import Engine
from ensemblehub.generators.openai.reply import (
    APIChoice,
    APIMessage,
    APIReply,
    APIToolCall,
    MalformedError,
    finish_of,
)
from ensemblehub.generators.openai.usage import APIUsage
from ensemblehub.generators.text.stops import StopFilter
from ensemblehub.schema import Chat, Finish, Piece, Request, Text, Token
from ensemblehub.surrogates import Joiner, whole

log = logging.getLogger(__name__)
_LONGEST_TOKEN = 256  # characters; vocabularies hold none longer, so a longer text has more tokens


@dataclass
class APIAnswer:
    """A streamed answer.

    Attributes:
        engine: the engine that answers.
        limit: `max_tokens` as the provider is asked for it.
        show_thoughts: whether the thoughts of a reasoning model are shown, between <think> and </think>.
        bound_thoughts: whether `limit` bounds them too.
        stop: strings that end the answer.
        several: whether several answers were requested, of which this is the first.
        usage: usage reported by the provider so far.
        finish: how the answer ended; None as long as it has not.
        over: whether it was ended here, by `stop` or `limit`; the rest of the stream is not read.
        written: number of tokens received.
    """

    engine: Engine
    request: Request
    meter: UsageMeter
    limit: int
    show_thoughts: bool = True
    bound_thoughts: bool = False
    stop: Sequence[str] = ()
    several: bool = False
    usage: APIUsage | None = field(default=None, init=False)
    finish: Finish | None = field(default=None, init=False)
    over: bool = field(default=False, init=False)
    written: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._stops = StopFilter[Piece](self.stop)
        self._calls = ToolCalls()
        self._said = Joiner()
        self._thought = Joiner()
        self._token_texts = Joiner()
        self._waiting: tuple[Token, ...] = ()  # tokens of a character whose second half is missing
        self._thinking = False
        self._begun = False
        self._by_deltas = False
        self._called = False  # whether it holds tool calls
        self._went_on = False  # whether the provider wrote more after a finish reason
        self._counted = 0  # tokens and characters that count towards `limit`
        self._length = 0

    @property
    def complete(self) -> bool:
        """Whether the provider has reported the end of the answer."""
        return self.finish is not None and not self._went_on

    def read_usage(self, reply: Mapping[str, Any]) -> None:
        """Keep the usage that the reply reports, if any."""
        self.usage = APIUsage.of(reply) or self.usage

    def pieces(self, reply: Mapping[str, Any]) -> list[Piece]:
        """The text and the tool calls of an event or a whole reply.

        Raises:
            EngineError: it is malformed, or the provider ended the answer for a reason of its own.
        """
        self.read_usage(reply)
        try:
            choice = self._own(APIReply.read(reply).choices or [])
            found = list(self._added(choice)) if choice else []
        except MalformedError as error:
            raise self._error(f"malformed reply: {error}") from error
        if choice and not self.over:
            self._end(choice.finish_reason)
        return found

    def end(self) -> list[Piece]:
        """Return the text held back and the last piece, which has `finish`.

        Raises:
            EngineError: the provider has not said how the answer ended.
        """
        if self.finish is None:
            raise self._error("the answer broke off before its end")
        left = [*self._thoughts(self._thought.end()), *self._text(self._said.end(), self._waiting)]
        left += [*self._released(), *self._tool_calls(self._calls.end())]
        return [*left, self._piece("", finish=self.finish)]

    def _own(self, choices: list[APIChoice]) -> APIChoice | None:
        """The choice of this answer; where only one was requested, its index does not matter."""
        first = next((choice for choice in choices if choice.index in (None, 0)), None)
        return first or (choices[0] if choices and not self.several else None)

    def _added(self, choice: APIChoice) -> Iterator[Piece]:
        """The pieces that a choice adds."""
        message = choice.delta or (None if self._by_deltas else choice.message) or APIMessage()
        words = choice.text + message.words
        calls = [self._calls.part(call) for call in message.calls]
        if words or calls:
            self._begun = True
            self._called = self._called or bool(calls)
            self._went_on = self._went_on or self.finish is not None
            self._by_deltas = self._by_deltas or choice.delta is not None
        thought = self._thought.add(words.thought)
        said = self._said.add(words.said)
        named = (replace(token, text=self._token_texts.add(token.text)) for token in choice.logprobs)
        tokens = (*self._waiting, *named)
        self._waiting = tokens if self._said.held else ()
        yield from self._thoughts(thought, () if said else tokens)
        yield from self._text(said, tokens)
        yield from self._tool_calls(calls)

    def _thoughts(self, text: str, tokens: tuple[Token, ...] = ()) -> Iterator[Piece]:
        if text:
            yield from self._released()
            yield from self._shown(self._piece(text, tokens), thought=True)

    def _text(self, text: str, tokens: tuple[Token, ...]) -> Iterator[Piece]:
        if not text or self.over:
            return
        for piece in self._stops.push(self._piece(text, tokens)):
            yield from self._shown(piece)
        if self._stops.stopped and not self.over:
            self.finish = self._stops.finish
            self.over = True

    def _tool_calls(self, calls: Sequence[Any]) -> Iterator[Piece]:
        if calls:
            yield from self._shown(replace(self._piece(""), tool_calls=tuple(calls)))

    def _released(self) -> Iterator[Piece]:
        """Text that was held back because it might have begun a stop string."""
        for piece in self._stops.flush():
            yield from self._shown(piece)

    def _piece(self, text: str, tokens: tuple[Token, ...] = (), finish: Finish | None = None) -> Piece:
        tokens = tokens or ((Token(text),) if text else ())
        return Piece(text, self.engine.name, self.meter.purpose, tokens, finish)

    def _shown(self, piece: Piece, thought: bool = False) -> Iterator[Piece]:
        """A piece within `limit`, with the marks around thoughts, or without thoughts."""
        if self.over:
            return
        if not thought or self.bound_thoughts:
            piece = self._bounded(piece)
        self.written += len(piece.tokens) or len(piece.tool_calls)
        if thought and not self.show_thoughts:
            return
        if piece.text and self.show_thoughts and thought != self._thinking:
            piece = replace(piece, text=("<think>" if thought else "</think>") + piece.text)
            self._thinking = thought
        if piece.text or piece.tool_calls:
            yield piece

    def _bounded(self, piece: Piece) -> Piece:
        """The part of a piece that is within `limit`; the rest ends the answer.

        Tokens are those of the logprobs, else parts of the stream, unless the usage so far reports fewer.
        """
        reported = None if self.usage is None else self.usage.written
        tokens = piece.tokens
        if reported is None or reported > self.limit:
            tokens = tokens[: max(0, self.limit - self._counted)]
        text = piece.text
        if len(tokens) < len(piece.tokens):
            kept = "".join(token.text for token in tokens)
            text = kept if text.startswith(kept) else ""
        arguments = sum(len(str(call.get("function"))) for call in piece.tool_calls)
        left = self.limit * _LONGEST_TOKEN - self._length
        self._counted += len(tokens)
        self._length += len(text) + arguments
        if len(tokens) == len(piece.tokens) and len(text) + arguments <= left:
            return piece
        log.warning(
            "%s: the provider writes more than max_tokens, %d; the answer ends there",
            self.engine.name,
            self.limit,
        )
        self.finish = "length"
        self.over = True
        return replace(piece, text=text[: max(0, left)], tokens=tokens, tool_calls=())

    def _end(self, word: str) -> None:
        """Take a provider's word for how the answer ended."""
        finish = finish_of(word)
        if finish is None:
            return
        if finish == "failed":
            raise self._error(f"the provider ended the answer: {one_line(word)}")
        if finish == "unknown":
            log.warning(
                "%s: the provider ended the answer with the word %r", self.engine.name, one_line(word)
            )
            finish = "stop"
        if finish == "stop" and self._called:
            finish = "tool_calls"
        self._went_on = False
        if self.finish in (None, "stop"):  # a later word does not take back that it was cut
            self.finish = finish

    def _error(self, what: str) -> EngineError:
        return EngineError(f"{self.engine.name}: {what}", self.engine.name)

    def record(self, seconds: float, *, scoring: bool = False) -> None:
        """Record the call, once; a figure that the provider did not report is an estimate.

        Args:
            scoring: whether what was written is discarded.
        """
        usage = self.usage or APIUsage()
        counted = self.engine.count(self.request)
        read = usage.read
        if not read:
            begun = self._begun or self.finish is not None
            guess = guessed(self.request) if counted is None else counted
            read = guess if begun else 0
        elif counted is not None and abs(read - counted) > max(16, counted // 10):
            log.warning(
                "%s: the provider reports %d prompt tokens, %d were counted here",
                self.engine.name,
                read,
                counted,
            )
        written = usage.written
        if written is None or (self._begun and not written):
            written = self.written
        final = self.finish is not None and not self.over  # the provider ended it, so its usage is complete
        reported = usage.sure and (read, written) == (usage.read, usage.written)
        self.meter.record(
            self.engine.name,
            self.engine.info,
            prompt_tokens=read,
            cached_tokens=min(usage.cached, read),
            completion_tokens=written,
            discarded_tokens=written if scoring else 0,
            seconds=seconds,
            usd=usage.usd,
            flops=usage.flops,
            estimated=not (final and reported),
            reading=scoring,
        )


class ToolCalls:
    """Tool calls from their parts, each under an index of its own, whatever index the provider gives."""

    def __init__(self) -> None:
        self._ids: dict[int, str] = {}
        self._arguments: defaultdict[int, Joiner] = defaultdict(Joiner)

    def part(self, call: APIToolCall) -> dict[str, Any]:
        """A part of a call, as OpenAI streams it.

        Raises:
            MalformedError: what the provider adds to it is nested too deeply.
        """
        index = self._index(call)
        part: dict[str, Any] = {"index": index}
        if call.id and index not in self._ids:
            part["id"] = call.id
        self._ids.setdefault(index, call.id)
        part |= _extras(call)
        function: dict[str, str] = {}
        if call.function and call.function.name:
            function["name"] = whole(call.function.name)
        if call.function and "arguments" in call.function.model_fields_set:
            function["arguments"] = self._arguments[index].add(call.function.arguments)
        return part | ({"function": function} if function else {})

    def end(self) -> list[dict[str, Any]]:
        """Parts that complete arguments which end in half a surrogate pair."""
        left = [(index, joiner.end()) for index, joiner in self._arguments.items()]
        return [{"index": index, "function": {"arguments": text}} for index, text in left if text]

    def _index(self, call: APIToolCall) -> int:
        known = {identifier: index for index, identifier in self._ids.items() if identifier}
        begins = bool(call.function and call.function.name)
        if call.index is not None and (call.index not in self._ids or not begins):
            return call.index
        if call.id in known:
            return known[call.id]
        if call.index is not None and not call.id:
            return call.index
        last = max(self._ids, default=-1)
        return last + 1 if begins or call.id or last < 0 else last


def _extras(call: APIToolCall) -> dict[str, Any]:
    """Fields that a provider adds to a call, such as a signature that it wants back."""
    extras = dict(call.model_extra or {})
    if extras.get("type") != "function":
        extras.pop("type", None)
    try:
        found: dict[str, Any] = json.loads(whole(json.dumps(extras, ensure_ascii=False)))
    except RecursionError as error:
        raise MalformedError("it is nested too deeply") from error
    return found


def guessed(request: Request) -> int:
    """Estimated tokens of a prompt whose tokenizer is unknown, at four characters each."""
    prompt = request.prompt
    texts = [message.content for message in prompt.messages] if isinstance(prompt, Chat) else []
    texts += [prompt.text] if isinstance(prompt, Text) else []
    return sum(map(len, [*texts, request.prefix])) // 4 + 1
