"""The llama.cpp engine."""

from ensemblehub.generators import exports

__getattr__ = exports("ensemblehub.generators.llama_cpp.engine", "LlamaCppEngine", "LlamaCppOptions")
