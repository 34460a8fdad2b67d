"""Prompts whose question is put into a template."""

from __future__ import annotations

import re
from dataclasses import replace

from ensemblehub.errors import RequestError
from ensemblehub.schema import Chat, Prompt, Text


def filled(template: str, **values: str) -> str:
    """The template with its `{name}` places filled in; other braces, also those of the values, stay."""
    places = re.compile(rf"\{{({'|'.join(values)})\}}")
    return places.sub(lambda place: values[place[1]], template)


def question_of(prompt: Prompt, strategy: str) -> str:
    """The question of a prompt: its text, or its last message.

    Raises:
        RequestError: the prompt is token ids, or has no message.
    """
    if isinstance(prompt, Text):
        return prompt.text
    if not isinstance(prompt, Chat) or not prompt.messages:
        raise RequestError(f"{strategy} needs a question in words: text, or a chat with a message")
    return prompt.messages[-1].content


def with_question(prompt: Prompt, question: str) -> Prompt:
    """The prompt with another question (see `question_of`)."""
    if not isinstance(prompt, Chat):
        return Text(question)
    *before, last = prompt.messages
    return replace(prompt, messages=(*before, replace(last, content=question)))
