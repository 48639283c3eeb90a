# `make serve` and `make test` are all that a newcomer needs: both make .venv and install into it what they use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# A machine with an NVIDIA driver gets the CUDA and cuDNN libraries too.
ifneq ($(shell command -v nvidia-smi 2>/dev/null),)
SERVE_INSTALL := -c constraints-cuda.txt -e '.[cuda]'
else
SERVE_INSTALL := -e .
endif

.PHONY: help serve test check bench

help: ## What there is to make
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

serve: $(VENV)/.serve ## Serve the shipped artifact on http://localhost:8000
	$(BIN)/housenumber serve

test: check ## Format, lint, types and all tests
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## Cost of the readers; service and batch scoring against what the cores can do
	$(BIN)/python -m bench.readers
	$(BIN)/python -m bench.service
	$(BIN)/python -m bench.scoring speed
	$(BIN)/python -m bench.scoring memory

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt constraints-cuda.txt | $(BIN)/pip
	$(BIN)/pip install --quiet -c constraints.txt $(SERVE_INSTALL)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
