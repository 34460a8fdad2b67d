"""Grammars that a model's tokens keep to, by llguidance: compiled once, followed token by token."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from ensemblehub.errors import MissingExtraError, RequestError, one_line
from ensemblehub.generators.base import Vocabulary
from ensemblehub.generators.structure.calls import CallFormat
from ensemblehub.generators.structure.wanted import ANY_OBJECT, FunctionSpec, WantedStructure
from ensemblehub.generators.text.lru_cache import LRUCache

try:
    import llguidance
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"{error.name} is not installed: pip install 'ensemblehub[structured]' for response_format and tools"
    ) from error

# JSON on one line, with at most a space behind a comma or a colon.  Small models write more without end, and
# llguidance before 1.9, which some releases of vLLM ask for, repeats any `whitespace_pattern`.
_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_CACHED = 2**22  # characters of grammars that are kept


class Grammar:
    """A grammar that the tokens of one answer keep to.

    Attributes:
        error: why no further token can be chosen; empty while one can.
    """

    def __init__(self, matcher: Any, vocabulary: Vocabulary, end: frozenset[int]) -> None:
        self._matcher = matcher
        self._forbidden = sorted(vocabulary.end - end)  # ids that end an answer, but not this one
        self._end = end
        self.error = ""

    def forbidden(self, size: int) -> torch.Tensor:
        """Which of the first `size` ids may not come next, as booleans."""
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        forbidden = torch.ones(size, dtype=torch.bool)
        if self._matcher.is_error():  # its mask is of no use then
            reason = self._matcher.get_error().partition("<state>")[0]  # the parser's own state follows
            self.error = f"the grammar cannot be followed: {one_line(reason)}"
            return forbidden
        forbidden[: len(allowed)] = allowed[:size] == 0
        forbidden[self._forbidden] = True
        if self._matcher.is_accepting():
            forbidden[list(self._end)] = False
        if bool(forbidden.all()):
            self.error = "no token of the vocabulary continues what the format asks for"
        return forbidden

    def consume(self, index: int) -> bool:
        """Take the next token; True where nothing may follow."""
        if index not in self._end:
            self._matcher.consume_token(index)
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()


class GrammarCompiler:
    """Compiles grammars for one vocabulary; thread-safe.

    Args:
        form: how the model writes tool calls.
        encode: token ids of a text in the middle of an answer.
    """

    def __init__(
        self,
        name: str,
        vocabulary: Vocabulary,
        form: CallFormat | None,
        encode: Callable[[str], Sequence[int]],
    ) -> None:
        self._name = name
        self._vocabulary = vocabulary
        self._form = form
        self._encode = encode
        self._compiled = LRUCache(self._compile, lambda _, text: len(text), _CACHED)

    def grammar(self, wanted: WantedStructure, end: frozenset[int]) -> Grammar:
        """The grammar of an answer that ends at ids of `end`.

        Raises:
            RequestError: a schema cannot be enforced; names the keyword.
        """
        try:
            asked = wanted.model_dump_json(by_alias=True)
        except ValueError as error:  # pydantic's own kind
            raise RequestError(f"{self._name}: a schema is nested too deeply") from error
        matcher = self._compiled(asked)
        return Grammar(matcher.deep_copy(), self._vocabulary, end)

    def _compile(self, asked: str) -> Any:
        text = self.written(WantedStructure.model_validate_json(asked))
        matcher = llguidance.LLMatcher(self._tokenizer, text, log_level=0)
        if matcher.is_error():
            raise RequestError(f"{self._name}: the grammar of the answer: {one_line(matcher.get_error())}")
        first = matcher.deep_copy()
        if not any(first.compute_bitmask()) or first.is_error():
            raise RequestError(f"{self._name}: no answer can keep to what is asked for")
        return matcher

    def written(self, wanted: WantedStructure) -> str:
        """The grammar in llguidance's notation, which is Lark's.

        Raises:
            RequestError: a schema cannot be enforced.
        """
        schema, form = wanted.schema_of_text, self._form
        if schema is not None:
            schema = self._checked(schema, "response_format.json_schema.schema")
        if form is None or not wanted.callable:
            return f"start: said\nsaid: {_json(ANY_OBJECT if schema is None else schema)}"
        rules = [f"function: {' | '.join(f'function_{at}' for at in range(len(wanted.callable)))}"]
        for at, function in enumerate(wanted.callable):
            head, tail = self._literal(function.name + form.middle), self._literal(form.after)
            rules.append(f"function_{at}: {head} arguments_{at} {tail}")
            rules.append(f"arguments_{at}: {_json(self._arguments(function))}")
        space = '" "? ' if form.opening.startswith(" ") else ""
        first = space + self._literal(form.opening.lstrip() + form.before)
        more = f"({self._literal(form.following)} function)*" if wanted.several else ""
        called = f"{first} function {more} {self._literal(form.closing)}"
        return "\n".join((*self._start(wanted, schema, form, called), *rules))

    def _start(
        self, wanted: WantedStructure, schema: Mapping[str, Any] | None, form: CallFormat, called: str
    ) -> list[str]:
        """The rules of the whole answer, in which `called` is what follows the start of tool calls."""
        start = self._literal(form.start)
        if wanted.must_call:
            return [f"start: {start} {called}"]
        if schema is not None:
            return [f"start: said | {start} {called}", f"said: {_json(schema)}"]
        if not form.behind_text:  # what begins as a call is one
            return [f"start: SAID | {start} {called}", rf"SAID: /(\s*[^\s{form.start[0]}](.|\n)*)?/"]
        if form.start in self._controls:  # which no text holds
            return [f"start: SAID {start} {called} | SAID", r"SAID: /(.|\n)*/"]
        until = re.escape(form.start).replace("/", r"\/")
        return [f"start: SAID | begun {called}", r"SAID: /(.|\n)*/", rf"begun[lazy]: /(.|\n)*{until}/"]

    def _arguments(self, function: FunctionSpec) -> dict[str, Any]:
        """The schema that a function's arguments keep to."""
        try:
            return self._checked(function.schema_of_arguments, f"tools: parameters of {function.name!r}")
        except RequestError:
            if function.strict:
                raise
            return ANY_OBJECT

    def _literal(self, text: str) -> str:
        """A literal in the grammar's notation, in which names of control tokens stand for the tokens."""
        ids = self._controls
        pattern = "|".join(map(re.escape, sorted(filter(None, ids), key=len, reverse=True)))
        parts = re.split(f"({pattern})", text) if pattern else [text]
        return " ".join(f"<[{ids[part]}]>" if part in ids else json.dumps(part) for part in parts if part)

    @cached_property
    def _controls(self) -> dict[str, int]:
        return {name: index for index, name in self._vocabulary.names.items()}

    def _checked(self, schema: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A schema without options of llguidance's own.

        Raises:
            RequestError: it cannot be enforced.
        """
        plain = {key: value for key, value in schema.items() if key != "x-guidance"}
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(plain))
            wrong, reasons = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
        except ValueError as error:
            wrong, reasons = True, [str(error)]
        if wrong:
            raise RequestError(f"{self._name}: {where}: {one_line(reasons[0])}")
        return plain

    @cached_property
    def _tokenizer(self) -> Any:
        vocabulary = self._vocabulary
        tokens = _Tokens(vocabulary, self._encode)
        tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(tokens),
            n_vocab=len(vocabulary.tokens),
            eos_token=sorted(vocabulary.end) or None,
        )
        tokens.greedy = tokenizer.greedy_tokenize
        return tokenizer


class _Tokens:
    """A vocabulary as llguidance reads it: the bytes of each token, of a control token its name."""

    def __init__(self, vocabulary: Vocabulary, encode: Callable[[str], Sequence[int]]) -> None:
        names = vocabulary.names
        self.tokens = [
            names[index].encode() if index in names else text for index, text in enumerate(vocabulary.tokens)
        ]
        self.special_token_ids = sorted(vocabulary.special)
        self.eos_token_id = min(vocabulary.end, default=0)
        self.bos_token_id = None
        self.greedy: Callable[[str], Sequence[int]] = lambda _: ()
        self._encode = encode

    def __call__(self, text: bytes) -> list[int]:
        """Ids of a text that is forced; an error here would be a panic of llguidance's."""
        said = text.decode(errors="replace")
        try:
            return list(self._encode(said))
        except RequestError:  # it cannot be written without control tokens
            return list(self.greedy(said))


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': _ONE_LINE})}"
