# Needs Python >= 3.11 (with venv and headers), g++ and make; everything else is installed into .venv.
# A second run does again only what has changed.

PYTHON ?= python3
TORCH ?= 2.13.0
CUDA_TORCH ?= 2.14.1
FASTACT_CUDA_VENV ?= $(HOME)/.cache/fastact/cuda-venv
PYTEST_ARGS ?= -n 2
BENCH_ARGS ?= --quick
FUZZ_ARGS ?= --calls 20000

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
CXX_FILES = $(shell find csrc $(wildcard tests) -regex '.*\.\(cpp\|h\|cu\|cuh\)')

.DEFAULT_GOAL := help
.NOTPARALLEL: # two pips must not work in one environment; ninja uses every core by itself
.PHONY: help test test-cuda-build bench accuracy fuzz guide architectures models slow generated peers \
  coverage lint format wheel sanitize clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile
	@echo "Settings (make NAME=VALUE ...) and their defaults:"
	@awk '/^[A-Z_]+ \?= / {print "     " $$0}' Makefile

# Each of the two workers has two threads on two cores: waiting threads sleep instead of spinning.
test: .venv/installed .venv/test-tools ## set up, build, run the tests
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q $(PYTEST_ARGS)

bench: .venv/installed .venv/bench-tools ## set up, build, run the quick benchmarks, write benchmarks/results
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

accuracy: .venv/installed ## set up, build, measure the error of every activation
	$(BIN)/python tools/write_accuracy.py

fuzz: .venv/installed .venv/test-tools ## set up, build, call every operator with arguments that do not fit
	$(BIN)/python -m fastact.testing.misfits $(FUZZ_ARGS)

sanitize: .venv/installed ## run the C++ tests of vectors and kernels with two sanitizers: compiles for minutes
	$(BIN)/python tools/cpp_tests.py --sanitize

coverage: .venv/installed .venv/test-tools .venv/coverage-tools ## build with counters, run the tests, tell which lines ran
	$(BIN)/python tools/measure_coverage.py $(PYTEST_ARGS)

# In an environment of its own, kept from run to run: 6 GB with PyTorch's CUDA build.
$(FASTACT_CUDA_VENV)/installed: requirements/build.txt
	$(PYTHON) -m venv $(FASTACT_CUDA_VENV)
	$(FASTACT_CUDA_VENV)/bin/python -m pip install --quiet torch==$(CUDA_TORCH) -r requirements/build.txt
	touch $@

test-cuda-build: $(FASTACT_CUDA_VENV)/installed ## build with nvcc, and inspect what came of it; needs no GPU
	FASTACT_BUILD_CUDA=1 $(FASTACT_CUDA_VENV)/bin/python -m pip install --quiet --no-deps \
	  --no-build-isolation --force-reinstall .
	cd $(FASTACT_CUDA_VENV) && bin/python $(CURDIR)/tools/check_cuda_build.py
	$(FASTACT_CUDA_VENV)/bin/python tools/cuda_gate.py

models: .venv/installed ## convert models of other libraries (installed beside) and write docs/models.md
	$(BIN)/python -m tools.models

slow: .venv/installed .venv/test-tools ## set up, build, run the tests that take long: the guides' edits, built, and others
	$(BIN)/python -m pytest -q -m slow $(PYTEST_ARGS)

generated: .venv/installed .venv/test-tools ## compare 10,000 random modules with their conversions
	$(BIN)/python -m pytest -q -m slow tests/test_conversion_generated.py $(PYTEST_ARGS)

guide: .venv/installed .venv/test-tools ## write tables, pictures and output of docs/activations.md
	$(BIN)/python tools/write_activations.py

architectures: .venv/installed .venv/architectures-tools ## run advise on public architectures
	$(BIN)/python tools/check_advice.py --write

peers: .venv/installed .venv/peers-tools ## install the other systems that the benchmarks compare with

# mypy reads PyTorch and matplotlib, and no library that a build makes.
lint: .venv/lint-tools .venv/test-tools .venv/torch-$(TORCH) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	@! git grep --untracked -nIE '(^|[^A-Za-z0-9_.])/(work|home|root|Users)/' || \
	  { echo "a path of somebody's machine must not be committed"; exit 1; }

format: .venv/lint-tools ## format Python and C++
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

wheel: fastact/_build.py ## build a wheel into dist/
	rm -rf build/lib.* build/bdist.*
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove what the build made; .venv stays
	rm -rf build dist *.egg-info fastact/*.so fastact/_build.py .pytest_cache .mypy_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fastact needs Python 3.11 or newer with the venv module: install python3-venv," \
	         "or choose another interpreter with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv

# Named after the version, so that another TORCH= installs and builds anew.
.venv/torch-$(TORCH): requirements/build.txt | .venv/bin/python
	rm -f .venv/torch-*
	$(INSTALL) torch==$(TORCH) -r requirements/build.txt
	@touch $@

.venv/%-tools: requirements/%.txt | .venv/bin/python
	$(INSTALL) -r $<
	@touch $@

# With the version of PyTorch, which torchvision would else replace by its own.
.venv/architectures-tools: requirements/architectures.txt
	$(INSTALL) torch==$(TORCH) -r $<
	@touch $@

# setup.py writes this file last.
fastact/_build.py: .venv/torch-$(TORCH) $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace

# Editable: entry points and metadata; the code is this checkout's.
.venv/installed: pyproject.toml .venv/torch-$(TORCH) | fastact/_build.py
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
