# The usual tasks. Each works in the checkout's own environment, which `make setup` creates.
PYTHON = python3
BIN = .venv/bin
QUICK = tests/unit tests/integration/spool tests/integration/pipeline

.PHONY: setup test quick lint types bench

setup:  ## create .venv with the releases that CI tests
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c .ci/constraints.txt -e '.[dev]'

test:  ## run every test that is not slow
	$(BIN)/python -m pytest -q -n 4 --dist worksteal

quick:  ## run the unit tests and those of spool and pipeline, in under a minute
	$(BIN)/python -m pytest -q -n 4 --dist worksteal $(QUICK)

lint:  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:  ## check types
	$(BIN)/mypy

bench:  ## measure, compare with what others would use, and write docs/benchmarks.md; some half an hour
	$(BIN)/python -m tests.tools.benchmarks --out docs
