# Two commands need nothing but Python 3.11 or newer:  make train  and  make test.  `make help` lists the others.
#
#   make train ARGS="titles-best budget.minutes=2"   another recipe, with overrides
#   make test PYTHON=python3.12                      another Python
#   make train PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"   a small, CPU-only torch on Linux

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PYTHON ?=
PIP_FLAGS ?=
PYTEST_ARGS ?=
ARGS ?=
BENCH_ARGS ?=
FAULTS_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS)
# An environment holds absolute paths: a folder that has been moved is installed anew.
HERE := $(shell pwd -P | cksum | cut -d ' ' -f 1)
RUN_READY := $(VENV)/.ready-$(HERE)-run
DEV_READY := $(VENV)/.ready-$(HERE)-dev
LITGPT_VENV := .venv-litgpt
LITGPT_READY := $(LITGPT_VENV)/.ready-$(HERE)

.PHONY: help train test check lint types architecture format docs wheel bench faults clean

help: ## what can be made
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

train: $(RUN_READY) ## environment, install, and the default recipe run to its end
	$(BIN)/farthing train $(ARGS)

test: $(DEV_READY) ## environment, install, and the whole test suite
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --hypothesis-profile=repeatable $(PYTEST_ARGS)

check: lint types architecture test ## all that must hold before a change goes in

lint: $(DEV_READY) ## format and style, nothing changed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV_READY) ## mypy
	$(BIN)/mypy

architecture: $(DEV_READY) ## the sentences about the house (CONTRIBUTING.md)
	$(BIN)/python -m pytest -q tests/architecture

format: $(DEV_READY) ## write the format and the fixes that are safe
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DEV_READY) ## write docs/recipe.md from the recipe's fields
	$(BIN)/python -m farthing.recipe.reference docs

wheel: $(DEV_READY) ## build dist/*.whl
	$(BIN)/python -m hatchling build -t wheel

bench: $(DEV_READY) ## every benchmark, then what was to be reached; BENCH_ARGS=--quick for the headline alone
	@$(MAKE) $(LITGPT_READY) || echo "litgpt could not be installed; its rows are left out" >&2
	$(BIN)/python benchmarks/everything.py $(BENCH_ARGS)

faults: $(DEV_READY) ## hundreds of faults against real runs, then bugs put in on purpose; FAULTS_ARGS="--faults 3000" for the long form
	$(BIN)/python tests/faults/campaign.py $(FAULTS_ARGS)
	$(BIN)/python tests/faults/seeded.py --run

clean: ## remove the environments and what tools have left; runs/ stays
	rm -rf $(VENV) $(LITGPT_VENV) dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@python=; \
	for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "Farthing needs Python 3.11 or newer; found: $$($(or $(PYTHON),python3) --version 2>&1 || true)." >&2; \
	    echo "Name one with: make $(or $(MAKECMDGOALS),train) PYTHON=/path/to/python3.12" >&2; \
	    exit 2; \
	fi; \
	echo "Making an environment in $(VENV) with $$("$$python" --version)."; \
	if ! "$$python" -m venv --clear "$(VENV)"; then \
	    rm -rf "$(VENV)"; \
	    echo "$$python cannot make environments; on Debian and Ubuntu: sudo apt-get install python3-venv" >&2; \
	    exit 2; \
	fi

$(RUN_READY): pyproject.toml | $(BIN)/python
	@echo "Installing Farthing and its libraries (torch is large; a first time takes some minutes)."
	$(PIP) --editable .
	@touch $@

$(DEV_READY): pyproject.toml | $(BIN)/python
	@echo "Installing Farthing, its libraries and the tools of its tests (a first time takes some minutes)."
	$(PIP) --editable '.[dev]'
	@touch $(RUN_READY) $@

# A rival of the benchmarks, whose requirements are not ours: the same torch, in an environment of its own.
$(LITGPT_READY): | $(BIN)/python
	$(BIN)/python -m venv --clear $(LITGPT_VENV)
	version=$$($(BIN)/python -c 'import torch; print(torch.__version__.split("+")[0])'); \
	$(LITGPT_VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) "torch==$$version" 'litgpt==0.5.13'
	@touch $@
