"""The table of faults: what breaks is seen, what does not is unharmed, and a wrong text would be noticed."""

import asyncio
import json
import sys

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("torch")
pytest.importorskip("fastapi")

from benchmarks import faults
from ensemblehub import builtin
from ensemblehub.config import Config


@pytest.mark.slow
def test_models_that_break_cost_errors_or_insights_and_never_a_wrong_answer(tmp_path, monkeypatch):
    asked = [
        "--questions",
        "4",
        *(f"--fault={name}" for name in ("nan", "slow", "cut", "too_many", "garbled")),
    ]
    monkeypatch.setattr(sys, "argv", ["faults", "hf", "openai", *asked, "--out", str(tmp_path)])
    assert faults.main() == 0
    rows = json.loads((tmp_path / "faults.json").read_text())
    assert all(
        row["as without"] + row["intern alone"] + sum(row["errors"].values()) == row["asked"] == 4
        for row in rows
    )
    found = {(row["engine"], row["role"], row["fault"], row["degrades"]): row for row in rows}
    cut = "the connection breaks in the middle"
    assert found["openai", "mentor", cut, False]["as without"] == 2
    assert all("the connection broke" in said for said in found["openai", "mentor", cut, False]["errors"])
    assert found["openai", "mentor", cut, True]["intern alone"] == 2
    for slow in (
        "passes every event on after a pause, in pieces that split events and characters",
        "429 with Retry-After, once",
    ):
        assert found["openai", "mentor", slow, False]["as without"] == 4
        assert found["openai", "intern", slow, False]["as without"] == 4
    assert found["openai", "mentor", "429 with Retry-After", False]["errors"]
    assert found["hf", "mentor", faults.LOCAL["nan"], True]["intern alone"]
    assert not found["hf", "mentor", faults.LOCAL["nan"], True]["errors"]
    assert "0 of them wrong" in (tmp_path / "faults.md").read_text()
    assert "127.0.0.1" not in (tmp_path / "faults.md").read_text()


def test_a_text_that_should_not_be_is_noticed():
    async def work():
        table, config = faults.Table(2), Config.read(builtin.CONFIG)
        table.home = await table.rightly(config)
        table.alone = table.home
        await table.add(
            "hf", "mentor", "other words", Config.read(builtin.CONFIG, [f"{faults.PARAMS}.levels={{low: 3}}"])
        )
        return table

    table = asyncio.run(work())
    assert len(table.rows[0]["wrong"]) == 2
    assert "**2 WRONG**" in faults.markdown(table.rows)
