"""Fixtures of the hf tests: models saved once a session.  Imports nothing heavy itself."""

import pytest


def _saved(family, tmp_path_factory):
    import hf_bench

    return getattr(hf_bench, f"save_{family}")(tmp_path_factory.mktemp(family))


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    return _saved("qwen", tmp_path_factory)


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return _saved("llama", tmp_path_factory)


@pytest.fixture(scope="session")
def sliding(tmp_path_factory):
    return _saved("sliding", tmp_path_factory)


@pytest.fixture(scope="session")
def mistral(tmp_path_factory):
    return _saved("mistral", tmp_path_factory)


@pytest.fixture
def bench(qwen):
    from hf_bench import Bench

    return lambda path=qwen, **options: Bench(path, **options)
