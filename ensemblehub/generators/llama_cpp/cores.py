"""How many CPU cores this process may use, and the threads of llama.cpp on them.

`results/engines/llama_cpp_threads.md` has what threads and rows give on quiet and on busy cores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def default_threads() -> int:
    """Threads of a model: all usable cores where waiting threads sleep, else half of them.

    Threads that spin come to a standstill where another process needs one of their cores.
    """
    sleep = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    return usable_cores() if sleep else max(1, usable_cores() // 2)


def default_rows(weights: int, row: int) -> int:
    """Rows of a model whose weights, and whose keys and values of a row, have so many bytes."""
    return max(4, min(16, 4 * usable_cores(), weights // max(1, row)))


def usable_cores(root: Path = Path("/")) -> int:
    """Number of cores by the process's affinity and the CPU quotas of its control groups, at least 1.

    Args:
        root: folder in which `proc` and `sys` lie.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each control group above the process grants, of both versions of the interface."""
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:  # not Linux
        return
    for _, controllers, path in groups:
        if not controllers:
            yield from _along(root / "sys/fs/cgroup", path, "cpu.max")
        elif "cpu" in controllers.split(","):
            yield from _along(root / "sys/fs/cgroup/cpu", path, "cpu.cfs_quota_us", "cpu.cfs_period_us")


def _along(mount: Path, path: str, *files: str) -> Iterator[float]:
    """The quotas of a group and of those above it; a container sees its own group as `mount`."""
    group = mount / path.strip("/")
    for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(mount))):
        try:
            quota, period = " ".join((folder / file).read_text() for file in files).split()
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):  # nothing is said there
            continue
