"""`ensemblehub serve --ray`: the application as replicas of Ray Serve, models of the engine `vllm` below it.

Each such model becomes an `LLMConfig` of Ray Serve LLM with replicas of its own, behind an OpenAI-compatible
ingress at `/models`; the application's replicas need a CPU only and reach it through the engine `openai`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI

from ensemblehub.api.app import create_app
from ensemblehub.api.logs import log_to_stderr
from ensemblehub.api.serving import host_of
from ensemblehub.config import Config
from ensemblehub.config.sections import ModelSpec
from ensemblehub.errors import ConfigError, one_line
from ensemblehub.generators.vllm import PASSED
from ensemblehub.ray_cluster import Cluster
from ensemblehub.ray_data import enter

log = logging.getLogger("ensemblehub.api")
NAME, MODELS = "ensemblehub", "ensemblehub-models"  # applications of Ray Serve
PREFIX = "/models"
ROUTER = "ray.serve.llm.request_router.PrefixCacheAffinityRouter"
MOST_LOGPROBS = 20  # of a position, in replies of vLLM's server


def serve(config: Config, keys: Sequence[str], cluster: Cluster) -> None:
    """Serve on a cluster until a stop signal.

    Raises:
        MissingExtraError: Ray, or vLLM for models of that engine, is not installed.
        ConfigError: The configuration cannot work, Ray refuses the options of a model, another application has
            the prefix, or a replica does not start.
    """
    settings = config.server
    log_to_stderr(settings)
    models = {spec.name: llm_options(config, spec) for spec in config.model_specs if spec.engine == "vllm"}
    if unknown := settings.ray.keys() - models:
        raise ConfigError(f"server.ray: {min(unknown)!r} is no model of the engine vllm")
    config = with_models_served(config)
    create_app(config, keys)  # says what cannot work, before anything is started
    with cluster.connected(), ended():
        try:
            start(config, keys, cluster, list(models.values()))
        except failures() as error:
            cause = getattr(error, "cause", None) or error  # of an error in Ray's controller
            raise ConfigError(f"Ray Serve: {one_line(cause)}") from error
        log.info(
            "serving on Ray at http://%s:%d, %d-%d replicas", settings.host, settings.port, *cluster.workers
        )
        stopped().wait()


def failures() -> tuple[type[Exception], ...]:
    """What Ray raises where an application does not start."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    return RayError, RayServeException, RuntimeError


def start(config: Config, keys: Sequence[str], cluster: Cluster, models: list[dict[str, Any]]) -> None:
    """Start Ray Serve and the applications; returns once they are ready."""
    from ray import serve

    settings = config.server
    if serve.status().proxies:
        log.warning("Ray Serve runs on this cluster already: its host and port are not changed")
    serve.start(http_options={"host": host_of(settings, keys), "port": settings.port})
    if models:
        serve.run(models_app(models), name=MODELS, route_prefix=PREFIX)
    serve.run(application(config, keys, cluster.workers), name=NAME, route_prefix="/")


@contextmanager
def ended() -> Iterator[None]:
    """End the applications, also those that are not ready, and Ray Serve where no others run on it."""
    from ray import serve

    try:
        yield
    finally:
        stopped()  # another signal does not interrupt it
        running = serve.status().applications.keys()
        if running <= {NAME, MODELS}:
            serve.shutdown()
        else:
            for name in running & {NAME, MODELS}:
                serve.delete(name)


def stopped() -> threading.Event:
    """Set by SIGINT and SIGTERM."""
    event = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: event.set())
    return event


def application(config: Config, keys: Sequence[str], replicas: tuple[int, int]) -> Any:
    """The application as a deployment on CPUs."""
    from ray import serve

    settings, (low, high) = config.server, replicas
    running = settings.max_running
    scale: dict[str, Any] = {"num_replicas": low}
    if high > low:
        target = max(1, running // 2)
        scale = {
            "autoscaling_config": {
                "min_replicas": low,
                "max_replicas": high,
                "target_ongoing_requests": target,
            }
        }
    text, folder = config.model_dump_json(), os.getcwd()

    def app() -> FastAPI:
        enter(folder)
        return create_app(Config.model_validate_json(text), keys)

    deployment = serve.deployment(
        serve.ingress(app)(),
        name=NAME,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=running + settings.max_queued + 16,  # the application queues, and says 429
        graceful_shutdown_timeout_s=settings.drain,
        **scale,
    )
    return deployment.bind()


def models_app(options: list[dict[str, Any]]) -> Any:
    """The models as an application of Ray Serve LLM.

    Raises:
        ConfigError: Ray refuses the options.
    """
    try:
        from ray.serve.llm import LLMConfig, build_openai_app

        configs = [LLMConfig(**each) for each in options]
        for each in configs:
            each.get_engine_config()  # refuses what is no argument of vLLM's
        return build_openai_app({"llm_configs": configs})
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"Ray Serve LLM: {one_line(error)}") from error


def llm_options(config: Config, spec: ModelSpec) -> dict[str, Any]:
    """The fields of a model's `LLMConfig`: its engine options, then those under `server.ray`."""
    options = config.options(spec)
    engine = {name: options[name] for name in PASSED if options.get(name) is not None}
    engine |= {
        "enable_prompt_tokens_details": True,
        "max_logprobs": MOST_LOGPROBS,
        **options.get("extra", {}),
    }
    if parser := options.get("tool_parser"):
        engine |= {"enable_auto_tool_choice": True, "tool_call_parser": parser}
    given = dict(config.server.ray.get(spec.name, {}))
    deployment = {"request_router_config": {"request_router_class": ROUTER}}
    return {
        **given,
        "model_loading_config": {"model_id": spec.name, "model_source": options["path"]},
        "engine_kwargs": engine | given.get("engine_kwargs", {}),
        "deployment_config": deployment | given.get("deployment_config", {}),
    }


def with_models_served(config: Config) -> Config:
    """The configuration with models of the engine `vllm` behind the ingress on the node of each replica."""
    return config.model_copy(update={"model_specs": [_served(config, spec) for spec in config.model_specs]})


def _served(config: Config, spec: ModelSpec) -> ModelSpec:
    if spec.engine != "vllm":
        return spec
    options = config.options(spec)
    thinking = options.get("enable_thinking")
    return ModelSpec.model_validate(
        {
            "name": spec.name,
            "engine": "openai",
            "path": spec.name,
            "base_url": f"http://127.0.0.1:{config.server.port}{PREFIX}/v1",
            "dialect": "vllm",
            "logprobs": True,
            "score": "echo",
            "entropy_top_k": MOST_LOGPROBS,
            "tokenizer": options["path"],
            "tools": bool(options.get("tool_parser")),
            "response_format": True,
            "context": options.get("max_model_len") or 0,
            "price": options.get("price"),
            **(
                {}
                if thinking is None
                else {"extra_body": {"chat_template_kwargs": {"enable_thinking": thinking}}}
            ),
        }
    )
