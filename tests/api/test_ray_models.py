"""Models on Ray Serve LLM as `serve --ray` configures them, without Ray."""

from ensemblehub.api import ray_serve
from ensemblehub.config import Config
from ensemblehub.generators.openai.options import OpenAIOptions
from ensemblehub.registry import build

VLLM = {
    "model_specs": [
        {
            "name": "mentor",
            "engine": "vllm",
            "path": "org/big",
            "tensor_parallel_size": 2,
            "tool_parser": "hermes",
        },
        {
            "name": "intern",
            "engine": "vllm",
            "path": "org/small",
            "enable_thinking": False,
            "extra": {"swap": 1},
        },
        {"name": "judge", "engine": "echo"},
    ],
    "server": {
        "port": 9000,
        "ray": {
            "mentor": {
                "accelerator_type": "H100",
                "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 4}},
                "engine_kwargs": {"max_num_seqs": 64},
            }
        },
    },
}


def test_a_model_on_ray_has_its_own_options_then_those_of_the_server():
    config = Config.from_dict(VLLM)
    mentor, intern = (ray_serve.llm_options(config, spec) for spec in config.model_specs[:2])
    assert mentor["model_loading_config"] == {"model_id": "mentor", "model_source": "org/big"}
    assert mentor["accelerator_type"] == "H100"
    assert mentor["deployment_config"] == {
        "request_router_config": {"request_router_class": ray_serve.ROUTER},
        "autoscaling_config": {"min_replicas": 1, "max_replicas": 4},
    }
    asked = {"enable_prompt_tokens_details": True, "max_logprobs": 20}
    tools = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    assert mentor["engine_kwargs"] == {"tensor_parallel_size": 2, "max_num_seqs": 64, **asked, **tools}
    assert intern["engine_kwargs"] == {"swap": 1, **asked}


def test_the_application_reaches_them_through_the_openai_engine():
    config = ray_serve.with_models_served(Config.from_dict(VLLM))
    mentor, intern, judge = config.model_specs
    assert mentor.options["base_url"] == "http://127.0.0.1:9000/models/v1"
    assert mentor.options["tools"] is True
    assert intern.options["extra_body"] == {"chat_template_kwargs": {"enable_thinking": False}}
    assert judge.engine == "echo"
    for spec in (mentor, intern):
        options = build(OpenAIOptions, spec.options, spec.name)
        assert {"score", "logprobs", "prefix"} <= options.capabilities
