"""The API as it describes itself: no request makes the server fail."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

CONFIG = {
    "model_specs": [
        {"name": "big", "engine": "echo", "replies": {"": "Goal: add.\nAction: 2 + 2."}, "parameters": 9},
        {"name": "small", "engine": "echo", "replies": {"": "It is 4."}, "parameters": 1},
    ],
    "ensemble": {
        "output_aggregation_method": "tandem",
        "output_aggregation_params": {"levels": {"low": 2, "high": 4}, "judge": "fixed:high"},
        "request_params": {
            "judge": {"choices": ["fixed:low", "fixed:high"]},
            "thresholds": {"minimum": 0, "maximum": 1},
        },
        "generation": {"max_tokens": 8},
    },
    "ensembles": {"turns": {"output_aggregation_method": "loop"}, "votes": {"output_aggregation_method": "vote"}},
    "server": {"max_output_tokens": 8},
}
PATHS = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/tokenize"), ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"), ("GET", "/v1/models"), ("GET", "/v1/models/{name}"), ("GET", "/v1/ensemble/config"),
    ("GET", "/health"), ("GET", "/status"), ("GET", "/metrics"),
]  # fmt: skip


@pytest.fixture(scope="module")
def described(serve):
    return schemathesis.openapi.from_url(serve(json.dumps(CONFIG)).url + "/openapi.json")


def test_all_routes_are_described(described):
    assert {(one.method.upper(), one.path) for one in operations(described)} == set(PATHS)


def operations(described):
    return [result.ok() for result in described.get_all_operations()]


CASES = [(*one, GenerationMode.POSITIVE) for one in PATHS]
CASES += [(*one, GenerationMode.NEGATIVE) for one in PATHS[:5]]  # those that can be asked wrongly


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_no_request_makes_the_server_fail(described, method, path, mode):
    one, seen = described[path][method], []

    @given(case=one.as_strategy(generation_mode=mode))
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def ask(case):
        response = case.call(timeout=30)
        seen.append(response.status_code)
        case.validate_response(response, checks=[not_a_server_error])

    ask()
    assert seen
