"""The table of the engines' contract: what it shows, and that the page has the one that was kept."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("httpx2")

from benchmarks import engine_contract as contract
from benchmarks import engines

ROOT = Path(__file__).parents[1]


def report(engine, test, *, does=True, failed=False, when="call"):
    told = [("contract", [engine, "score", f"about {test}", does])]
    return SimpleNamespace(when=when, user_properties=told, failed=failed, nodeid=f"x.py::{test}[{engine}]")


def test_what_passed_what_was_refused_and_what_failed_stand_apart():
    recorder = contract.Recorder()
    for entry in (
        report("hf", "test_a"),
        report("hf", "test_b", failed=True),
        report("echo", "test_a", does=False),
        report("hf", "test_a", when="setup"),
        SimpleNamespace(when="call", user_properties=[]),
    ):
        recorder.pytest_runtest_logreport(entry)
    found = {
        name: {"date": "2026-01-01", "versions": {"torch": "2"}, "tests": rows}
        for name, rows in recorder.rows.items()
    }
    table = contract.table(found).splitlines()
    assert table[0] == "| | test | `echo` | `hf` |"
    assert table[2] == "| *score* | about test_a (`test_a`) | refused | yes |"
    assert table[3] == "|  | about test_b (`test_b`) | not run | **fails** |"
    page = f"before\n{contract.BEGIN}\nold\n{contract.END}\nafter"
    assert (
        contract.written(page, found)
        == f"before\n{contract.BEGIN}\n{contract.table(found)}\n{contract.END}\nafter"
    )


def test_the_page_has_the_table_that_was_kept():
    found = json.loads((ROOT / contract.RESULT).read_text())
    page = (ROOT / contract.PAGE).read_text()
    assert contract.written(page, found) == page
    assert set(found) == set(engines.NAMES)
    assert all(row["outcome"] != "failed" for entry in found.values() for row in entry["tests"])


def test_a_server_that_does_not_start_is_an_error_with_its_log():
    with pytest.raises(RuntimeError, match="unknown"), engines.our_server("--unknown"):
        pass
