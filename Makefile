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
PINS := $(shell { cat constraints.txt; "$(PYTHON)" .ci/requirements.py; "$(PYTHON)" --version; } 2>&1 | cksum | tr ' ' '-')
PIP := "$(BIN)/python" -m pip install --quiet --disable-pip-version-check

.PHONY: help setup build demo test check ctest emulated benchmark clean

help:
	@echo "make build      set up, build the extension"
	@echo "make demo       set up, build, run background resampling on embedded real data (minutes), write a report"
	@echo "make test       set up, build, run the tests"
	@echo "make check      format, lint, types, style of docstrings"
	@echo "make ctest      host tests of the shared C++ maths, with the address and undefined-behaviour sanitizers"
	@echo "make emulated   run every CUDA kernel on the CPU: tests, sanitizers, coverage, mutations (docs/emulation.md)"
	@echo "make clean      remove the environment and what was built"
	@echo "make benchmark  throughput of every op beside its peers, as ratios"

# The stamp comes first: whatever stops a set-up, the next one knows the folder for its own. An environment that was moved
# is made anew, for its `activate` still leads to where it was.
setup:
	@if [ "$$(cat "$(STAMP)" 2>/dev/null)" != "$(PINS)" ] || \
	    ! grep -qsF -e "$$(cd "$(VENV)" && pwd)" -e "$$(cd "$(VENV)" && pwd -P)" "$(BIN)/activate"; then \
	  set -e; \
	  if [ -n "$$(ls -A "$(VENV)" 2>/dev/null)" ] && [ ! -e "$(STAMP)" ]; then \
	    echo "$(VENV) exists and was not made by this Makefile: remove it, or choose another with VENV=..."; exit 1; \
	  fi; \
	  command -v "$(PYTHON)" >/dev/null || { \
	    echo "Python >= 3.11 is needed, and there is no $(PYTHON) on PATH: install it, or name another with PYTHON=..."; exit 1; \
	  }; \
	  "$(PYTHON)" .ci/preflight.py "$(VENV)"; \
	  echo "Setting up $(VENV): a few minutes and, PyTorch being large, 10 GB of disk, of which 7 stay"; \
	  mkdir -p "$(VENV)"; \
	  echo unfinished > "$(STAMP)"; \
	  find "$(VENV)/" -mindepth 1 ! -name .made-by-fastood -delete; \
	  "$(PYTHON)" -m venv "$(VENV)"; \
	  $(PIP) --constraint constraints.txt setuptools wheel; \
	  $(PIP) --constraint constraints.txt $$("$(BIN)/python" .ci/requirements.py); \
	  echo "$(PINS)" > "$(STAMP)"; \
	fi

# Always: the package is what changes. ninja rebuilds only what did.
build: setup
	@echo "Building the extension: 1 to 5 minutes on two free cores the first time, most of it for CUDA kernels if there is an nvcc (FASTOOD_CUDA=0 leaves them out); afterwards what changed"
	@$(PIP) --no-build-isolation --no-deps --editable .
	@"$(BIN)/python" -c 'import fastood; i = fastood.build_info(); print("fastood", i["version"], "with" if i["cuda"] else "without", "CUDA kernels", *filter(None, [i["cuda_architectures"]]), "(" + i["cuda_reason"] + ")")'

demo: build
	"$(BIN)/python" -m fastood.train --name demo-$$(date +%Y%m%d-%H%M%S)
	@echo
	@[ "$(PWD)" = "$(CURDIR)" ] || echo "       cd '$(CURDIR)'"
	@echo "next:  . $(BIN)/activate                    so that python is this environment's"
	@echo "       python -m fastood.train --help       the other methods, and images of your own"

test: build
	"$(BIN)/python" -m pytest --numprocesses $(WORKERS) --dist loadfile

check: build
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/python" .ci/check_style.py
	@echo clang-format --dry-run --Werror csrc
	@find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs "$(BIN)/clang-format" --dry-run --Werror

ctest: setup
	@export PATH="$$(cd "$(BIN)" && pwd):$$PATH"; set -ex; \
	  cmake -S . -B build/host -G Ninja -DFASTOOD_CUDA=0 -DFASTOOD_SANITIZE=address,undefined \
	    -DPython_EXECUTABLE="$$(cd "$(BIN)" && pwd)/python"; \
	  cmake --build build/host --target host_tests; \
	  ctest --test-dir build/host --output-on-failure

# Parts alone: PARTS="sanitizers coverage".
emulated: build
	@PATH="$$(cd "$(BIN)" && pwd):$$PATH" "$(BIN)/python" -m tests.emulation $(PARTS)

benchmark: build
	"$(BIN)/python" -m pytest benchmarks

clean:
	rm -rf build dist "$(VENV)" fastood/_C*.so *.egg-info
