"""Structured answers of models whose next token is chosen in this process: their tokens keep to a grammar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ensemblehub.errors import RequestError
from ensemblehub.generators.base import Vocabulary
from ensemblehub.generators.structure.answer import StructuredAnswer, reason_of
from ensemblehub.generators.structure.calls import CallFormat, CallReader, ToolParser, format_of
from ensemblehub.generators.structure.wanted import WantedStructure
from ensemblehub.schema import Request

if TYPE_CHECKING:
    from ensemblehub.generators.structure.grammar import Grammar, GrammarCompiler


class GrammarAnswer(StructuredAnswer):
    """An answer whose tokens keep to `grammar`; its tool calls are read in the same format."""

    def __init__(self, name: str, request: Request, names: Mapping[int, str], grammar: Grammar) -> None:
        super().__init__(name, request, names)
        self.grammar = grammar
        self._reader: CallReader | None = None

    def find_calls(self, form: CallFormat, wanted: WantedStructure) -> None:
        """Look for calls of the functions that may be called."""
        self.calling, self.named = True, bool(wanted.named)
        self._reader = CallReader(form, [function.name for function in wanted.callable])

    def read(self, text: str, ids: Sequence[int], finished: bool) -> tuple[str, Sequence[Mapping[str, Any]]]:
        return self._reader.read(text, finished) if self._reader else (text, ())


class GrammarAnswers:
    """Makes the structured answers of one model; thread-safe.

    Args:
        parser: how the model writes tool calls; None where it is offered no tools.
        encode: token ids of a text in the middle of an answer.
    """

    def __init__(
        self,
        name: str,
        vocabulary: Vocabulary,
        parser: ToolParser | None,
        encode: Callable[[str], Sequence[int]],
    ) -> None:
        self._name = name
        self._vocabulary = vocabulary
        self._form = format_of(parser, vocabulary.names.values()) if parser else None
        self._encode = encode

    def __call__(self, request: Request, end: frozenset[int]) -> GrammarAnswer | None:
        """The answer to a request that ends at ids of `end`; None where any text is one.

        Raises:
            RequestError: the format or the tools are not understood, or cannot be enforced.
            MissingExtraError: llguidance is not installed.
        """
        try:
            wanted = WantedStructure.of(request.extra)
        except ValidationError as error:
            raise RequestError(f"{self._name}: {reason_of(error)}") from error
        if wanted.free:
            return None
        vocabulary = self._vocabulary
        names = {index: name for index, name in vocabulary.names.items() if index not in end}
        grammar = self._compiler.grammar(wanted, end)
        answer = GrammarAnswer(self._name, request, names, grammar)
        if self._form is not None and wanted.callable:
            answer.find_calls(self._form, wanted)
        return answer

    @cached_property
    def _compiler(self) -> GrammarCompiler:
        from ensemblehub.generators.structure.grammar import GrammarCompiler

        return GrammarCompiler(self._name, self._vocabulary, self._form, self._encode)
