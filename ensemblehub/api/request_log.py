"""A JSONL file of what a server answered (`debug.save_results`)."""

from __future__ import annotations

import time
from pathlib import Path

import orjson

from ensemblehub.api.job import GenerationJob
from ensemblehub.config import Config

FOLDER = Path("saves/logs")


class RequestLog:
    """Writes one line per request that was answered, where the configuration asks for it.

    The file is made with the first line.
    """

    def __init__(self, config: Config) -> None:
        self.enabled = config.debug.save_results
        self.path = FOLDER / f"api_session_{time.strftime('%Y%m%d_%H%M%S')}.jsonl"

    def write(self, job: GenerationJob) -> None:
        """Append a request that is done."""
        if not self.enabled:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        results = [answer.result for answer in job.answers]
        line = {
            "time": time.time(),
            "id": job.id,
            "model": job.served.name,
            "request": job.body.model_dump(exclude_none=True),
            "answers": [
                {"text": result.text, "insight": result.insight, "finish": result.finish}
                for result in results
            ],
            "spent": [line for result in results for line in result.usage.lines],
        }
        with self.path.open("ab") as file:
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
