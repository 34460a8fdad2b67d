"""llama.cpp's library: started once, and what it says when something fails."""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from functools import cache
from typing import Any

import llama_cpp

from ensemblehub.errors import one_line

_ERROR = 4  # ggml's log level
_complaints: deque[str] = deque(maxlen=8)  # llama.cpp says why it failed in its log only
log = logging.getLogger(__name__)


def _listen(level: int, text: bytes, _: Any) -> None:
    if level == _ERROR:
        _complaints.append(text.decode(errors="replace").strip())
        log.debug(text.decode(errors="replace").strip())


_LISTENER = llama_cpp.llama_log_callback(_listen)  # kept: C holds on to it


@cache
def _started() -> None:
    llama_cpp.llama_log_set(_LISTENER, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def start() -> None:
    """Start the library where it has not been started, and forget what it said before."""
    _started()
    _complaints.clear()


def reason(text: str = "no reason was given") -> str:
    """What the library has said since the last call, else `text`."""
    found = one_line(" ".join(_complaints)) if _complaints else text
    _complaints.clear()
    return found
