# `make demo` and `make test` do everything on a fresh machine that has Python >= 3.11, a C++20 compiler and make.
#
# PYTHON chooses the interpreter, VENV the folder of the environment, FASTOOD_CUDA=auto|0|1 whether CUDA kernels are built.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes that share the tests, file by file.
WORKERS ?= 2
# What the environment was made from: the pins, the requirements and the interpreter. It is made anew only when they change.
STAMP := $(VENV)/.made-by-fastood
PINS := $(shell { cat constraints.txt; $(PYTHON) .ci/requirements.py; $(PYTHON) --version; } 2>&1 | cksum | tr ' ' '-')

.PHONY: help setup build demo test check ctest benchmark clean

help:
	@echo "make demo       set up, build, run background resampling on embedded real data (about 2 minutes), write a report"
	@echo "make test       set up, build, run the tests"
	@echo "make check      format, lint, types"
	@echo "make ctest      host tests of the shared C++ maths, with the address and undefined-behaviour sanitizers"
	@echo "make benchmark  throughput of every op beside its peers, as ratios"

setup:
	@if [ "$$(cat $(STAMP) 2>/dev/null)" != "$(PINS)" ]; then \
	  set -e; \
	  if [ -e $(VENV) ] && [ ! -e $(STAMP) ]; then \
	    echo "$(VENV) exists and was not made by this Makefile: remove it, or choose another with VENV=..."; exit 1; \
	  fi; \
	  $(PYTHON) -c 'import sys; sys.exit(f"Python >= 3.11 is needed, {sys.executable} is {sys.version}" if sys.version_info < (3, 11) else 0)'; \
	  $(PYTHON) -c 'import shutil; print(f"Setting up $(VENV): a few minutes and, PyTorch being large, 10 GB of disk, of which 7 stay ({shutil.disk_usage(chr(46)).free / 1e9:.0f} GB are free)")'; \
	  $(PYTHON) -m venv --clear $(VENV); \
	  echo unfinished > $(STAMP); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools wheel; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $$($(BIN)/python .ci/requirements.py); \
	  echo "$(PINS)" > $(STAMP); \
	fi

# Always: the package is what changes. ninja rebuilds only what did.
build: setup
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@$(BIN)/python -c 'import fastood; i = fastood.build_info(); print("fastood", i["version"], "with" if i["cuda"] else "without", "CUDA kernels", i["cuda_architectures"], "-", i["cuda_reason"])'

demo: build
	$(BIN)/python -m fastood.train --name demo-$$(date +%Y%m%d-%H%M%S)

test: build
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)

ctest: setup
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/host -G Ninja -DFASTOOD_CUDA=0 -DFASTOOD_SANITIZE=address,undefined -DPython_EXECUTABLE="$(abspath $(BIN))/python"
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/host --target host_tests
	PATH="$(abspath $(BIN)):$$PATH" ctest --test-dir build/host --output-on-failure

benchmark: build
	$(BIN)/python -m pytest benchmarks

clean:
	rm -rf build dist $(VENV) fastood/_C*.so *.egg-info
