"""Wait for what another thread or process does, long enough for a machine that is busy with other tests."""

import contextlib
import time
from collections.abc import Callable, Iterable


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    """Return once `holds()` is true; an AssertionError where it is not within `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def alive(pids: Iterable[int]) -> list[int]:
    """The processes that have not ended.  A zombie has: only its parent has yet to ask how."""
    import psutil  # not in both environments of the clients

    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found
