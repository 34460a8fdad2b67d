"""Scoring a prompt through an API: `/completions` with `echo` and `logprobs`.

Builds the request body, and turns the reply into `Scored`.  A reply that does not fit the prompt that was
sent is an error, never a reading.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ensemblehub.errors import EngineError, RequestError
from ensemblehub.generators.entropies import entropy_of
from ensemblehub.generators.openai.options import OpenAIOptions
from ensemblehub.generators.openai.reply import alternatives, listed, logprob
from ensemblehub.generators.openai.usage import APIUsage, number
from ensemblehub.generators.text.rendering import Rendered, Renderer
from ensemblehub.generators.text.spans import Origin
from ensemblehub.schema import Alternative, Request, Scored, ScoredToken, Text
from ensemblehub.surrogates import whole

_ID = re.compile(r"token_id:(\d+)")
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")  # OpenAI's name of a part of a character
_WINDOW = 16  # characters that tokens which are no text alone may stand for
_MOST_NATS = 100.0  # an entropy is at most the logarithm of the vocabulary's size
Top = tuple[Alternative, ...]


@dataclass(frozen=True)
class EchoPrompt:
    """A prompt to be scored.

    Attributes:
        engine, model: the engine's name, and the model's name at the API.
        request: its prompt is raw text where there is no renderer.
        renderer: the model's own tokenizer; the prompt is then sent as token ids.

    Raises:
        RequestError: the prompt is not raw text, and there is no renderer.
    """

    engine: str
    model: str
    options: OpenAIOptions
    request: Request
    renderer: Renderer | None

    def __post_init__(self) -> None:
        if self.renderer is None and not isinstance(self.request.prompt, Text):
            needed = "without the model's own tokenizer (option `tokenizer`)"
            raise RequestError(f"{self.engine}: {needed} only raw text can be scored")

    @property
    def vllm(self) -> bool:
        """Whether the server accepts `max_tokens: 0` and returns token ids."""
        return self.options.dialect == "vllm"

    @property
    def top_k(self) -> int:
        """Number of top tokens from which entropies are computed; 0 where the server returns exact ones."""
        return self.options.entropy_top_k

    @cached_property
    def rendered(self) -> Rendered | None:
        """The prompt as token ids; None where the server tokenizes the text itself."""
        return None if self.renderer is None else self.renderer(self.request, self.engine)

    @cached_property
    def text(self) -> str:
        """A raw prompt with the start of its answer."""
        prompt = self.request.prompt
        return (prompt.text if isinstance(prompt, Text) else "") + self.request.prefix

    def body(self) -> dict[str, Any]:
        """Return the JSON body; one token is generated if the server may refuse `max_tokens: 0`.

        Raises:
            RequestError: the prompt is empty.
        """
        prompt = list(self.rendered.ids) if self.rendered else self.text
        if not prompt:
            raise RequestError(f"{self.engine}: the prompt is empty")
        body = {
            "model": self.model,
            "prompt": prompt,
            "echo": True,
            "logprobs": max(1, self.top_k),
            "max_tokens": 0 if self.vllm else 1,
            "temperature": 0.0,
        }
        named_by_ids = self.vllm and self.top_k and self.rendered
        return body | ({"return_tokens_as_token_ids": True} if named_by_ids else {})

    def scored(self, reply: Mapping[str, Any]) -> Scored:
        """Every token of the prompt.

        Raises:
            EngineError: the reply does not fit the prompt.
        """
        choices = reply.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        choice = first if isinstance(first, dict) else {}
        given = choice.get("logprobs")
        if not isinstance(given, dict):
            raise self._error("it gave no logprobs of the prompt, so it cannot score")
        try:
            return Scored(tuple(self._tokens(choice, given, reply)))
        except ValueError as error:
            raise self._error(f"its logprobs are malformed: {error}") from error

    def _tokens(
        self, choice: Mapping[str, Any], given: Mapping[str, Any], reply: Mapping[str, Any]
    ) -> Iterator[ScoredToken]:
        tokens = _texts(given.get("tokens"))
        logprobs = listed(given.get("token_logprobs"), "token_logprobs")
        count = len(self.rendered.ids) if self.rendered else self._prompt_length(len(tokens), reply)
        if not count <= len(tokens) <= count + 1 or len(logprobs) != len(tokens):
            raise self._error(f"it gave logprobs of {len(tokens)} tokens for the {count} of the prompt")
        tokens = tokens[:count]
        if self.rendered:
            self._check_tokenizer(choice.get("text"), tokens, self.rendered)
        origins = self.rendered.origins if self.rendered else self._origins(_spelled(tokens))
        ids = self.rendered.ids if self.rendered else [None] * count
        known = [None if value is None else logprob(value) for value in logprobs[1:count]]
        if None in known:
            raise self._error("it gave no logprob of some tokens of the prompt")
        known = [None, *known]
        tops = [alternatives(entry) for entry in listed(given.get("top_logprobs"), "top_logprobs")[:count]]
        tops += [()] * (count - len(tops))
        entropies = self._entropies(tops, known, listed(given.get("entropies"), "entropies")[:count])
        for origin, index, value, entropy, top in zip(origins, ids, known, entropies, tops, strict=True):
            best = self._alternative(top[0]) if top and value is not None else None
            yield ScoredToken(
                origin.text,
                index,
                value,
                entropy,
                origin.message,
                origin.start,
                origin.end,
                best=best.logprob if best else None,
                top=(best,) if best else (),
            )

    def _alternative(self, top: Alternative) -> Alternative:
        index = _ID.fullmatch(top.text)
        if index is None or self.renderer is None:
            return top
        return Alternative(self.renderer.decode([int(index[1])]), top.logprob, int(index[1]))

    def _entropies(
        self, tops: Sequence[Top], known: Sequence[float | None], exact: Sequence[Any]
    ) -> list[float | None]:
        """The entropy of each token: the server's, or a bound from the top tokens; None for the first."""
        if not self.top_k:
            given = [number(value, _MOST_NATS) for value in exact[1:]]
            if len(exact) != len(tops) or None in given:
                raise self._error(
                    "it gives no exact entropies: set `entropy_top_k` to how many of the top tokens it gives"
                )
            return [None, *given]
        values = [[alternative.logprob for alternative in top] for top in tops[1:]]
        most = max(map(_returned, values, known[1:]), default=self.top_k)
        complete = all(sum(map(math.exp, row)) > 0.999 for row in values)
        if most < self.top_k and not complete:
            raise self._error(
                f"it gives {most} of the top tokens of a prompt, not {self.top_k} (`entropy_top_k`)"
            )
        return [None, *(entropy_of(row[: self.top_k], False) for row in values)]

    def _check_tokenizer(self, text: Any, tokens: Sequence[str], rendered: Rendered) -> None:
        """Check that the server read what was sent; with another tokenizer, ids are other text."""
        assert self.renderer is not None
        ids = [_ID.fullmatch(token) for token in tokens]
        same = all(not name or int(name[1]) == index for name, index in zip(ids, rendered.ids, strict=True))
        controls = [self.renderer.decode([index]) for index in self.renderer.controls]
        got = _plain(text if isinstance(text, str) else "", controls)
        if not same or (got and not got.startswith(_plain(self.renderer.decode(rendered.ids), controls))):
            raise self._error("it read other text than was sent: `tokenizer` is not that of its model")

    def _prompt_length(self, count: int, reply: Mapping[str, Any]) -> int:
        """How many of the tokens are the prompt's, where the server tokenizes it."""
        if self.vllm:
            return count
        usage = APIUsage.of(reply) or APIUsage()
        return usage.read if usage.read in (count - 1, count) else count - 1

    def _origins(self, tokens: Sequence[str]) -> list[Origin]:
        """Where the server's tokens stand in the prompt; some are no text alone, or none of the prompt's."""
        prompt = self.request.prompt
        border = len(prompt.text) if isinstance(prompt, Text) else 0
        position = 0
        origins = []
        for token in tokens:
            at = self.text.find(token, position, position + _WINDOW + len(token)) if token else -1
            start, end = (at, at + len(token)) if at >= 0 else (position, position)
            moved = border if start >= border and self.request.prefix else 0
            message = None if at < 0 and not position else int(moved > 0)
            origins.append(Origin(message, start - moved, end - moved, token))
            position = end
        if len(self.text) - position > min(_WINDOW, len(self.text) // 2):
            raise self._error("it did not repeat the prompt")
        return origins

    def _error(self, what: str) -> EngineError:
        return EngineError(f"{self.engine} cannot be read with: {what}", self.engine)


def _texts(tokens: Any) -> list[str]:
    found = listed(tokens, "tokens")
    if not all(isinstance(token, str) for token in found):
        raise ValueError("a token that is no text")
    return [whole(token) for token in found]


def _spelled(tokens: Sequence[str]) -> list[str]:
    """Tokens as text; a character that comes in parts stands in the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts = map(_BYTES.fullmatch, tokens)
    return [
        decoder.decode(bytes.fromhex(part[1].replace("\\x", ""))) if part else token
        for token, part in zip(tokens, parts, strict=True)
    ]


def _returned(top: Sequence[float], value: float | None) -> int:
    """How many top tokens were returned; the prompt's own token is added where it is none of them."""
    added = len(top) > 1 and value is not None and value <= top[-1] + 1e-6
    return len(top) - added


def _plain(text: str, controls: Sequence[str]) -> str:
    """Text without control tokens and white space, which servers write differently."""
    for name in controls:
        text = text.replace(name, "") if name else text
    return "".join(text.split())
