# make demo | test | real | docs | lint | bench | clean       (make alone lists them)

PYTHON ?= python3
DATA   := $(or $(HISTOWEAVE_DATA),../shared/data)

VENV := .venv
PY   := $(VENV)/bin/python
PIP  := $(PY) -m pip --disable-pip-version-check
# The pins and the list of dependencies decide what is installed; a newer one makes the stamps below outdated.
KEYS := constraints.txt pyproject.toml
CORE := $(VENV)/core.stamp
FULL := $(VENV)/full.stamp
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

# One thread per test process: two processes share two cores, and results do not depend on the machine's core count.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.PHONY: help demo test real docs lint bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    environment, then the whole way from slides to report on a synthetic cohort"
	@echo "make test    ruff, mypy and the test suite"
	@echo "make real    every assertion on real data (HISTOWEAVE_DATA, now '$(DATA)')"
	@echo "make docs    the documentation, into site/"
	@echo "make lint    ruff and mypy only"
	@echo "make bench   speed of the hot paths against the usual idiom of the field"
	@echo "make clean   removes the environment and all build output"

demo: $(CORE)
	$(PY) -m histoweave demo

test: $(FULL)
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(ONE_THREAD) $(PY) -m pytest -n 2 -m "not real" tests

# Tests without their data skip themselves with the reason; -rs prints every one of them.
real: $(FULL)
	HISTOWEAVE_DATA="$(abspath $(DATA))" $(PY) -m pytest -m real -rs --durations=10 tests/real

docs: $(FULL)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lint: $(FULL)
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(CORE)
	HISTOWEAVE_DATA="$(wildcard $(abspath $(DATA)))" $(PY) -m benchmarks

clean:
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(CORE): $(KEYS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "histoweave needs Python 3.11 to 3.13, and $(PYTHON) is " + sys.version.split()[0] + "; use: make PYTHON=python3.11 ...")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@# torch by itself and first: asked for together with timm, the resolver may take the largest GPU build instead
	$(PIP) install --quiet "torch==$(TORCH)"
	$(PIP) install --quiet -c constraints.txt -e .
	touch $@

$(FULL): $(CORE)
	$(PIP) install --quiet -c constraints.txt -e ".[test,dev,docs]"
	touch $@
