# Each target makes its own environment in .venv, with nothing before it: only Python 3.11 or later, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-oldest lint docs bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo   simulate a panel, hold tracks out, fit, impute and score them; results in demo/"
	@echo "make test   every test and every docstring example"
	@echo "make test-oldest  the quick tests with the oldest versions that pyproject.toml allows, in .venv-oldest (3 GB)"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the site, in docs/_build/html; runs its notebooks"
	@echo "make bench  the measured figures"
	@echo "make clean  remove .venv and .venv-oldest"

demo: $(VENV)/.installed-plain
	$(BIN)/xr-avocado demo --out demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal --doctest-modules xr_avocado tests

test-oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)-oldest/bin/uv pip compile --quiet --resolution lowest-direct --extra test --python $(VENV)-oldest/bin/python \
		pyproject.toml --output-file $(VENV)-oldest/oldest.txt
	$(VENV)-oldest/bin/uv pip install --quiet --python $(VENV)-oldest/bin/python --requirement $(VENV)-oldest/oldest.txt --no-deps --editable .
	$(VENV)-oldest/bin/python benchmarks/versions.py oldest $(TESTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-doc
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) $(VENV)-oldest

$(VENV)/.installed-%: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".$(if $(filter-out plain,$*),[$*])"
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; point to one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
