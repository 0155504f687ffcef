# Every target does its own set-up: a fresh clone needs Python >= 3.11 with venv, and nothing else.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest/bin
JOBS ?= 2
export OMP_NUM_THREADS ?= 2

.PHONY: demo test lint unit test-oldest format clean

demo: .venv/ready
	$(BIN)/lightning-robust demo

test: lint unit

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# one thread in each worker: the workers share the cores
unit: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal

test-oldest: .venv-oldest/ready
	OMP_NUM_THREADS=1 $(OLDEST)/pytest -n $(JOBS) --dist worksteal

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-oldest .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv -c constraints.txt
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e ".[dev]"
	touch $@

.venv-oldest/ready: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install --quiet --disable-pip-version-check uv
	$(OLDEST)/uv pip install --python $(OLDEST)/python --resolution lowest-direct -e ".[dev]"
	touch $@
