"""A tokenizer folder read with `tokenizers` and Jinja, with the attributes of transformers' that rendering uses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class FolderTokenizer:
    """The tokenizer in `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`."""

    is_fast = True

    def __init__(self, folder: Path) -> None:
        self.name_or_path = str(folder)
        self.backend_tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.init_kwargs: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
        self.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        self.special_tokens_map = {
            name: self.init_kwargs[name] for name in _SPECIAL if self.init_kwargs.get(name)
        }
        tokens = (self.special_tokens_map.get(name) for name in _SPECIAL)
        ids = [None if token is None else self.backend_tokenizer.token_to_id(token) for token in tokens]
        self.bos_token_id, self.eos_token_id, self.pad_token_id, self.unk_token_id = ids
        self.all_special_ids = [index for index in ids if index is not None]

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens added to the vocabulary, by id."""
        found: dict[int, AddedToken] = self.backend_tokenizer.get_added_tokens_decoder()
        return found

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        vocabulary: dict[str, int] = self.backend_tokenizer.get_vocab()
        return vocabulary

    def convert_ids_to_tokens(self, index: int) -> str | None:
        """The token of an id."""
        token: str | None = self.backend_tokenizer.id_to_token(index)
        return token

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, including special tokens."""
        return str(self.backend_tokenizer.decode(list(ids), skip_special_tokens=False))

    @cached_property
    def _template(self) -> Any:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(self.chat_template)

    def apply_chat_template(
        self, turns: Sequence[dict[str, Any]], tokenize: bool = False, **options: Any
    ) -> str:
        """The conversation as the template writes it."""
        return str(self._template.render(messages=turns, **self.special_tokens_map, **options))
