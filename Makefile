# make run | make test do all the set-up; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup run test test-all check clean

setup: $(READY)

# torch first: with 2.13.0 there, no other package pulls another build of it. Of openmmtools tests only read the data.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[md,ml,driver,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps openmmtools
	touch $@

run: setup
	$(BIN)/python run.py $(FLAGS)

# More than cores: campaigns spend most of a test waiting.
TESTS := $(BIN)/python -m pytest --numprocesses 3 --dist worksteal --durations 15

test: setup
	$(TESTS) -m "not slow"

test-all: setup
	$(TESTS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
