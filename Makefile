# make quickstart   environment, sample dataset, a model trained from scratch, a report (about ten minutes)
# make test         environment if needed, then the whole test suite
# make fix | check  format and lint | the same without changing a file, and types
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
REFERENCE_VERSION := 1.6.0

.PHONY: install test quickstart quickstart-tiny fix check docs clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

# The reference implementation, apart from ours (same import name): an oracle for tests and benchmarks.
.reference/.installed: $(VENV)/.installed
	rm -rf .reference
	$(BIN)/python -m pip install --quiet --no-deps --target .reference cn_clip==$(REFERENCE_VERSION)
	@touch $@

test: $(VENV)/.installed .reference/.installed
	$(BIN)/python -m pytest

quickstart: $(VENV)/.installed
	$(BIN)/python -m cn_clip.quickstart --out quickstart

quickstart-tiny: $(VENV)/.installed
	$(BIN)/python -m cn_clip.quickstart --out quickstart/tiny --tiny

fix: $(VENV)/.installed
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

check: $(VENV)/.installed
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/python -m cn_clip.cli_docs docs/cli.md

clean:
	rm -rf quickstart logs build dist
