"""The llama.cpp engine."""

import os
import sys

from ensemblehub.generators import exports

if "torch" not in sys.modules:  # which loads OpenMP's library; llama.cpp then uses the same
    # threads that spin as they wait for each other are 10 to 60 times slower where cores are busy
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__getattr__ = exports("ensemblehub.generators.llama_cpp.engine", "LlamaCppEngine", "LlamaCppOptions")
