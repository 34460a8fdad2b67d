"""Tests ask no hub, and every file is one unit of work for the parallel run.

huggingface_hub reads the variable at import, and would try for a minute to reach a model without it.
"""

import os
import threading

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The files that take longest, longest first: they begin first, so that all workers end together.
LONGEST = (
    "lab/paper/test_paper.py",
    "lab/pipeline/test_parallel.py",
    "api/test_page.py",
    "api/test_page_tabs.py",
    "api/test_curl.py",
    "api/test_attacks.py",
    "api/test_lm_eval.py",
    "test_builtin_pair.py",
    "lab/tasks/test_hostile_programs.py",
    "generators/test_contract.py",
    "api/test_limits.py",
    "test_benchmarks.py",
    "test_faults.py",
    "tandem/test_sequence_judges.py",
    "api/test_openai_client.py",
    "test_inference.py",
    "api/test_fields.py",
    "lab/builtin/test_training.py",
    "api/test_schema.py",
    "api/test_hetero.py",
    "api/test_access.py",
    "api/test_far_intern.py",
    "test_examples.py",
    "test_doctor.py",
    "test_python.py",
)


def pytest_collection_modifyitems(config, items):
    """Order the files; `--dist loadfile` keeps each on one worker, so that its module fixtures are made once."""
    here = config.rootpath / "tests"
    order = {here / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.hookimpl(optionalhook=True)  # pytest-xdist is not everywhere
def pytest_xdist_make_scheduler(config, log):
    """By file, and the contract of the engines by engine, each of which is one module fixture."""
    from xdist.scheduler import LoadFileScheduling

    class ByFileAndEngine(LoadFileScheduling):
        def _split_scope(self, nodeid):
            scope = super()._split_scope(nodeid)
            return nodeid.partition("[")[2] if scope.endswith("test_contract.py") else scope

    return ByFileAndEngine(config, log) if config.option.dist == "loadfile" else None


@pytest.fixture
def no_engine_threads():
    """Fail a test that leaves a thread of an engine behind; threads of earlier tests do not count."""
    before = set(threading.enumerate())
    yield
    assert not {
        thread for thread in set(threading.enumerate()) - before if thread.name.startswith("ensemblehub")
    }
