"""Questions, conversations and sampling changes as callers write them."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from ensemblehub import registry
from ensemblehub.errors import ConfigError, RequestError
from ensemblehub.schema import Chat, Message, Prompt, Request, Sampling, Text, TokenIds

Conversation = Sequence[Mapping[str, Any] | Message]
Question = str | Conversation | Prompt | Request


def prompt_of(question: str | Conversation | Prompt) -> Prompt:
    """The prompt for a question, or for a conversation in the form of OpenAI's API.

    Raises:
        RequestError: A message is wrong.
    """
    if isinstance(question, str):
        return Chat((Message("user", question),))
    if isinstance(question, Chat | Text | TokenIds):
        return question
    if not is_conversation(question):
        example = "[{'role': 'user', 'content': '...'}]"
        raise RequestError(f"a question is text, or messages such as {example}, not {reprlib.repr(question)}")
    try:
        return Chat(
            tuple(each if isinstance(each, Message) else Message.from_dict(each) for each in question)
        )
    except ValueError as error:
        raise RequestError(f"messages: {error}") from error


def is_conversation(question: object) -> bool:
    """Whether `question` is a sequence of messages, at least one."""
    if isinstance(question, str) or not isinstance(question, Sequence):
        return False
    return bool(question) and all(isinstance(each, Mapping | Message) for each in question)


def changed(sampling: Sampling, changes: Mapping[str, Any]) -> Sampling:
    """The sampling with some fields changed; a `max_tokens` that is given is not reduced to fit the context.

    Raises:
        RequestError: A field is unknown or its value has the wrong type.
    """
    if not changes:
        return sampling
    fixed = {"fit_context": False} if "max_tokens" in changes else {}
    fields = {**vars(sampling), **fixed, **changes}
    if isinstance(fields["stop"], str):
        fields["stop"] = (fields["stop"],)
    try:
        made: Sampling = registry.build(Sampling, fields, "sampling")
    except ConfigError as error:
        raise RequestError(str(error)) from error
    return made
