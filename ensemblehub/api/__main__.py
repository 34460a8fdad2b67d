"""`python -m ensemblehub.api CONFIG` is `ensemblehub serve CONFIG`."""

import sys

from ensemblehub.cli import main

main(["serve", *sys.argv[1:]])
