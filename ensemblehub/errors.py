"""Everything that can go wrong, as a short typed tree.  An error is never an answer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EnsembleHubError(Exception):
    """Base of all errors of this package; its text is one line for a user."""


class ConfigError(EnsembleHubError):
    """A configuration, option or file that cannot be used; `option` leads to a wrong option, where it is one."""

    option: tuple[str | int, ...] = ()


class AbsentError(ConfigError):
    """A model that is not on this machine and cannot be fetched now."""


class CapabilityError(ConfigError):
    """An engine lacks what a strategy needs of it; raised before any weights load."""


class MissingExtraError(ConfigError):
    """A backend's library is not installed; the text names the extra."""


class RequestError(EnsembleHubError):
    """A request that cannot be honoured as it stands."""


class ContextOverflowError(RequestError):
    """Prompt and answer do not fit a model's context; raised before anything is spent.

    Its text begins as OpenAI's does, which is what clients recognise.
    """

    WORDS = "This model's maximum context length is"

    @classmethod
    def of(cls, engine: str, context: int, read: int, written: int) -> ContextOverflowError:
        """The error of an engine with a context of `context` tokens, asked to read and write so many."""
        return cls(
            f"{cls.WORDS} {context} tokens. However, you requested {read + written} tokens ({read} in the prompt, "
            f"{written} in the completion). Please reduce the length of the prompt or of the completion. "
            f"(model {engine!r})"
        )

    @classmethod
    def beyond(cls, engine: str, context: int, read: int) -> ContextOverflowError:
        """The error for a prompt whose tokens are counted only until they are too many."""
        return cls(
            f"{cls.WORDS} {context} tokens. However, your prompt resulted in more than {read} tokens. "
            f"Please reduce the length of the prompt. (model {engine!r})"
        )


class EngineError(EnsembleHubError):
    """An engine failed while it was working; `engine` is its name, where it is an engine."""

    def __init__(self, text: str, engine: str = "") -> None:
        super().__init__(text)
        self.engine = engine


class SandboxError(EnsembleHubError):
    """The sandbox itself failed, which says nothing of the program that it was to run."""


class ArtifactError(EnsembleHubError):
    """A saved classifier or data set is missing, damaged or made for something else."""


def one_line(error: BaseException | str, most: int = 1000) -> str:
    """All that an error says, in one line of at most `most` characters; its kind where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"


def did_you_mean(name: str, known: Iterable[str], what: str) -> str:
    """One line: `name` is unknown, what it might have meant, and what there is."""
    name, options = name if len(name) <= 80 else f"{name[:79]}…", sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there is: {', '.join(options)}"
    return f"unknown {what} {name!r}{hint}"
