"""`python -m ensemblehub` is the command `ensemblehub`."""

from ensemblehub.cli import main

main()
