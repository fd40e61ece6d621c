# Everything a newcomer or CI runs. `make demo` and `make test` set up .venv on first use.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Tests of one file run in one process, so that what they share is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Tests start hundreds of processes; where this is set, each compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types check-all chaos bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev,flower]'
	touch $(READY)

demo: $(READY)  ## fine-tune the embedded model over the embedded fleet and write a report
	$(BIN)/airtune demo

test: lint  ## the gate: format, lint, doctests, tests
	$(PYTEST) -m "not slow"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

check-all: lint types  ## the gate, types and the slow tests, and the lines that none of them runs
	$(PYTEST) --cov

chaos: $(READY)  ## the fault table: devices, servers, links and disks that fail or lie
	$(BIN)/python -m pytest -n 1 tests/deploy/test_faults.py tests/deploy/front tests/engine/test_stream*.py tests/wire/test_post.py tests/chaos tests/testbed

bench: $(READY)  ## every benchmark that takes under a minute
	$(BIN)/python -m benchmarks all

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
