"""The forms of the sandbox that work on this machine."""

import os

import pytest

from ensemblehub.errors import ConfigError
from ensemblehub.lab.tasks.sandbox import isolation

REQUIRED = bool(os.environ.get("ENSEMBLEHUB_REQUIRE_BUBBLEWRAP"))  # CI counts on the whole sandbox


def working(form):
    """How a form isolates here; a test that wants it is skipped where it does not work, unless CI counts on it."""
    try:
        return isolation(form)
    except ConfigError as error:
        if REQUIRED:
            raise
        pytest.skip(str(error))


def filtered(form):
    """How a form isolates here; a test that wants its filter of system calls is skipped as above where it has none."""
    found = working(form)
    if not found.filtered:
        (pytest.fail if REQUIRED else pytest.skip)(f"system calls are not filtered here ({form})")
    return found
