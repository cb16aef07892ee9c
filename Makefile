# Needs Python 3.11 or newer, make, and a package registry that pip can reach. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Arguments for the command behind a target: make test ARGS="-k plan", make demo ARGS="seed=2"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo test slow lint format bench build constraints clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## make .venv with tlearn (editable), its dependencies and the developer's tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "tlearn needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || true)" >&2; \
	  echo "Name another one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing tlearn, TensorFlow and the developer's tools into $(VENV) (some minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## train on the embedded digits with the embedded weights: no network, under two minutes
	@$(BIN)/python -m tlearn.train $(ARGS)
	@echo "Look at it:  $(BIN)/tensorboard --logdir runs"; echo "Go on with:  . $(BIN)/activate"

test: $(STAMP) ## run the tests, under ten minutes on two cores
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --durations 15 -m "not slow" $(ARGS)

slow: $(STAMP) ## run the tests marked slow: long proofs, large networks
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --durations 15 -m slow $(ARGS)

lint: $(STAMP) ## check style, format and types
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP) ## mend style and format where a tool can
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format .

bench: $(STAMP) ## measure what the README claims
	@$(BIN)/python -m benchmarks $(ARGS)

build: $(STAMP) ## build the wheel and the source archive into dist/
	@$(BIN)/python -m build --no-isolation --outdir dist .

constraints: ## make .venv anew with the newest versions allowed, and write them to constraints.txt
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@{ grep '^#' constraints.txt; $(BIN)/python -m pip freeze --exclude tlearn; } > constraints.new
	@mv constraints.new constraints.txt && touch $(STAMP)
	@echo "Now run make test, and commit constraints.txt when it passes."

clean: ## remove caches and builds; keeps .venv and runs/
	@rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
