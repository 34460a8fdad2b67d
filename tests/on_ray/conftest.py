"""One cluster of one node for all tests on Ray."""

import os
from pathlib import Path

import pytest

from ensemblehub.ray_cluster import ENVIRONMENT

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def asked(tmp_path_factory):
    """The file in which test_ray_data.py writes down what was asked; the cluster's processes know it."""
    path = tmp_path_factory.mktemp("asked") / "asked.txt"
    os.environ |= {"ASKED": str(path)} | ENVIRONMENT
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return path


@pytest.fixture(scope="session")
def cluster(asked):
    """The option that names the cluster."""
    from benchmarks.ray_runs import cluster as started

    with started(6) as (address, _):
        yield f"--ray={address}"
