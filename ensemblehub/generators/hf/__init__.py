"""The Hugging Face engine."""

from ensemblehub.generators import exports

__getattr__ = exports("ensemblehub.generators.hf.engine", "HFEngine", "HFOptions")
