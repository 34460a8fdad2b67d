"""The tokenizer that a GGUF file holds: as transformers builds it, and as llama.cpp runs it.

The engine tokenizes with the former, which says where in a text each token lies.  The latter says what ends
an answer, and whether the two agree.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import transformers
from tokenizers import Tokenizer, pre_tokenizers

from ensemblehub.errors import ConfigError, one_line
from ensemblehub.generators.batching.checkpoint import ModelCheckpoint
from ensemblehub.generators.llama_cpp import library

# Vocabularies (`tokenizer.ggml.pre`) in which every digit is a word of its own, unknown to transformers 5.23
_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
PROBES = (
    "def f(x: int) -> str:\n    return f'{x:>08}'  # 1234567",
    "a  1\n\n\n  x\t\ty \r\n",
    "I'd say: it's THE Nº 1_000.5e-10, isn't it?",
    "Größe naïve 東京 한국어 ไทย हिन्दी العربية １２３ ½ ³",
    "👩‍👩‍👧 e\u0301\u00a0\u2003|\u200b",
    "  leading, and trailing   ",
    "camelCase HTTPServer snake_case <tag/> \\frac{1}{2} $x^2$",
)


def tokenizer_of(path: Path, pre: str, size: int) -> Any:
    """The tokenizer in the file, built by transformers.

    Args:
        pre: how the vocabulary splits text into words (`tokenizer.ggml.pre`).
        size: number of ids that the model has.

    Raises:
        ConfigError: transformers cannot build it.
    """
    folder = ModelCheckpoint(str(path.parent.absolute()))
    try:  # not by AutoTokenizer, which reads the whole file to find a class: ten seconds instead of two
        tokenizer = folder.read(transformers.PreTrainedTokenizerFast, gguf_file=path.name)
    except ConfigError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConfigError(f"cannot build the tokenizer in {str(path)!r}: {one_line(error)}") from error
    if len(tokenizer) > size:
        tokenizer = _without_more(tokenizer, size)
    if pre in _DIGITS_APART:
        apart = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([apart, words])
    return tokenizer


def _without_more(tokenizer: Any, size: int) -> Any:
    """The tokenizer without tokens of its class that the model has not, such as GPT-2's end of text."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] < size]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        chat_template=tokenizer.chat_template,
        name_or_path=tokenizer.name_or_path,
        **{
            name: tokenizer.init_kwargs.get(name)
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        },
    )


class LlamaVocabulary:
    """llama.cpp's own tokenizer of a file, loaded without the weights; a context manager.

    Raises:
        ConfigError: llama.cpp cannot load it.
    """

    def __init__(self, path: Path) -> None:
        library.start()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model: Any = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ConfigError(f"cannot load the vocabulary of {str(path)!r}: {library.reason()}")
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.size = int(llama_cpp.llama_vocab_n_tokens(self._vocabulary))

    def __enter__(self) -> LlamaVocabulary:
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_model_free(self._model)

    @property
    def ends(self) -> frozenset[int]:
        """Ids at which llama.cpp ends an answer."""
        ends = llama_cpp.llama_vocab_is_eog
        return frozenset(index for index in range(self.size) if ends(self._vocabulary, index))

    def encode(self, text: str, special: bool = True, add: bool = False) -> list[int]:
        """Ids of a text.

        Args:
            special: read control tokens in the text as such.
            add: add the ids that the model begins and ends any text with.
        """
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 4))()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), add, special)
        if count < 0:
            raise ConfigError(f"llama.cpp cannot tokenize {text!r}")
        return list(ids[:count])

    def decode(self, index: int) -> bytes:
        """The bytes that a token stands for; of a control token, its name."""
        space = llama_cpp.llama_vocab_get_text(self._vocabulary, index)
        buffer = (llama_cpp.ctypes.c_char * (4 * len(space) + 16))()
        count = llama_cpp.llama_token_to_piece(self._vocabulary, index, buffer, len(buffer), 0, True)
        return bytes(buffer[:count])

    def difference(self, encode: Callable[[str], Sequence[int]]) -> str:
        """The first of `PROBES` that another tokenizer reads otherwise, with both readings; empty if none."""
        for text in PROBES:
            theirs, own = list(encode(text)), self.encode(text)
            if theirs != own:
                at = next(
                    (at for at, pair in enumerate(zip(theirs, own, strict=False)) if len({*pair}) > 1), 0
                )
                theirs, own = theirs[at : at + 4], own[at : at + 4]
                return f"{text!r} is {theirs} from token {at} on, and {own} in llama.cpp"
        return ""
