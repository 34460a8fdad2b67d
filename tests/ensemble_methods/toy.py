"""Models small enough to work out on paper: a vocabulary, and next-token probabilities for every list of ids."""

import asyncio

import numpy as np

from ensemblehub.errors import EngineError
from ensemblehub.generators.base import Decoder, Distribution, Engine, Vocabulary
from ensemblehub.schema import ModelInfo

END = b"<end>"


class ToyEngine(Engine):
    """`rule(ids)` gives the probabilities of the next token, by id."""

    capabilities = frozenset({"decode"})

    def __init__(self, name, tokens, rule, *, context=0, special=(), fingerprint=None):
        tokens = [token if isinstance(token, bytes) else token.encode() for token in tokens]
        end = frozenset(index for index, token in enumerate(tokens) if token == END)
        special = end | frozenset(special)
        spelled = tuple(b"" if index in special else token for index, token in enumerate(tokens))
        self.name, self.rule = name, rule
        self.vocabulary = Vocabulary(spelled, special, end, fingerprint or f"{name}: {tokens}")
        self.info = ModelInfo(1000, 1000, 0.0, context, len(tokens))
        self.decoders = []
        self.fail_at = None

    async def stream(self, request, meter):
        raise AssertionError("token-level methods step a decoder and ask for no stream")
        yield

    def count(self, request):
        return 3

    def decoder(self, request, meter):
        self.decoders.append(ToyDecoder(self, meter))
        return self.decoders[-1]


class ToyDecoder(Decoder):
    def __init__(self, engine, meter):
        self.vocabulary, self.engine, self.meter = engine.vocabulary, engine, meter
        self.ids, self.calls, self.closed = [], [], 0

    def _after(self, ids):
        with np.errstate(divide="ignore"):
            return Distribution(
                np.log(np.asarray(self.engine.rule(tuple(ids)), np.float64)).astype(np.float32)
            )

    def _change(self, append, drop):
        assert not self.closed
        assert 0 <= drop <= len(self.ids)
        self.ids = [*self.ids[: len(self.ids) - drop], *append]
        self.calls.append((list(append), drop))
        if len(self.calls) == self.engine.fail_at:
            raise EngineError(f"{self.engine.name} failed")

    async def step(self, append=(), drop=0):
        self._change(append, drop)
        await asyncio.sleep(0)
        return self._after(self.ids)

    async def read(self, append, drop=0):
        assert append
        self._change(append, drop)
        await asyncio.sleep(0)
        start = len(self.ids) - len(append)
        return [self._after(self.ids[: start + 1 + at]) for at in range(len(append))]

    def encode(self, text):
        """The longest token first, from the left."""
        data, ids = text.encode(), []
        while data:
            fits = [i for i, token in enumerate(self.vocabulary.tokens) if token and data.startswith(token)]
            if not fits:
                break
            ids.append(max(fits, key=lambda i: len(self.vocabulary.tokens[i])))
            data = data[len(self.vocabulary.tokens[ids[-1]]) :]
        return ids

    @property
    def text(self):
        return b"".join(self.vocabulary.tokens[index] for index in self.ids)

    def close(self):
        self.closed += 1
        if self.closed == 1:
            self.meter.record(
                self.engine.name, self.engine.info, prompt_tokens=3, completion_tokens=len(self.ids)
            )


def fixed(*steps):
    """One line of probabilities for each number of ids; the last one for ever."""
    return lambda ids: steps[min(len(ids), len(steps) - 1)]


def scripted(name, tokens, *texts, sure=0.9):
    """A model that writes `texts` one after the other, then ends; anywhere else all tokens are equal to it."""
    table, so_far = {}, b""
    for text in (*texts, END):
        rest = (1 - sure) / (len(tokens) - 1)
        table[so_far] = [sure if token == text else rest for token in tokens]
        so_far += b"" if text == END else text.encode()

    def rule(ids):
        text = b"".join(b"" if tokens[index] == END else tokens[index].encode() for index in ids)
        return table.get(text, [1 / len(tokens)] * len(tokens))

    return ToyEngine(name, tokens, rule)
