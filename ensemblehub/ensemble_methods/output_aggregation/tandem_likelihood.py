"""The log-likelihood of a given answer: the intern scores it after an insight."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.raw_prompts import given, ids_of, tokenizer_of
from ensemblehub.errors import RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Chat, Event, Message, Request, Scored, ScoredToken


@dataclass(frozen=True)
class GivenAnswer:
    """A raw prompt, split where its context ends.

    Attributes:
        question: the context as a chat.
        context, answer: the intern's token ids before and after the end of the context.
    """

    intern: Engine
    question: Request
    context: tuple[int, ...]
    answer: tuple[int, ...]

    @classmethod
    def of(cls, request: Request, intern: Engine, context: int | None) -> GivenAnswer:
        """Split the prompt behind its first `context` tokens.

        Raises:
            RequestError: `context` is no number of tokens of the prompt, or see `ids_of`.
        """
        ids = ids_of(request.prompt, intern)
        if context is None or not 0 < context <= len(ids):
            raise RequestError(
                "the log-likelihood of tandem needs to know where the context ends, since the insights come "
                f"from it alone: set `ensemble.context_tokens` to a number from 1 to {len(ids)}, "
                "the tokens of the prompt"
            )
        text = tokenizer_of(intern).decode(ids[:context])
        question = replace(request, prompt=Chat((Message("user", text),)))
        return cls(intern, question, tuple(ids[:context]), tuple(ids[context:]))

    async def read(self, guided: Request, ledger: UsageLedger) -> AsyncGenerator[Event | Scored, None]:
        """The log-likelihood of the answer behind the intern's request, then what the intern adds to it."""
        request = given(guided, self.answer, self.intern)
        decode = tokenizer_of(self.intern).decode
        tokens = tuple(ScoredToken(decode([index]), index, None, None, 0, 0, 0) for index in self.context)
        if self.answer:
            scored = await self.intern.score(request, ledger.meter("score"))
            tokens += scored.tokens[-len(self.answer) :]
        yield Scored(tokens)
        if request.sampling.max_tokens:
            async with aclosing(self.intern.stream(request, ledger.meter("answer"))) as pieces:
                async for piece in pieces:
                    yield piece
