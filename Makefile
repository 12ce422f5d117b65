# make setup · environments · setup-system · demo · test · test-slow · test-llama · test-lm-eval · test-gpu · drills · lint · docs · layers · bench.  Each installs what it needs and is quick the second time.
# The interpreter of new environments: `make demo PYTHON=python3.13`. `make clean` removes those that are there.
SHELL := /bin/bash
PYTHON ?= python3
export OMP_NUM_THREADS ?= 1
PIP = -m pip install --disable-pip-version-check
VENV := .venv/installed
ENGINES := .venv-engines/installed
DOCS := .venv-docs/installed
LLAMA := .llama.cpp/installed
LM_EVAL := .venv-engines/lm-eval-installed
# Processes that run tests; a file of tests stays in one, and files keep the order of tests/conftest.py.
WORKERS ?= 2
PARALLEL = --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
DRILLS ?= 10
DRILL_SEEDS ?= $(shell shuf --input-range 1-999999999 --head-count $(DRILLS) | paste --serial --delimiters ,)
DRILL ?= test

.PHONY: help setup setup-system demo test test-slow test-llama test-lm-eval test-gpu drills lint format docs layers bench clean

help:
	@head -2 Makefile

setup: $(VENV)

$(VENV): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "setup: Python 3.11, 3.12 or 3.13 is needed, and $(PYTHON) is not one of them; name one: make setup PYTHON=python3.11"; exit 2; }
	@echo "setup: installing the training environment in .venv (2.7 GB with a CPU build of torch, 6.2 GB with that of PyPI; two minutes or more the first time)"
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	@.venv/bin/python $(PIP) --editable '.[dev]' 2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2)
	@touch $@

$(ENGINES): pyproject.toml
	@echo "setup: installing transformers 5 for comparisons in .venv-engines (about a minute the first time)"
	@test -x .venv-engines/bin/pip || $(PYTHON) -m venv .venv-engines
	@.venv-engines/bin/python $(PIP) torch==2.13.0 transformers==5.23.0 numpy==2.1.3 pytest==9.0.1 hypothesis==6.148.2 omegaconf==2.4.0 pydantic==2.14.4 gguf==0.19.0 safetensors xxhash==3.8.2 hatchling==1.27.0 editables \
		2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2)
	@.venv-engines/bin/python $(PIP) --quiet --no-deps mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 2>/dev/null || echo "setup: mlx has no build for this machine; its test is skipped"
	@.venv-engines/bin/python $(PIP) --no-deps --no-build-isolation --editable . 2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2)
	@touch $@

# Every environment that tests use; `make environments --jobs=3` installs them beside each other.
.PHONY: environments
environments: $(VENV) $(ENGINES) triton-360

# Programs of Debian packages that tests run; needs root if one is missing.
setup-system:
	@tests/setup-system.sh

# An older Triton that GPU machines may have; the static test of the kernels uses it if it is installed.
.PHONY: triton-360
triton-360: .venv-triton-360/triton
.venv-triton-360/triton:
	@echo "triton-360: installing Triton 3.6.0 in .venv-triton-360 (188 MB download, 0.5 GB)"
	@$(PYTHON) $(PIP) --no-deps --target .venv-triton-360 triton==3.6.0

demo: $(VENV)
	@docs/demo.sh

# .venv-engines has not all that other tests import, so that pytest gets the files of its own.
test: $(VENV) $(ENGINES)
	.venv/bin/python -m pytest $(PARALLEL)
	.venv-engines/bin/python -m pytest -m 'engines and not slow' $$(grep --recursive --files-with-matches 'mark.engines' tests)

test-slow: $(VENV) .venv-triton-360/triton
	.venv/bin/python -m pytest -m 'slow and not engines' $(PARALLEL)

# llama.cpp as llama-cpp-python builds it, in .venv-engines, for any x86-64 CPU with AVX2. Its source has the converter that a test runs.
$(LLAMA): $(ENGINES)
	@echo "test-llama: building llama.cpp from source (77 MB download; about eight minutes of two cores the first time)"
	@mkdir -p .llama.cpp
	@.venv-engines/bin/python -m pip download --disable-pip-version-check --quiet --no-deps --no-binary llama-cpp-python --dest .llama.cpp llama-cpp-python==0.3.36
	@tar --extract --strip-components=1 --directory .llama.cpp --file .llama.cpp/llama_cpp_python-0.3.36.tar.gz
	@CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF" \
		.venv-engines/bin/python $(PIP) .llama.cpp/llama_cpp_python-0.3.36.tar.gz
	@touch $@

# Exported GGUF files in llama.cpp and by its converter.
test-llama: $(LLAMA)
	GGML_NO_BACKTRACE=1 .venv-engines/bin/python -m pytest -m llama tests/convert/test_llama.py

# What needs a GPU; the last test needs two. Without a device they are skipped, and say so.
test-gpu: $(VENV)
	.venv/bin/python -m pytest -m gpu -rs tests/gpu

# lm-evaluation-harness in .venv-engines; its dependencies take 0.6 GB, so that CI leaves it out.
$(LM_EVAL): $(ENGINES)
	@echo "test-lm-eval: installing lm-evaluation-harness in .venv-engines (about a minute the first time)"
	@.venv-engines/bin/python $(PIP) lm_eval==0.4.13 datasets==5.2.0 evaluate==0.4.6
	@touch $@

# Tasks of lm-evaluation-harness with an exported folder.
test-lm-eval: $(LM_EVAL)
	.venv-engines/bin/python -m pytest -m lm_eval tests/evaluate/test_lm_eval.py

# Faults drawn at random, DRILLS of them or those of DRILL_SEEDS, and the rest of the grids of which CI runs a sample.
# A failed drill prints the command that repeats it.
drills: $(VENV)
	.venv/bin/python -m pytest -v -m 'drill or exhaustive' -k '$(DRILL)' --drill-seeds $(DRILL_SEEDS)

lint: $(VENV)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format: $(VENV)
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

# The extra `docs` alone: API pages are made from the sources, which are not imported.
$(DOCS): pyproject.toml
	@echo "docs: installing mkdocs in .venv-docs (200 MB, less than a minute the first time)"
	@test -d .venv-docs || $(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > .venv-docs/requirements.txt
	@.venv-docs/bin/python $(PIP) --quiet --requirement .venv-docs/requirements.txt 2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2)
	@touch $@

# The documentation site in site/. A warning, such as a link to nothing, fails.
docs: $(DOCS)
	@PATH="$$PWD/.venv-docs/bin:$$PATH" .venv-docs/bin/mkdocs build --strict --quiet
	@echo "docs: site/index.html; .venv-docs/bin/mkdocs serve shows it and follows changes"

# docs/layers.svg: the packages and who imports whom.
layers:
	$(PYTHON) docs/layers.py

bench: $(VENV) $(ENGINES)
	.venv/bin/python benchmarks/cpu.py
	.venv/bin/python benchmarks/parallel.py

clean:
	rm -rf .venv .venv-engines .venv-docs site .venv-triton-360 .llama.cpp .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
