"""`python -m ensemblehub.api YAML` is `ensemblehub serve YAML`."""

import runpy
import sys

sys.argv[1:1] = ["serve"]
runpy.run_module("ensemblehub", run_name="__main__")
