"""Launcher: `python ensemblehub/api.py YAML` is `ensemblehub serve YAML`."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    runpy.run_module("ensemblehub.api", run_name="__main__")
