"""What the HTTP processor of `ray.data.llm` does with slow, refused, busy and streamed replies.

    python -m benchmarks.ray_http   # writes results/benchmarks/ray_http.txt

`infer | bench | collect --ray` use actors with the `openai` engine instead; this is why.  Ray's own stage is called
as the processor calls it, without a cluster.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray.llm._internal.batch.stages.http_request_stage import HttpRequestUDF

SLOW = 0.3  # seconds of a reply
RETRY_AFTER = 3


class Replies(BaseHTTPRequestHandler):
    """Replies as the payload asks."""

    calls: ClassVar[list[float]] = []

    def do_POST(self) -> None:
        """Reply."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["ask"]
        self.calls.append(time.perf_counter())
        if asked == "slow":
            time.sleep(SLOW)
        status = {"refused": 400, "busy": 429}.get(asked, 200)
        if asked == "busy" and len(self.calls) > 1:
            status = 200
        streamed = asked == "streamed"
        body = (
            b'data: {"text": "1"}\n\ndata: [DONE]\n\n' if streamed else json.dumps({"said": asked}).encode()
        )
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream" if streamed else "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", str(RETRY_AFTER))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


async def asked(url: str, what: str, count: int = 1, **options: Any) -> str:
    """What the stage makes of `count` requests in one batch."""
    Replies.calls.clear()
    stage = HttpRequestUDF("__data", ["payload"], url, **options)
    rows = [{stage.IDX_IN_BATCH_COLUMN: number, "payload": {"ask": what}} for number in range(count)]
    started = time.perf_counter()
    try:
        found = [row["http_response"] async for row in stage.udf(rows)]
        said = f"rows {found[:1]}"
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    waits = [f"{after - before:.1f}" for before, after in zip(Replies.calls, Replies.calls[1:], strict=False)]
    between = f", {', '.join(waits[:3])} s apart" if waits else ""
    seconds = time.perf_counter() - started
    return f"{seconds:.1f} s, {len(Replies.calls)} requests{between}: {said}"


async def report() -> str:
    """Ask for every kind of reply."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replies)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    lines = [
        f"ray {ray.__version__}, ray.data.llm's HTTP stage",
        f"a batch of 8 replies of {SLOW} s:  {await asked(url, 'slow', 8)}",
        f"status 400:                   {await asked(url, 'refused')}",
        f"429, Retry-After {RETRY_AFTER}:           {await asked(url, 'busy')}",
        f"the same, max_retries=2:      {await asked(url, 'busy', max_retries=2)}",
        f"a stream:                     {await asked(url, 'streamed')}",
    ]
    server.shutdown()
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = asyncio.run(report())
    Path("results/benchmarks/ray_http.txt").write_text(text)
    print(text)
