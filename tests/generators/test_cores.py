"""The cores that a process may use: its affinity, and the quotas of its control groups of both versions."""

import os

import pytest

from ensemblehub.generators.llama_cpp import cores

HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 32 cores and these files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)

    def made(**files):
        for path, text in files.items():
            file = tmp_path / path.replace("__", "/").replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return cores.usable_cores(tmp_path)

    return made


def test_affinity_counts_where_nothing_else_is_said(machine, monkeypatch):
    assert machine() == 32
    assert machine(proc__self__cgroup="0::/\n", sys__fs__cgroup__cpu_max="max 100000\n") == 32
    monkeypatch.undo()
    assert cores.usable_cores() <= HERE


@pytest.mark.parametrize(
    ("quota", "found"), [("400000 100000", 4), ("150000 100000", 2), ("50000 100000", 1)]
)
def test_the_quota_of_a_container_counts(machine, quota, found):
    assert machine(proc__self__cgroup="0::/\n", sys__fs__cgroup__cpu_max=quota) == found


def test_the_smallest_quota_on_the_way_up_counts(machine):
    groups = {
        "sys__fs__cgroup__a__cpu_max": "300000 100000",
        "sys__fs__cgroup__a__b__cpu_max": "800000 100000",
    }
    assert machine(proc__self__cgroup="0::/a/b\n", **groups) == 3


def test_the_first_version_of_control_groups_counts(machine):
    files = {
        "proc__self__cgroup": "5:memory:/x\n4:cpu,cpuacct:/x\n0::/\n",
        "sys__fs__cgroup__cpu__x__cpu_cfs_quota_us": "600000\n",
        "sys__fs__cgroup__cpu__x__cpu_cfs_period_us": "100000\n",
    }
    assert machine(**files) == 6
    assert machine(sys__fs__cgroup__cpu__x__cpu_cfs_quota_us="-1\n") == 32


def test_threads_are_all_cores_only_where_they_sleep_as_they_wait(monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert cores.default_threads() == 8
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert cores.default_threads() == 4
    monkeypatch.setattr(cores, "usable_cores", lambda: 1)
    assert cores.default_threads() == 1


def test_rows_follow_cores_and_memory(monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    assert cores.default_rows(weights=1000, row=1) == 8
    assert cores.default_rows(weights=1000, row=200) == 5
    assert cores.default_rows(weights=1000, row=900) == 4
    monkeypatch.setattr(cores, "usable_cores", lambda: 64)
    assert cores.default_rows(weights=1000, row=1) == 16
