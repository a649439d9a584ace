# Every target does its own set-up: all that is needed is Python 3.10-3.13 (with venv), a C++17 compiler and make.
#
#   make demo    compress a photograph, restore it in a second process, compare
#   make test    all tests
#   make bench   all benchmarks, compared with the last record
#   make lint    ruff, clang-format and mypy
#   make wheel   dist/: the source distribution, and the wheel that is built from it (docs/BUILDING.md)
#
# PYTHON=python3.12 chooses the interpreter, VENV=folder the place of the virtual environment. The tests run in as many
# processes as there are cores, eight at most, with one thread each; JOBS=0 runs them in one process with all threads.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= logical
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := pyproject.toml constraints.txt $(wildcard setup.py) $(wildcard csrc/*/*)
CPP := $(wildcard csrc/*/* tests/*/*.cpp tests/*/*.h)

.PHONY: demo test bench lint wheel setup clean
.DEFAULT_GOAL := test

setup: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n $(JOBS) --maxprocesses 8 --dist worksteal $(ARGS)

bench: $(VENV)/.installed-bench
	mkdir -p runs
	$(BIN)/python -m pytest -q bench -o python_files='bench_*.py' --benchmark-enable --benchmark-json=runs/bench.json $(ARGS)
	$(BIN)/python bench/performance.py runs/bench.json

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy

wheel: $(BIN)/python
	$(INSTALL) build
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf $(VENV) build l2c.egg-info demo_out
	rm -f l2c/_C*.so l2c/_cuda*.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Python sources need no reinstall, the package is installed in place; the extension and the requirements do.
$(VENV)/.installed: $(BIN)/python $(SOURCES)
	$(INSTALL) -e ".[dev,eval,train]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(INSTALL) -e ".[bench,dev,eval,train]"
	touch $@
