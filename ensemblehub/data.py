"""Input items: the questions of a data file in any of the common formats."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ensemblehub.data_files import Broken, located
from ensemblehub.schema import Chat, Message

QUESTIONS = ("prompt", "problem", "question", "input")
LABELS = ("output", "label", "answer", "solution", "canonical_solution", "ground_truth")
IDS = ("id", "task_id", "unique_id")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """An item of a data file.

    Attributes:
        number: Position in the file, from 1.
        id: The item's own id, or its number.
        key: Hash of the prompt and of the number of earlier items with the same prompt.
        label: Expected answer, as the file has it.
    """

    number: int
    id: str
    key: str
    prompt: Chat
    label: str | None = None


@dataclass(frozen=True)
class BadExample:
    """An item without a usable prompt.

    Attributes:
        reason: Why it cannot be asked; the other fields are those of `Example`.
    """

    number: int
    id: str
    key: str
    reason: str


def read_items(path: Path) -> Iterator[Example | BadExample]:
    """Read the items of a data file (JSON, JSONL, gzipped or parquet) lazily, in order.

    An item is a plain string or has `messages`; `instruction` and `input`; or `prompt`, `problem` or
    `question`.  Its label is its `output`, `answer` or `solution`; in `messages`, the assistant's last turn.

    Raises:
        ConfigError: The file is missing, empty or cannot be read.
    """
    seen: Counter[bytes] = Counter()
    for number, (_, value) in enumerate(located(path), 1):
        item: Example | BadExample
        try:
            item = _item(number, value)
        except (ValueError, RecursionError) as error:
            reason = (
                "holds half a surrogate pair, which is not text"
                if isinstance(error, UnicodeError)
                else str(error)
            )
            item = BadExample(number, _name(value, number), "", reason)
        content = hashlib.sha256(_content(item).encode()).digest()[:16]
        key = hashlib.sha256(b"%d %b" % (seen[content], content)).hexdigest()[:32]
        seen[content] += 1
        yield replace(item, key=key)


def _item(number: int, value: Any) -> Example:
    fields = {name.lower(): inner for name, inner in value.items()} | value if isinstance(value, dict) else {}
    messages, label = _asked(value, fields)
    for text in (label or "", *(message.content for message in messages)):
        text.encode()
    return Example(number, _name(value, number), "", Chat(messages), label)


def _name(value: Any, number: int) -> str:
    """The item's own id, else its number."""
    fields = {name.lower(): inner for name, inner in value.items()} if isinstance(value, dict) else {}
    own = next((str(fields[name]) for name in IDS if isinstance(fields.get(name), str | int)), str(number))
    return own.encode(errors="replace").decode()


def _content(item: Example | BadExample) -> str:
    """Text of the prompt, which identifies an item whatever its label and id."""
    if isinstance(item, BadExample):
        return f"bad: {item.reason}"
    return json.dumps([[message.role, message.content] for message in item.prompt.messages])


def _asked(value: Any, fields: Mapping[str, Any]) -> tuple[tuple[Message, ...], str | None]:
    """The conversation and the label of an item.

    Raises:
        ValueError: The item cannot be asked.
    """
    if isinstance(value, Broken):
        raise ValueError(value.reason)
    if isinstance(value, str):
        return (_user(value),), None
    if not fields:
        raise ValueError(f"expected an object or a string, not {json.dumps(value)[:40]}")
    if media := next((name for name in MEDIA if fields.get(name)), None):
        raise ValueError(f"has `{media}`, and only text can be asked")
    label = next((_text(fields[name]) for name in LABELS if fields.get(name) not in (None, "")), None)
    conversation = fields.get("messages", fields.get("prompt"))
    if isinstance(conversation, list):
        messages = tuple(_message(turn) for turn in conversation)
        if messages and messages[-1].role == "assistant":
            label, messages = label or messages[-1].content, messages[:-1]
        if not messages or messages[-1].role != "user":
            raise ValueError("the messages do not end with a question of the user")
        return messages, label
    if "messages" in fields:
        raise ValueError("`messages` is not a list")
    system = (Message("system", fields["system"]),) if isinstance(fields.get("system"), str) else ()
    if "instruction" in fields:
        parts = [fields["instruction"], fields.get("input") or ""]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("`instruction` and `input` must be strings")
        return (*system, _user("\n\n".join(part for part in parts if part))), label
    name = next((name for name in QUESTIONS if name in fields), None)
    if name is None:
        raise ValueError(f"has none of messages, instruction, {', '.join(QUESTIONS)}")
    if not isinstance(fields[name], str):
        raise ValueError(f"`{name}` is not a string")
    return (*system, _user(fields[name])), label


def _user(text: str) -> Message:
    if not text.strip():
        raise ValueError("asks nothing: its text is empty")
    return Message("user", text)


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES:
        raise ValueError(f"a message needs a role of {', '.join(ROLES)}, and content")
    return Message.from_dict({"role": turn["role"], "content": turn.get("content")})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def plain(prompt: Chat) -> str | Sequence[dict[str, str]]:
    """A conversation in JSON form: the text of a single question, else the list of messages."""
    if len(prompt.messages) == 1:
        return prompt.messages[0].content
    return [{"role": message.role, "content": message.content} for message in prompt.messages]
