"""An answer of an OpenAI-compatible API as it is streamed: its pieces, how it ends, and its cost.

Joins what providers split (surrogate pairs, tool calls), enforces stop strings and `max_tokens` where a provider
ignores them, and marks every figure that the provider did not give as an estimate.  Knows no HTTP.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import EngineError
from ensemblehub.generators.base import Engine
from ensemblehub.generators.openai.errors import one_line
from ensemblehub.generators.openai.reply import (
    Call,
    Choice,
    MalformedError,
    Reply,
    Said,
    Usage,
    Words,
    finish_of,
)
from ensemblehub.generators.text.stops import Gate
from ensemblehub.schema import Chat, Finish, Piece, Request, Text, Token
from ensemblehub.surrogates import Joiner, whole

log = logging.getLogger(__name__)
_LONGEST_TOKEN = 256  # characters; vocabularies hold none longer, so a longer text has more tokens


class Calls:
    """Tool calls from their parts, each under an index of its own, whatever index the provider gives."""

    def __init__(self) -> None:
        self._ids: dict[int, str] = {}
        self._joiners: defaultdict[int, Joiner] = defaultdict(Joiner)

    def part(self, call: Call) -> dict[str, Any]:
        """A part as OpenAI streams it."""
        index = self._index(call)
        new = index not in self._ids
        self._ids.setdefault(index, call.id)
        function: dict[str, str] = {}
        if call.function and call.function.name:
            function["name"] = whole(call.function.name)
        if call.function and "arguments" in call.function.model_fields_set:
            function["arguments"] = self._joiners[index].add(call.function.arguments)
        named = {"id": call.id} if call.id and new else {}
        return {"index": index, **named, **_extras(call), **({"function": function} if function else {})}

    def end(self) -> list[dict[str, Any]]:
        """Parts that close arguments which end in half a character."""
        left = [(index, joiner.end()) for index, joiner in self._joiners.items()]
        return [{"index": index, "function": {"arguments": text}} for index, text in left if text]

    def _index(self, call: Call) -> int:
        known = {own: index for index, own in self._ids.items() if own}
        begins = bool(call.function and call.function.name)
        if call.index is not None and (call.index not in self._ids or not begins):
            return call.index
        if call.id in known:
            return known[call.id]
        if call.index is not None and not call.id:
            return call.index
        last = max(self._ids, default=-1)
        return last + 1 if begins or call.id or last < 0 else last


def _extras(call: Call) -> dict[str, Any]:
    """What a provider adds to a call, such as a signature that it wants back."""
    extras = dict(call.model_extra or {})
    if extras.get("type") != "function":
        extras.pop("type", None)
    found: dict[str, Any] = json.loads(whole(json.dumps(extras, ensure_ascii=False))) if extras else {}
    return found


class Answer:
    """One answer as it comes.

    Args:
        engine: who answers.
        limit: `max_tokens` as the provider is asked for it.
        thoughts: whether the thoughts of a reasoning model are shown, between <think> and </think>.
        bound_thoughts: whether `max_tokens` bounds them too.
        stop: strings that end the answer.
        several: whether more answers come than this one, the first.

    Attributes:
        usage: what the provider says that it cost, at last.
        finish: how the answer ended; None as long as it has not.
        over: whether it ended here, so that what else the provider says is not read.
        came: whether anything came.
        written: tokens that came.
    """

    def __init__(
        self,
        engine: Engine,
        request: Request,
        meter: UsageMeter,
        limit: int,
        *,
        thoughts: bool = True,
        bound_thoughts: bool = False,
        stop: tuple[str, ...] = (),
        several: bool = False,
    ) -> None:
        self._engine, self._request, self._meter, self._limit = engine, request, meter, limit
        self._thoughts, self._bound_thoughts, self._several = thoughts, bound_thoughts, several
        self._gate, self._calls = Gate[Piece](stop), Calls()
        self._said, self._thought, self._tokens = Joiner(), Joiner(), Joiner()
        self._waiting: tuple[Token, ...] = ()  # of a character that is half here
        self._thinking = self._called = self._by_deltas = self._went_on = False
        self._counted = self._length = 0
        self.usage: Usage | None = None
        self.finish: Finish | None = None
        self.over = self.came = False
        self.written = 0

    @property
    def complete(self) -> bool:
        """Whether the provider has said that the answer is over, and has said nothing since."""
        return self.finish is not None and not self._went_on

    def told(self, reply: Mapping[str, Any]) -> None:
        """Remember the usage, if the reply has it."""
        self.usage = Usage.told(reply) or self.usage

    def pieces(self, reply: Mapping[str, Any]) -> list[Piece]:
        """The text and the tool calls of an event or a whole reply.

        Raises:
            EngineError: it is malformed, or the provider ended the answer for a reason of its own.
        """
        self.told(reply)
        try:
            choice = self._own(Reply.read(reply).choices or [])
            shown = self._taken(choice) if choice else []
        except (MalformedError, RecursionError) as error:
            reason = str(error) if isinstance(error, MalformedError) else "it is nested too deeply"
            raise self._error(f"malformed reply: {reason}") from error
        if choice and not self.over:
            self._ends(choice.finish_reason)
        return shown

    def end(self) -> list[Piece]:
        """What is left when the provider is done, and the end itself.

        Raises:
            EngineError: the provider has not said how the answer ended.
        """
        if self.finish is None:
            raise self._error("the answer broke off before its end")
        left: list[Piece] = []
        if not self.over:
            left += self._shown_thought(self._thought.end()) + self._shown_text(
                self._said.end(), self._waiting
            )
        if not self.over:
            left += [shown for piece in self._gate.flush() for shown in self._shown(piece)]
            left += self._shown_calls(tuple(self._calls.end()))
        return [*left, self._piece("", finish=self.finish)]

    def _own(self, choices: list[Choice]) -> Choice | None:
        """The choice of this answer.  Where only one was asked for, a provider's odd index does not matter."""
        first = next((choice for choice in choices if choice.index in (None, 0)), None)
        return first or (choices[0] if choices and not self._several else None)

    def _taken(self, choice: Choice) -> list[Piece]:
        """What a choice adds."""
        message = choice.delta or (None if self._by_deltas else choice.message) or Said()
        words, calls = message.words, tuple(map(self._calls.part, message.calls))
        thought, said = self._thought.add(words.thought), self._said.add(choice.text.said + words.said)
        named = tuple(replace(token, text=self._tokens.add(token.text)) for token in choice.logprobs)
        tokens = self._waiting + named
        self._waiting = tokens if self._said.held else ()
        anything = words != Words() or choice.text != Words() or bool(calls)
        self._went_on = self._went_on or (anything and self.finish is not None)
        self._by_deltas = self._by_deltas or (anything and choice.delta is not None)
        self.came, self._called = self.came or anything, self._called or bool(calls)
        thoughts = self._shown_thought(thought, () if said else tokens)
        return thoughts + self._shown_text(said, tokens) + self._shown_calls(calls)

    def _shown_thought(self, text: str, tokens: tuple[Token, ...] = ()) -> list[Piece]:
        if not text or self.over:
            return []
        before = [shown for piece in self._gate.flush() for shown in self._shown(piece)]
        return before + self._shown(self._piece(text, tokens), thought=True)

    def _shown_text(self, text: str, tokens: tuple[Token, ...]) -> list[Piece]:
        if not text or self.over:
            return []
        found = [
            shown for piece in self._gate.push(self._piece(text, tokens)) for shown in self._shown(piece)
        ]
        if self._gate.stopped and not self.over:
            self.finish, self.over = "stop", True
        return found

    def _shown_calls(self, calls: tuple[Any, ...]) -> list[Piece]:
        return self._shown(replace(self._piece(""), tool_calls=calls)) if calls and not self.over else []

    def _piece(self, text: str, tokens: tuple[Token, ...] = (), finish: Finish | None = None) -> Piece:
        tokens = tokens or ((Token(text),) if text else ())
        return Piece(text, self._engine.name, self._meter.purpose, tokens, finish)

    def _shown(self, piece: Piece, thought: bool = False) -> list[Piece]:
        """A piece as far as `max_tokens` lets it, with the marks around thoughts, or without thoughts."""
        if self.over:
            return []
        if not thought or self._bound_thoughts:
            piece = self._bounded(piece)
        self.written += len(piece.tokens) or len(piece.tool_calls)
        if not self._thoughts and thought:
            return []
        if piece.text and self._thoughts:
            mark = ("<think>" if thought else "</think>") if thought != self._thinking else ""
            piece, self._thinking = replace(piece, text=mark + piece.text), thought
        return [piece] if piece.text or piece.tool_calls else []

    def _bounded(self, piece: Piece) -> Piece:
        """As much of a piece as `max_tokens` lets it; the rest ends the answer.

        Tokens are those of the logprobs, else parts of the stream, as long as the usage so far does not say less.
        """
        limit = self._limit
        excused = self.usage is not None and self.usage.written is not None and self.usage.written <= limit
        tokens = piece.tokens if excused else piece.tokens[: max(0, limit - self._counted)]
        text, room = piece.text, limit * _LONGEST_TOKEN - self._length
        if len(tokens) < len(piece.tokens):
            kept = "".join(token.text for token in tokens)
            text = kept if text.startswith(kept) else ""
        arguments = sum(len(str(call.get("function"))) for call in piece.tool_calls)
        self._counted, self._length = self._counted + len(tokens), self._length + len(text) + arguments
        if len(tokens) == len(piece.tokens) and len(text) + arguments <= room:
            return piece
        log.warning(
            "%s: the provider writes more than max_tokens, %d; the answer ends there", piece.engine, limit
        )
        self.finish, self.over = "length", True
        return replace(piece, text=text[: max(0, room)], tokens=tokens, tool_calls=())

    def _ends(self, word: str) -> None:
        end = finish_of(word)
        if end is None:
            return
        if end == "failed":
            raise self._error(f"the provider ended the answer: {one_line(word)}")
        if end == "unknown":
            log.warning(
                "%s: the provider ended the answer with the word %r", self._engine.name, one_line(word)
            )
            end = "stop"
        if end == "stop" and self._called:
            end = "tool_calls"
        self._went_on = False
        if self.finish in (None, "stop"):  # later words do not take back that it was cut
            self.finish = end

    def _error(self, what: str) -> EngineError:
        return EngineError(f"{self._engine.name}: {what}", self._engine.name)

    def record(self, seconds: float, *, reading: bool = False) -> None:
        """Bill the call, once; a figure that the provider did not give, or that cannot be, is an estimate.

        Args:
            reading: whether nobody uses what was written.
        """
        engine, usage = self._engine, self.usage or Usage()
        counted = engine.count(self._request)
        begun = self.came or self.finish is not None
        guess = (counted if counted is not None else guessed(self._request)) if begun else 0
        read = guess if usage.read in (None, 0) else usage.read
        written = (
            self.written if usage.written is None or (self.came and not usage.written) else usage.written
        )
        if usage.read and counted is not None and abs(read - counted) > max(16, counted // 10):
            log.warning(
                "%s: the provider bills %d prompt tokens, %d were counted here", engine.name, read, counted
            )
        ended = self.finish is not None and not self.over  # by the provider, whose usage is then its last
        sure = ended and usage.sure and (read, written) == (usage.read, usage.written)
        self._meter.record(
            engine.name,
            engine.info,
            prompt_tokens=read,
            cached_tokens=min(usage.cached, read),
            completion_tokens=written,
            discarded_tokens=written if reading else 0,
            seconds=seconds,
            usd=usage.usd,
            estimated=not sure,
        )


def guessed(request: Request) -> int:
    """Tokens of a prompt whose tokenizer is not at hand: four characters each."""
    prompt = request.prompt
    texts = [message.content for message in prompt.messages] if isinstance(prompt, Chat) else []
    texts += [prompt.text] if isinstance(prompt, Text) else []
    return sum(map(len, [*texts, request.prefix])) // 4 + 1
