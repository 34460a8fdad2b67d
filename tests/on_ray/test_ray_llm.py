"""`LLMConfig`s of `serve --ray`, checked by Ray; needs vLLM beside Ray, which `make test-ray` does not install."""

import pytest

pytest.importorskip("ray", reason="Ray has an environment of its own: make test-ray")
pytest.importorskip("vllm", reason="Ray Serve LLM needs vLLM: pip install 'ray[llm]'")

from ensemblehub.api import ray_serve
from ensemblehub.config import Config
from ensemblehub.errors import ConfigError

MENTOR = {
    "name": "mentor",
    "engine": "vllm",
    "path": "Qwen/Qwen3-32B",
    "tensor_parallel_size": 2,
    "tool_parser": "hermes",
}
INTERN = {"name": "intern", "engine": "vllm", "path": "Qwen/Qwen3-8B", "max_model_len": 8192}


def options(**mentor):
    config = Config.from_dict({"model_specs": [MENTOR, INTERN], "server": {"ray": {"mentor": mentor}}})
    return [ray_serve.llm_options(config, spec) for spec in config.model_specs]


def test_ray_builds_the_application():
    scale = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 4}}
    assert ray_serve.models_app(options(accelerator_type="H100", deployment_config=scale))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"accelerator_type": "H1000"}, "Unsupported accelerator type"),
        ({"deployment_config": {"autoscaling": 3}}, "autoscaling"),
        ({"engine_kwargs": {"max_num_sequences": 3}}, "Unknown engine argument: max_num_sequences"),
    ],
)
def test_ray_refuses_what_it_does_not_know(wrong, text):
    with pytest.raises(ConfigError, match=text):
        ray_serve.models_app(options(**wrong))


def test_the_ingress_takes_the_interns_reading():
    from ray.serve.llm.openai_api_models import CompletionRequest

    request = CompletionRequest(model="intern", prompt=[1, 2, 3], echo=True, logprobs=20, max_tokens=1)
    assert (request.echo, request.logprobs, request.prompt) == (True, 20, [1, 2, 3])


def test_the_router_sees_no_text_in_token_ids():
    from ray.serve.llm.request_router import PrefixCacheAffinityRouter as Router

    router = Router.__new__(Router)
    assert router._normalize_prompt_to_string([1, 2, 3]) == ""
    assert router._normalize_prompt_to_string([{"role": "user", "content": "hi"}]) == "hi"
