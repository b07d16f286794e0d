# Two commands on a fresh machine: `make demo` and `make test`. Each makes the environment first if there is none.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
WEIGHTS_DIR ?= $(MEDCLS_WEIGHTS_DIR)

.PHONY: env demo test test-slow fuzz lint bench clean-demo

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PY) -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || \
		{ echo "no virtual environment: Python 3.11 with venv is needed (Debian: python3.11-venv), or PYTHON=path"; exit 1; }
	@echo "installing the pinned environment into $(VENV); the first time takes some minutes (torch is large)"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@PY=$(PY) WEIGHTS_DIR="$(WEIGHTS_DIR)" sh data_prep/demo.sh

test: $(STAMP)
	$(PY) -m pytest -n 2 -m "not slow" $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Broken files by the thousand through the reader: make fuzz CASES=200000 SEED=1
fuzz: $(STAMP)
	$(PY) -m tests.imaging.fuzz --cases $(or $(CASES),10000) --seed $(or $(SEED),0)

bench: $(STAMP)
	$(PY) -m benchmarks

clean-demo:
	rm -rf demo
