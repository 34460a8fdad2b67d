"""The process behind `symbolic`: reads `[gold, answer]` a line, writes `true` or `false` a line.

It ends with its input.  Its memory is limited; what it has no room for is not equal.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from typing import Any


def main() -> None:
    """The loop."""
    limit = int(sys.argv[1]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    verdicts = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the libraries print is no verdict
    os.dup2(1, 2)
    logging.disable(logging.CRITICAL)  # math_verify warns of the missing time limit at every call
    import math_verify

    def verdict(gold: str, answer: str) -> bool:
        try:
            left, right = (parsed(math_verify, text) for text in (gold, answer))
            return bool(math_verify.verify(left, right, timeout_seconds=None))
        except Exception:  # hostile input meets a whole algebra system: whatever it raises, they are not equal
            return False

    print("ready", file=verdicts, flush=True)
    for line in sys.stdin:
        print("true" if verdict(*json.loads(line)) else "false", file=verdicts, flush=True)


def parsed(math_verify: Any, text: str) -> Any:
    """What an answer says, as if it were boxed."""
    return math_verify.parse(f"\\boxed{{{text.strip().strip('$')}}}", parsing_timeout=None)


if __name__ == "__main__":
    main()
