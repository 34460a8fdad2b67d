"""The vLLM engine."""

from ensemblehub.generators import exports

__getattr__ = exports("ensemblehub.generators.vllm.engine", "VLLMEngine", "VLLMOptions")
