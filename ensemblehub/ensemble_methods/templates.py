"""Prompts whose question is put into a template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ensemblehub.errors import ConfigError, RequestError
from ensemblehub.schema import Chat, Prompt, Request, Text
from ensemblehub.tandem.insights import chat_of


def filled(template: str, **values: str) -> str:
    """The template with its `{name}` places filled in; other braces, also those of the values, stay."""
    places = re.compile(rf"\{{({'|'.join(values)})\}}")
    return places.sub(lambda place: values[place[1]], template)


def check_template(template: str, names: Sequence[str], strategy: str) -> None:
    """Check that a template has a place for each of `names`.

    Raises:
        ConfigError: it lacks some.
    """
    missing = [f"{{{name}}}" for name in names if f"{{{name}}}" not in template]
    if missing:
        raise ConfigError(f"{strategy}: the template lacks {' and '.join(missing)}")


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


def templated(request: Request, template: str, **values: str) -> Request:
    """The request with its last message put into a template, at `{question}`; raw text becomes a chat.

    Raises:
        RequestError: see `chat_of`.
    """
    chat = chat_of(request)
    question = filled(template, question=chat.messages[-1].content, **values)
    return replace(request, prompt=with_question(chat, question))


def asked_about(prompt: Prompt, template: str, strategy: str, **values: str) -> Prompt:
    """A question about a prompt's question, to be answered at once, without thinking.

    Raises:
        RequestError: see `question_of`.
    """
    question = filled(template, question=question_of(prompt, strategy), **values)
    asked = with_question(prompt, question)
    return replace(asked, thinking=False) if isinstance(asked, Chat) else asked
