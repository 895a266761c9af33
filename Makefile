# Every task of a contributor; `make help` lists them. Each does its own set-up in .venv, so `make demo` and
# `make test` work in a fresh clone.
#
#   PYTHON=python3.12       which Python .venv is made from (the first of 3.10 to 3.13 found)
#   PML_FAST_BUILD=on|off   insist on the compiled extension, or leave it out (auto: built where it can be)
#   ARGS="..."              passed on by demo, test, test-all, bench and gpu
#   JOBS=4                  how many processes run the tests

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
GPU_PYTHON ?= python3
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
CPP_SOURCES = $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
PYTHON_SOURCES = $(wildcard setup.py pml_fast tests benchmarks examples)

.PHONY: help
help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

# --- the environment -----------------------------------------------------------------------------------------------

define FIND_PYTHON
supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; \
python=""; \
for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10); do \
  if "$$candidate" -c "$$supported" 2>/dev/null; then python="$$candidate"; break; fi; \
done; \
if [ -z "$$python" ]; then \
  echo "error: no Python from 3.10 to 3.13 ($(or $(PYTHON),python3) is not one); install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
  exit 1; \
fi
endef

define MAKE_VENV
if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
  echo "error: $$python cannot make virtual environments; on Debian: sudo apt install python3-venv" >&2; \
  exit 1; \
fi; \
rm -rf $(VENV); \
"$$python" -m venv $(VENV)
endef

$(BIN)/python:
	@$(FIND_PYTHON); echo "Making $(VENV) with $$("$$python" --version)"; $(MAKE_VENV)

# The extension is added by `ext`, which compiles only what changed; here goes everything else. The build tools come
# first, at their pinned versions, so that no step resolves anything outside the constraints.
$(READY): constraints.txt pyproject.toml | $(BIN)/python
	@echo "Installing the pinned packages into $(VENV) (some minutes the first time)"
	@$(PIP) setuptools wheel scikit-build-core pybind11 cmake ninja
	@PML_FAST_BUILD=off $(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

$(DOCS_READY): $(READY)
	@PML_FAST_BUILD=off $(PIP) --no-build-isolation -e '.[docs]'
	@touch $@

.PHONY: setup ext
setup: $(READY) ext ## Make .venv: pinned packages, pml_fast itself, its compiled extension

ext: $(READY) ## Compile the extension (what changed) into pml_fast/
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py -q build_inplace

# --- the tasks -----------------------------------------------------------------------------------------------------

.PHONY: demo test test-all bench gpu lint format docs wheel clean

demo: setup ## Train an embedding on real images, evaluate it on unseen classes, write pictures
	@$(BIN)/pml-fast demo $(ARGS)

test: lint ## Lint, types and the tests (under 20 minutes on two cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --benchmark-disable -m "not gpu and not slow" $(ARGS)

test-all: lint ## The same with every combination of the tests' parameters (hours)
	@OMP_NUM_THREADS=1 PML_FAST_TEST_ALL=1 \
	  $(BIN)/python -m pytest -q -n $(JOBS) --benchmark-disable -m "not gpu" $(ARGS)

bench: setup ## Benchmarks against the peers: tables, JSON and plots in benchmarks/results
	@$(BIN)/python -m benchmarks $(ARGS)

gpu: ## GPU tests and benchmarks with the machine's own Python and packages, no network (GPU_PYTHON=)
	@$(GPU_PYTHON) setup.py -q build_inplace
	@PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.on_gpu $(ARGS)

lint: setup ## ruff, clang-format and mypy, changing nothing
	@$(BIN)/python -m ruff check $(PYTHON_SOURCES)
	@$(BIN)/python -m ruff format --check $(PYTHON_SOURCES)
	@$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)
	@$(BIN)/python -m mypy

format: setup ## Format the Python and C++ sources, and fix what ruff can
	@$(BIN)/python -m ruff check --fix --exit-zero --quiet $(PYTHON_SOURCES)
	@$(BIN)/python -m ruff format $(PYTHON_SOURCES)
	@$(BIN)/clang-format -i $(CPP_SOURCES)

docs: $(DOCS_READY) ## Build the documentation into build/docs
	@$(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/docs/index.html"

# setuptools reuses build/lib*, where a file that was since removed would live on.
wheel: $(READY) ## Build a wheel into dist/, in an isolated environment
	@rm -rf build/lib* build/bdist*
	@$(BIN)/python -m pip --disable-pip-version-check wheel --no-deps -w dist .

clean: ## Remove builds and caches (.venv stays)
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	@rm -f pml_fast/_C.*.so pml_fast/_C.*.pyd
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
