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

.PHONY: help serve test check bench retrain twin

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

bench: $(VENV)/.dev ## Cost of the readers; service and batch scoring against what the cores can do; JSON in runs/bench
	@mkdir -p runs/bench
	$(BIN)/python -m bench.readers --json runs/bench/readers.json
	$(BIN)/python -m bench.service --json runs/bench/service.json
	$(BIN)/python -m bench.searches --json runs/bench/searches.json
	$(BIN)/python -m bench.scoring speed --json runs/bench/scoring-speed.json
	$(BIN)/python -m bench.scoring cluster --json runs/bench/scoring-cluster.json
	$(BIN)/python -m bench.scoring memory --json runs/bench/scoring-memory.json
	$(BIN)/python -m bench.balanced --json runs/bench/balanced.json
	$(BIN)/python -m bench.hostile --json runs/bench/hostile.json

# The first stage's images are those of today's generator. The second has seen those of the first generator too, which
# drew close views alone: it is in the history.
FIRST_GENERATOR := ee44647

retrain: data/synthetic.done data/without-number.done data/first-generator.done data/more.done ## Train the shipped reader from nothing: four hours on two CPUs
	$(BIN)/housenumber train compact_points --data data/synthetic
	$(BIN)/housenumber train compact_points_finish --initial runs/compact_points/weights.safetensors \
		--data data/first-generator --data data/without-number --data data/synthetic
	$(BIN)/housenumber train compact_points_turned --initial runs/compact_points_finish/weights.safetensors \
		--data data/more --data data/more-without-number --data data/synthetic

twin: data/synthetic.done data/more.done ## Train the reader's twin without a transformer, for `housenumber experiment invariance`
	$(BIN)/housenumber train compact_cnn --data data/synthetic
	$(BIN)/housenumber train compact_cnn_turned --initial runs/compact_cnn/weights.safetensors \
		--data data/more --data data/more-without-number --data data/synthetic

data/synthetic.done: $(VENV)/.dev
	$(BIN)/housenumber data synthesize --seed 1 --count 120000 --out data/synthetic
	@touch $@

data/without-number.done: $(VENV)/.dev
	$(BIN)/housenumber data synthesize --seed 7 --count 8000 --without-number --out data/without-number
	@touch $@

data/first-generator.done: $(VENV)/.dev
	test -d build/first-generator || git worktree add --detach build/first-generator $(FIRST_GENERATOR)
	cd build/first-generator && $(CURDIR)/$(BIN)/python -c 'from models.data.commands import data; data()' \
		synthesize --seed 11 --count 100000 --out $(CURDIR)/data/first-generator
	@touch $@

data/more.done: $(VENV)/.dev
	$(BIN)/housenumber data synthesize --seed 500 --count 30000 --out data/more
	$(BIN)/housenumber data synthesize --seed 3 --count 1400 --without-number --out data/more-without-number
	@touch $@

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt constraints-cuda.txt | $(BIN)/pip
	$(BIN)/pip install --quiet -c constraints.txt $(SERVE_INSTALL)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
