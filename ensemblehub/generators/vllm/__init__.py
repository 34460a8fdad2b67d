"""The vLLM engine."""

from ensemblehub.generators import exports

__getattr__ = exports("ensemblehub.generators.vllm.engine", "VLLMEngine", "VLLMOptions")

# Options of a model that are arguments of vLLM's engine by the same name.
PASSED = (
    "dtype",
    "max_model_len",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "gpu_memory_utilization",
    "block_size",
    "enforce_eager",
    "seed",
    "trust_remote_code",
)
