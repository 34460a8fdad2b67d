"""The exceptions of this package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ensemblehub.surrogates import whole


class EnsembleHubError(Exception):
    """Base of all errors of this package; its text is one line for a user."""


class ConfigError(EnsembleHubError):
    """A configuration, option or file that cannot be used.

    Attributes:
        option: Path of the wrong option within its section; empty if it is no single option.
    """

    def __init__(self, text: str = "", option: tuple[str | int, ...] = ()) -> None:
        super().__init__(text)
        self.option = option


class AbsentError(ConfigError):
    """A model that is not on this machine and cannot be fetched now."""


class CapabilityError(ConfigError):
    """An engine lacks a capability that a strategy requires; raised before weights are loaded."""


class MissingExtraError(ConfigError):
    """A backend's library is not installed; the text names the extra."""


class RequestError(EnsembleHubError):
    """A request that cannot be fulfilled."""


class ContextOverflowError(RequestError):
    """Prompt and answer exceed a model's context; raised before any token is generated.

    The text begins like OpenAI's, which clients recognise.
    """

    WORDS = "This model's maximum context length is"

    @classmethod
    def of(cls, engine: str, context: int, read: int, written: int) -> ContextOverflowError:
        """The error of an engine with a context of `context` tokens, asked to read and write so many."""
        return cls(
            f"{cls.WORDS} {context} tokens. However, you requested {read + written} tokens "
            f"({read} in the prompt, {written} in the completion). "
            f"Please reduce the length of the prompt or of the completion. (model {engine!r})"
        )

    @classmethod
    def beyond(cls, engine: str, context: int, read: int) -> ContextOverflowError:
        """The error for a prompt whose tokens are counted only until they are too many."""
        return cls(
            f"{cls.WORDS} {context} tokens. However, your prompt resulted in more than {read} tokens. "
            f"Please reduce the length of the prompt. (model {engine!r})"
        )


class EngineError(EnsembleHubError):
    """An engine failed during generation; `engine` is its name, or empty."""

    def __init__(self, text: str, engine: str = "") -> None:
        super().__init__(text)
        self.engine = engine


class SandboxError(EnsembleHubError):
    """The sandbox itself failed, whatever the program in it does."""


class ArtifactError(EnsembleHubError):
    """A saved classifier or data set is missing, damaged or made for another configuration."""


def one_line(error: BaseException | str, most: int = 1000) -> str:
    """The text of an error, or its class if it has none, as one line of at most `most` printable characters."""
    words = whole(str(error)).split() or ([type(error).__name__] if isinstance(error, BaseException) else [])
    text = "".join(character if character.isprintable() else "\ufffd" for character in " ".join(words))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def error_text(error: BaseException) -> str:
    """Return an error as one line, with its class name if it is not an `EnsembleHubError`."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = one_line(error)
    return text if isinstance(error, EnsembleHubError) else f"{type(error).__name__}: {text}"


def did_you_mean(name: str, known: Iterable[str], what: str) -> str:
    """Error text for an unknown `name`, with the most similar of `known`, or all of them."""
    name, options = name if len(name) <= 80 else f"{name[:79]}…", sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there is: {', '.join(options)}"
    return f"unknown {what} {name!r}{hint}"
