"""Launcher: `python ensemblehub/api.py CONFIG` is `python -m ensemblehub.api CONFIG`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

if __name__ == "__main__":
    from ensemblehub.cli import main

    main(["serve", *sys.argv[1:]])
