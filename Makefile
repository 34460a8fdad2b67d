# The environment is made on first use and again only when what it is made from changes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS := $(VENV)/.installed-tests
# One thread: small tensors run faster so, and results do not depend on the machine.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo serve test lint types bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*##\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[hf,eval,serve]'
	touch $@

$(TESTS): $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[hf,openai,eval,serve,clients,dev]'
	touch $@

install: $(STAMP)  ## make the environment in .venv

demo: $(STAMP)  ## the built-in pair rides in tandem
	$(BIN)/ensemblehub demo

test: $(TESTS)  ## run all tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lint: $(TESTS)  ## check style
	$(BIN)/ruff check .

types: $(TESTS)  ## check types
	$(BIN)/mypy

serve: $(STAMP)  ## the built-in pair as a server, with its page
	$(BIN)/ensemblehub serve

bench: $(TESTS)  ## measure what the README states
	$(BIN)/python -m benchmarks $(ARGS)

clean:  ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
