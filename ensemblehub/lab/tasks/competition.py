"""What AIME and AMC share: the form of their published items."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ensemblehub.lab.tasks.source import Fields, boxed


def convert(item: Mapping[str, Any]) -> Fields:
    """An item with a problem or question, an answer, and sometimes a solution; 27.0 becomes 27."""
    question = item.get("problem") or item["question"]
    answer = re.sub(r"^(-?\d+)\.0+$", r"\1", str(item["answer"]))
    return {"input": question, "output": boxed(item.get("solution") or "", answer), "answer": answer}
