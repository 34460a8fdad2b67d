"""A model's predictions of a question, for selections and judges that read it."""

from __future__ import annotations

from dataclasses import replace

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Chat, Request, ScoredToken


async def read(engine: Engine, request: Request, meter: UsageMeter) -> tuple[ScoredToken, ...]:
    """The tokens of the user's messages with their predictions, except the very first, which has none.

    Raises:
        RequestError: there is none.
    """
    scored = await engine.score(replace(request, prefix=""), meter)
    prompt = request.prompt
    roles = [message.role for message in prompt.messages] if isinstance(prompt, Chat) else ["user"]
    own = {index for index, role in enumerate(roles) if role == "user"}
    tokens = tuple(token for token in scored.tokens if token.message in own and token.logprob is not None)
    if not tokens:
        raise RequestError("the question is empty: there is nothing to read")
    return tokens
