"""What a server answered, kept on disk where the operator wants it (`debug.save_results`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson

from ensemblehub.api.job import Job
from ensemblehub.config import Config

FOLDER = Path("saves/logs")


class Journal:
    """A JSONL file, one line per request that was answered; or nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @classmethod
    def of(cls, config: Config) -> Journal:
        """The journal that a configuration asks for; its file is made with the first line."""
        name = f"api_session_{time.strftime('%Y%m%d_%H%M%S')}.jsonl"
        return cls(FOLDER / name if config.debug.save_results else None)

    def kept(self, job: Job, reply: Any) -> Any:
        """Write down a job that is done; returns `reply`."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            results = [answer.result for answer in job.answers]
            line = {
                "time": time.time(),
                "id": job.id,
                "model": job.served.name,
                "request": job.body.model_dump(exclude_none=True),
                "answers": [
                    {"text": one.text, "insight": one.insight, "finish": one.finish} for one in results
                ],
                "spent": [spent for one in results for spent in one.usage.lines],
            }
            with self.path.open("ab") as file:
                file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        return reply
