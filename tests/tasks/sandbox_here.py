"""The forms of the sandbox that work on this machine."""

import os

import pytest

from ensemblehub.errors import ConfigError
from ensemblehub.tasks.sandbox import isolation


def working(form):
    """How a form isolates here; a test that wants it is skipped where it does not work, unless CI counts on it."""
    try:
        return isolation(form)
    except ConfigError as error:
        if form == "bubblewrap" and os.environ.get("ENSEMBLEHUB_REQUIRE_BUBBLEWRAP"):
            raise
        pytest.skip(str(error))
