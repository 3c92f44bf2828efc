# The Python to make .venv with, and the number of test processes.
PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
# Touched last, so that an install that stops halfway is done again.
INSTALLED := .venv/.installed

# Two or more test processes share the machine: one thread each.
test: export OMP_NUM_THREADS ?= 1
test: export MPLBACKEND ?= Agg

.PHONY: help install demo test lint format types

help:
	@echo "make demo     fit the first case study (installs into .venv on the first run)"
	@echo "make test     run all tests and doctests"
	@echo "make lint     check style and formatting"
	@echo "make types    check types"
	@echo "make format   fix style and formatting"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt hatchling lda
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m case_studies.oring

# ArviZ 0.23 writes a file at the first import of a day, where parallel first imports collide.
test: $(INSTALLED)
	$(BIN)/python -W ignore -c 'import arviz'
	$(BIN)/python -m pytest -n $(WORKERS) --doctest-modules tests ppl_models inference

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)
	$(BIN)/pyright
