"""Table 4: a mentor behind an API.

With the built-in pair the API is our own server, a process of its own with the built-in mentor; any other
pair names its API itself.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ensemblehub.errors import EngineError
from ensemblehub.lab.paper import main
from ensemblehub.lab.paper.study import Study, collected, study_runs, with_model
from ensemblehub.lab.paper.tables import Table, TableRow
from ensemblehub.lab.pipeline import report
from ensemblehub.lab.pipeline.experiment import with_aggregation

COLUMNS = (*report.METHOD_COLUMNS, "cost_vs_mentor", "truncated_share")
START = 120.0  # seconds that a server may take to be ready


def run(study: Study) -> list[Table]:
    """Tandem with its mentor behind an API; for the built-in pair beside the same mentor at home."""
    if not study.is_builtin:
        return main.run(study)
    home = study_runs(study)
    mentor: dict[str, Any] = {
        "engine": "openai",
        "path": "mentor",
        "dialect": "vllm",
        "parameters": home.test.info("mentor").parameters,
    }
    with served(str(home.pipeline.config.model_specs[0].extra["path"])) as url:
        judge = study.judge or str(home.pipeline.judge_folder)
        away = study.pipeline(
            "api",
            partial(with_model, number=0, base_url=url, **mentor),
            partial(with_aggregation, judge=judge),
        )
        away.served["mentor"] = home.test.header["mentor"]  # whatever port it has this time
        test = collected(study, home.pipeline, "test")
        runs = away.run_tandem(test, away.collected_items(test), "runs", study.force)
    answered = [*home.methods(), report.tandem(home.test, runs, "tandem, mentor behind an API")]
    rows: list[TableRow] = report.summary(study.benchmark, answered, home.steps)
    kept = ("intern", "mentor", home.highest, "tandem", "tandem, mentor behind an API")
    same = sum(ours.text == theirs.text for ours, theirs in zip(home.runs, runs, strict=True))
    levels = sum(ours.chosen == theirs.chosen for ours, theirs in zip(home.runs, runs, strict=True))
    notes = [
        home.where,
        f"The API is this project's own server with the same mentor. Of {len(runs)} runs {levels} stopped at the "
        f"same level and {same} wrote the same text as at home. An API's attention and cache are not known: its FLOPs "
        "are 2 per parameter and token.",
    ]
    shown = [row for row in rows if row["method"] in kept]
    return [Table("api", f"{study.benchmark}: a mentor behind an API", shown, COLUMNS, notes, "api")]


@contextmanager
def served(path: str) -> Iterator[str]:
    """Our own server as a process, with one model called `mentor`; yields its URL up to `/v1`.

    Raises:
        EngineError: it did not start; with the end of its log.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "mentor.yaml", Path(folder) / "log"
        file.write_text(json.dumps({"model_specs": [{"name": "mentor", "path": path}]}))
        with log.open("w") as output:
            command = [sys.executable, "-m", "ensemblehub.api", str(file), "--port", str(port)]
            server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            end = time.monotonic() + START
            while not _ready(f"http://127.0.0.1:{port}/health"):
                if server.poll() is not None or time.monotonic() > end:
                    raise EngineError(f"the server did not start: {log.read_text()[-500:]}", "mentor")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
