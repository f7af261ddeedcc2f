# Everything runs in .venv, which `make` sets up. PYTHON names the interpreter to build it from.
PYTHON ?= python3
BIN ?= .venv/bin
# one thread for each process: two that share the cores wait for each other's threads
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast gpu lint clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "imgcls needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

setup: .venv/.ready  ## create .venv and install the package

demo: setup  ## train and test the CNN on the bundled data
	$(BIN)/python -m imgcls fit --config experiments/demo.yaml

test: setup  ## run all tests
	$(PYTEST)

test-fast: setup  ## run the tests that take less than a few seconds each
	$(PYTEST) -m 'not slow'

DEVICE ?= cuda
OUT ?= out
# another Python that has all it needs, such as BIN=/usr/bin on a machine without a network, is taken as it is
gpu: $(if $(filter .venv/bin,$(BIN)),setup)  ## certify on a GPU: tests and figures; DEVICE=cpu tries it at toy size
	$(BIN)/python3 -m tests.gpu.certify --device $(DEVICE) --out $(OUT) $(ARGS)

lint: setup  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove .venv and caches, not runs
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
