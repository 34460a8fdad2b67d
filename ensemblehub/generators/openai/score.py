"""Reading a prompt through an API: `/completions` with `echo` and `logprobs`.

Makes the body that asks for a reading, and a `Scored` of what comes back.  What does not fit the prompt that was sent
is an error, never a reading.  Knows neither deadlines nor bills.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ensemblehub.errors import EngineError, RequestError
from ensemblehub.generators.entropies import entropy_of
from ensemblehub.generators.openai.reply import Usage, alternatives, listed, logprob, number
from ensemblehub.generators.text.rendering import Rendered, Renderer
from ensemblehub.generators.text.spans import Origin
from ensemblehub.schema import Alternative, Request, Scored, ScoredToken, Text
from ensemblehub.surrogates import whole

_ID = re.compile(r"token_id:(\d+)")
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")  # how OpenAI's API names a part of a character
_WINDOW = 16  # characters that tokens which are no text alone may stand for
_MOST_NATS = 100.0  # an entropy is at most the logarithm of the vocabulary's size
Line = list[tuple[str, float]]


@dataclass(frozen=True)
class Echo:
    """A prompt that is read.

    Attributes:
        engine, model: its name here and there.
        request: its prompt is raw text where there is no tokenizer.
        renderer: the model's own tokenizer; the prompt is then sent in its ids, and origins are as in every engine.
        top_k: from how many of the likeliest tokens entropies are taken; 0 where the server gives exact ones.
        vllm: whether the server writes nothing where nothing is asked for, and names tokens by their ids.
    """

    engine: str
    model: str
    request: Request
    renderer: Renderer | None
    top_k: int
    vllm: bool

    def __post_init__(self) -> None:
        if self.renderer is None and not isinstance(self.request.prompt, Text):
            raise RequestError(
                f"{self.engine}: without the model's own tokenizer (option `tokenizer`) only raw text can be scored"
            )

    @property
    def rendered(self) -> Rendered | None:
        """The prompt in ids; None where the server cuts the text itself."""
        return None if self.renderer is None else self.renderer(self.request, self.engine)

    @property
    def text(self) -> str:
        """A raw prompt with the start of its answer."""
        prompt = self.request.prompt
        return (prompt.text if isinstance(prompt, Text) else "") + self.request.prefix

    def body(self) -> dict[str, Any]:
        """What is posted.  Where a server may not take `max_tokens: 0`, one token is written, and billed."""
        rendered = self.rendered
        form = {"return_tokens_as_token_ids": True} if self.vllm and self.top_k and rendered else {}
        prompt = list(rendered.ids) if rendered else self.text
        if not prompt:
            raise RequestError(f"{self.engine}: the prompt is empty")
        asked = {
            "echo": True,
            "logprobs": max(1, self.top_k),
            "max_tokens": 0 if self.vllm else 1,
            "temperature": 0.0,
        }
        return {"model": self.model, "prompt": prompt, **asked, **form}

    def scored(self, answer: Mapping[str, Any]) -> Scored:
        """Every token of the prompt.

        Raises:
            EngineError: the answer is no reading of it.
        """
        choices = answer.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        told = choice.get("logprobs")
        if not isinstance(told, dict):
            raise self._wrong("it gave no logprobs of the prompt, so it cannot score")
        try:
            return self._scored(choice, told, answer)
        except ValueError as error:
            raise self._wrong(f"its logprobs are malformed: {error}") from error

    def _scored(
        self, choice: Mapping[str, Any], told: Mapping[str, Any], answer: Mapping[str, Any]
    ) -> Scored:
        tokens, logprobs = (
            self._texts(told.get("tokens")),
            listed(told.get("token_logprobs"), "token_logprobs"),
        )
        likely, exact = (listed(told.get(name), name) for name in ("top_logprobs", "entropies"))
        rendered = self.rendered
        count = len(rendered.ids) if rendered else self._read(tokens, answer)
        if not count <= len(tokens) <= count + 1 or len(logprobs) != len(tokens):
            raise self._wrong(f"it gave logprobs of {len(tokens)} tokens for the {count} of the prompt")
        at = rendered.origins if rendered else self._placed(_spelled(tokens[:count]))
        ids = rendered.ids if rendered else (None,) * count
        self._check(choice.get("text"), tokens[:count], rendered)
        lines = [_line(one) for one in likely[:count]]
        lines += [[]] * (count - len(lines))
        numbers = [None if one is None else logprob(one) for one in logprobs[1:count]]
        if None in numbers:
            raise self._wrong("it gave no logprob of some tokens of the prompt")
        known: list[float | None] = [None, *numbers]
        entropies = self._entropies(lines, known, exact[:count])
        rows = zip(at, ids, known, entropies, lines, strict=True)
        return Scored(tuple(self._token(*row) for row in rows))

    def _token(
        self, at: Origin, index: int | None, logprob: float | None, entropy: float | None, line: Line
    ) -> ScoredToken:
        best = self._alternative(*line[0]) if line and logprob is not None else None
        top = (best,) if best else ()
        return ScoredToken(
            at.text,
            index,
            logprob,
            entropy,
            at.message,
            at.start,
            at.end,
            best.logprob if best else None,
            top,
        )

    def _alternative(self, name: str, logprob: float) -> Alternative:
        index = _ID.fullmatch(name)
        if index is None or self.renderer is None:
            return Alternative(name, logprob)
        return Alternative(self.renderer.decode([int(index[1])]), logprob, int(index[1]))

    def _entropies(
        self, lines: Sequence[Line], known: Sequence[float | None], exact: Sequence[Any]
    ) -> list[float | None]:
        """Of each token but the first: the server's exact ones, or those of the likeliest."""
        if not self.top_k:
            given = [number(one, _MOST_NATS) for one in exact[1:]]
            if len(exact) != len(lines) or None in given:
                raise self._wrong(
                    "it gives no exact entropies: set `entropy_top_k` to how many of the likeliest tokens it gives"
                )
            return [None, *given]
        places = list(zip(lines[1:], known[1:], strict=True))
        most = max((_given(line, logprob) for line, logprob in places), default=self.top_k)
        whole = all(sum(math.exp(value) for _, value in line) > 0.999 for line, _ in places)
        if most < self.top_k and not whole:
            raise self._wrong(
                f"it gives {most} of the likeliest tokens of a prompt, not {self.top_k} (`entropy_top_k`)"
            )
        return [None, *(entropy_of([value for _, value in line[: self.top_k]], False) for line, _ in places)]

    @staticmethod
    def _texts(tokens: Any) -> list[str]:
        found = listed(tokens, "tokens")
        if not all(isinstance(token, str) for token in found):
            raise ValueError("a token that is no text")
        return [whole(token) for token in found]

    def _check(self, text: Any, tokens: Sequence[str], rendered: Rendered | None) -> None:
        """That the server read what was sent; that of another model's tokenizer is other text."""
        if rendered is None or self.renderer is None:
            return
        ids = [_ID.fullmatch(token) for token in tokens]
        same = all(one is None or int(one[1]) == index for one, index in zip(ids, rendered.ids, strict=True))
        controls = [self.renderer.decode([index]) for index in self.renderer.controls]
        got, sent = (
            _plain(one, controls)
            for one in (text if isinstance(text, str) else "", self.renderer.decode(rendered.ids))
        )
        if not same or (got and not got.startswith(sent)):
            raise self._wrong("it read other text than was sent: `tokenizer` is not that of its model")

    def _read(self, tokens: Sequence[str], answer: Mapping[str, Any]) -> int:
        """How many of the tokens are the prompt's, where the server cuts it itself."""
        if self.vllm:
            return len(tokens)
        usage = Usage.told(answer)
        told = usage.read if usage else None
        return told if told is not None and told in (len(tokens) - 1, len(tokens)) else len(tokens) - 1

    def _placed(self, tokens: Sequence[str]) -> list[Origin]:
        """Where tokens that the server cut stand; some are no text alone, or none of the prompt's."""
        prompt = self.request.prompt
        border = len(prompt.text) if isinstance(prompt, Text) else 0
        text, position, placed = self.text, 0, []
        for token in tokens:
            at = text.find(token, position, position + _WINDOW + len(token)) if token else -1
            start, end = (at, at + len(token)) if at >= 0 else (position, position)
            moved = border if start >= border and self.request.prefix else 0
            message = None if at < 0 and not position else int(moved > 0)
            placed.append(Origin(message, start - moved, end - moved, token))
            position = end
        if len(text) - position > min(_WINDOW, len(text) // 2):
            raise self._wrong("it did not repeat the prompt")
        return placed

    def _wrong(self, what: str) -> EngineError:
        return EngineError(f"{self.engine} cannot be read with: {what}", self.engine)


def _spelled(tokens: Sequence[str]) -> list[str]:
    """Tokens as text: a character that came in parts stands in the last of them."""
    decoder, texts = codecs.getincrementaldecoder("utf-8")("replace"), list[str]()
    for token in tokens:
        part = _BYTES.fullmatch(token)
        texts.append(decoder.decode(bytes.fromhex(part[1].replace("\\x", ""))) if part else token)
    return texts


def _line(entry: Any) -> Line:
    """The likeliest tokens of a place with their logprobs, most likely first."""
    return [(one.text, one.logprob) for one in alternatives(entry)]


def _given(line: Line, logprob: float | None) -> int:
    """How many of the likeliest are given: the token that stands there comes besides, where it is none of them."""
    beside = len(line) > 1 and logprob is not None and logprob <= line[-1][1] + 1e-6
    return len(line) - beside


def _plain(text: str, controls: Sequence[str]) -> str:
    """Without control tokens and white space, which servers show differently."""
    for name in controls:
        text = text.replace(name, "") if name else text
    return "".join(text.split())
