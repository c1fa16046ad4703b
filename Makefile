# Every target works as the first command on a fresh machine that has Python 3.11-3.13 and make.
#
#   PYTHON=python3.12   the interpreter that .venv is made with (default: the first of 3.11-3.13 that runs)
#   PIP_ARGS=...        further arguments of pip, e.g. an index of CPU builds of torch
#   JOBS=3              processes of the test run: one more than two cores have, for tests wait for servers, too
#   TESTS=tests/unit    what `make test` runs
#   BENCH=--miniature   options of the benchmark

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
JOBS ?= 3
TESTS ?= tests
# Named after what is to be installed: a change of either file makes a new stamp, a mere change of times does not.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
MARK := $(VENV)/.installing
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

# One thread per process: the processes of a test run share the cores, and the results do not depend on their number.
test test-all bench: export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check format bench bench-gpu ui doctor clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## make .venv and install the project into it

demo: $(STAMP) ## one shipped concept, from its folder to a champion adapter
	$(BIN)/purecc demo

# In the order of the folders: by default files with many tests go first, and the longest, which have few, end the run
# on one core.
test: $(STAMP) ## the tests
	$(BIN)/python -m pytest -m 'not long' $(TESTS) -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-all: $(STAMP) ## and those that take long for what they add
	$(BIN)/python -m pytest $(TESTS) -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: $(STAMP) ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## put the code into the form that `make check` asks for
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## what everything costs, as ratios, in one table (BENCH="--help")
	$(BIN)/python tests/benchmarks/bench.py $(BENCH)

bench-gpu: $(STAMP) ## Stable Diffusion 3.5 Medium's architecture on a CUDA device, random weights (BENCH="--help")
	$(BIN)/python tests/benchmarks/gpu.py $(BENCH)

ui: $(STAMP) ## the Prefect and MLflow pages
	$(BIN)/purecc ui

doctor: $(STAMP) ## what is missing on this machine, and the mend
	$(BIN)/purecc doctor

clean: ## remove .venv, caches and everything the runs made, but for mlruns/ and data/
	rm -rf $(VENV) .purecc .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage htmlcov *.egg-info build dist
	find components flows tests -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that is not of a supported Python, or whose installation was cut off (MARK is there), is made anew; one
# that a person made is kept and installed into.
$(STAMP):
	@set -e; \
	if [ -e $(MARK) ] || ! $(BIN)/python -c '$(SUPPORTED)' 2>/dev/null || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  python=; \
	  for candidate in $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python); do \
	    if $$candidate -c '$(SUPPORTED)' 2>/dev/null; then python=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "make: no Python 3.11, 3.12 or 3.13 among: $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python). Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; \
	  fi; \
	  echo "creating $(VENV) with $$($$python -V)"; \
	  $$python -m venv --clear $(VENV); \
	fi; \
	touch $(MARK); \
	echo "installing into $(VENV): about two minutes, 3 GB"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[dev]' -c constraints.txt; \
	rm -f $(VENV)/.installed-* $(MARK); \
	touch $@
