"""Bytes that the server sends for each token: `python -m benchmarks.wire_bytes`.

Echo engines behind the server, 400 words of seven letters, which are its tokens: a
streamed chat, the same whole, and a prompt that another machine's Tandem lets its intern read
(`echo` with `logprobs`).
"""

from __future__ import annotations

import json
from pathlib import Path

from starlette.testclient import TestClient

from ensemblehub.api.app import create_app
from ensemblehub.config import Config

OUT = Path("results/scale/wire_bytes.txt")
WORDS = 400
TEXT = " ".join(["insight"] * WORDS)


def main() -> None:
    """Ask, count, keep."""
    config = Config.from_dict({"model_specs": [{"name": "echo", "engine": "echo", "replies": {"": TEXT}}]})
    chat = {"model": "echo", "messages": [{"role": "user", "content": "Write."}], "max_tokens": WORDS}
    read = {"model": "echo", "prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 0}
    asked = {
        "streamed chat": ("/v1/chat/completions", {**chat, "stream": True}),
        "whole chat": ("/v1/chat/completions", chat),
        "prompt with logprobs": ("/v1/completions", read),
    }
    lines = []
    with TestClient(create_app(config), "http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        while client.get("/health").status_code != 200:
            pass
        for name, (path, body) in asked.items():
            reply = client.post(path, json=body)
            reply.raise_for_status()
            sent, got = len(json.dumps(body)), len(reply.content)
            lines.append(f"{name}: {sent:,} bytes to the server, {got:,} back, {got / WORDS:.0f} a token")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
