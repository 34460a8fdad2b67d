"""Raw prompts in an engine's own token ids, for strategies that give log-likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ensemblehub.errors import RequestError
from ensemblehub.generators.base import Engine, Tokenizer
from ensemblehub.schema import Chat, Piece, Prompt, Request, Token, TokenIds


def tokenizer_of(engine: Engine) -> Tokenizer:
    """The engine's tokenizer.

    Raises:
        RequestError: it has none at hand.
    """
    if engine.tokenizer is None:
        raise RequestError(f"engine {engine.name!r} has no tokenizer at hand")
    return engine.tokenizer


def ids_of(prompt: Prompt, engine: Engine) -> list[int]:
    """A raw prompt in the engine's token ids.

    Raises:
        RequestError: it is a chat or contains an unknown id, or the engine has no tokenizer at hand.
    """
    if isinstance(prompt, Chat):
        raise RequestError("a raw prompt is needed, not a chat")
    ids = list(prompt.ids) if isinstance(prompt, TokenIds) else tokenizer_of(engine).encode(prompt.text)
    unknown = next((index for index in ids if index >= (engine.info.vocabulary or index + 1)), None)
    if unknown is not None:
        raise RequestError(f"{engine.name}: there is no token id {unknown}")
    return ids


def given(request: Request, ids: Sequence[int], engine: Engine) -> Request:
    """The request with `ids` as the start of the engine's answer, read as exactly these tokens."""
    tokenizer = tokenizer_of(engine)
    tokens = tuple(Token(tokenizer.decode([index]), index) for index in ids)
    written = Piece("".join(token.text for token in tokens), engine.name, "answer", tokens)
    return replace(
        request, prefix=request.prefix + written.text, written=(*request.written, written) if ids else ()
    )
