# One command for each thing to do; each sets up all that it needs, and a second call is quick.
#
# Which Python is used:
#   make demo                     .venv, created with python3 and filled from constraints.txt
#   make demo VENV=dir            that environment. If it is not there, it is made like .venv (with
#                                 PYTHON=, if given). If it is, it keeps the packages it has, torch
#                                 above all: only what is missing is installed.
#   make demo PYTHON=python3.12   that interpreter, with no new environment; it keeps its packages too.
# ARGS= goes to a target's command: make demo ARGS="--epochs 10".

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo data gallery test test-all sanitize bench lint format docs build wheel sdist \
	wheel-check cuda-build-check clean
SHELL := /bin/bash

chosen = $(filter command environment,$(firstword $(origin $(1))))
ifeq ($(if $(call chosen,PYTHON),$(call chosen,VENV),venv),)
  PY := $(shell command -v $(PYTHON))
  $(if $(PY),,$(error PYTHON=$(PYTHON): there is no such interpreter))
else
  PYTHON ?= python3
  VENV ?= .venv
  PY := $(VENV)/bin/python
endif
PIP := $(PY) -m pip --disable-pip-version-check
# Without compiling to bytecode: most of what is installed is never imported.
INSTALL = $(PIP) install --no-compile -c $(PINS)
PYTEST = $(PY) -m pytest -q -n auto

# What has been set up is remembered here, for each interpreter. An environment that is gone takes
# its stamps with it.
STAMPS := build/stamps/env$(subst /,_,$(abspath $(PY)))
ifeq ($(wildcard $(PY)),)
  $(shell rm -rf $(STAMPS))
endif
PINS := $(STAMPS)/constraints.txt
space := $(subst ,, )
NATIVE := $(STAMPS)/native$(addprefix -,$(subst $(space),+,$(strip $(FUSEDRNN_CPU_TARGETS))))
ENVIRONMENT := $(patsubst %/bin/,%,$(dir $(PY)))
MADE_HERE := $(ENVIRONMENT)/made-by-fusedrnn

help:  ## this text
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' Makefile

demo: build $(STAMPS)/with-demo  ## the main job: train a digit reader with torch.nn.LSTM and with fusedrnn.LSTM
	$(PY) examples/compare.py $(ARGS)

data: $(STAMPS)/with-examples $(STAMPS)/data  ## the packages that the examples need, and those whose data they read

gallery: build data  ## run all examples, and make the page of their pictures and numbers: 7 minutes
	$(PY) tools/gallery.py $(ARGS)

test:  ## lint, then the tests on all cores
	@$(MAKE) --no-print-directory -j2 $(NATIVE) linted  # one waits for disks, one computes
	@$(MAKE) --no-print-directory build
	$(PYTEST) $(ARGS)

test-all:  ## everything that can be tested, on every instruction set: about an hour
	@$(MAKE) --no-print-directory build $(STAMPS)/tested lint FUSEDRNN_CPU_TARGETS=all
	$(PYTEST) --thorough $(ARGS)

sanitize: $(STAMPS)/requirements  ## the CPU kernels on random problems, with sanitizers: two minutes
	PYTHONPATH=tests $(PY) -m sanitize.run $(ARGS)

bench: build $(STAMPS)/with-bench  ## measure against torch.nn
	$(PY) -m benchmarks $(ARGS)

# Each is a target of its own, for the hooks of .pre-commit-config.yaml.
LINT := ruff-check ruff-format clang-format mypy
.PHONY: $(LINT)
lint: $(LINT)  ## ruff, clang-format and mypy
$(LINT) format: $(STAMPS)/requirements $(STAMPS)/with-lint
.PHONY: linted
linted: $(STAMPS)/tested  # no other pip meanwhile
	@$(MAKE) --no-print-directory lint

# clang-format comes from PyPI, as a package with a program in it.
CPP_FILES := csrc tests tools benchmarks -regextype egrep -regex '.*[.](h|cpp|cuh?)'
CLANG_FORMAT = $(shell $(PY) -c 'from clang_format import *; print(get_executable("clang-format"))')
ruff-check:
	$(PY) -m ruff check .
ruff-format:
	$(PY) -m ruff format --check .
clang-format:
	find $(CPP_FILES) -exec $(CLANG_FORMAT) --dry-run -Werror {} +
mypy:
	$(PY) -m mypy

format:  ## format Python and C++ as lint wants it
	$(PY) -m ruff format .
	find $(CPP_FILES) -exec $(CLANG_FORMAT) -i {} +

docs: $(STAMPS)/with-docs  ## the documentation, into build/site
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet $(ARGS)
	@echo "build/site/index.html"

build: $(NATIVE) $(STAMPS)/installed  ## the native libraries, for this machine or FUSEDRNN_CPU_TARGETS

CUDA_TORCH := 2.14.1

# For a release, with both libraries: FUSEDRNN_BUILD_CUDA=1 make wheel sdist wheel-check. A CPU build
# of torch will do. Builds for those of these Pythons that are found, on PATH or by pyenv.
WHEEL_PYTHONS := 3.10 3.11 3.12 3.13
wheel: $(STAMPS)/requirements  ## dist/*.whl, one for each Python of WHEEL_PYTHONS
	$(PY) tools/wheels.py build $(WHEEL_PYTHONS)

sdist: $(STAMPS)/requirements  ## dist/*.tar.gz, the sources
	$(PY) tools/wheels.py sdist

# Every wheel beside the first of these, that of our Python beside all: gigabytes are downloaded.
WHEEL_TORCHES := $(shell sed -n 's/^torch==//p' constraints.txt) $(CUDA_TORCH) 2.10.0
wheel-check: $(STAMPS)/requirements  ## install dist/*.whl where no compiler is and test them there
	$(PY) tools/wheels.py check $(WHEEL_TORCHES)

# All that a wheel with the CUDA library holds, for all our architectures, beside a CUDA build of
# torch: in an environment made for this, or with VENV= or PYTHON= in one that is there, which gets
# the build tools if it lacks them and is left alone otherwise.
CHECKED := build/cuda-build-check
ifeq ($(call chosen,VENV)$(call chosen,PYTHON),)
cuda-build-check:  ## build the CUDA library with nvcc and check what can be checked without a GPU
	@$(MAKE) --no-print-directory $@ VENV=.venv-cuda PYTHON=$(PYTHON) TORCH_PIN=$(CUDA_TORCH)
else
cuda-build-check: $(STAMPS)/requirements
	rm -rf $(CHECKED)
	FUSEDRNN_BUILD_CUDA=1 $(PY) setup.py -q build --build-lib $(CHECKED)
	PYTHONPATH=$(CHECKED) $(PY) -W ignore tools/cuda_build_check.py
endif

clean:  ## remove what was built; environments stay
	rm -rf build dist *.egg-info results .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf fusedrnn/lib fusedrnn/_C.*.so
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

ifdef VENV
$(PY):
	mkdir -p $(VENV) && touch $(MADE_HERE)
	$(PYTHON) -m venv $(VENV)
endif

# An environment of our own is pinned to constraints.txt; any other to what it has, and to our torch
# if it has none. pip and setuptools build things and are free to be newer.
$(PINS): constraints.txt $(wildcard $(ENVIRONMENT)/pyvenv.cfg) | $(PY)
	@mkdir -p $(STAMPS)
	@$(PY) -m pip --version >/dev/null || $(PY) -m ensurepip
	@if [ -e $(MADE_HERE) ]; then \
	  sed '$(if $(TORCH_PIN),s/^torch==.*/torch==$(TORCH_PIN)/)' constraints.txt > $@; else \
	  $(PIP) list --format=freeze | grep -viE '^(fusedrnn|pip|setuptools)==' > $@; \
	  grep -qi '^torch==' $@ || grep '^torch==' constraints.txt >> $@; fi

# What the library is built with, and runs on.
$(STAMPS)/requirements: $(PINS) pyproject.toml
	$(INSTALL) 'setuptools>=77' 'torch>=2.10' ninja pybind11
	@touch $@

# What an extra of pyproject.toml asks for, without the library.
$(STAMPS)/with-%: $(PINS) pyproject.toml tools/extras.py
	$(INSTALL) $$($(PY) tools/extras.py $*)
	@touch $@
$(STAMPS)/with-test: $(STAMPS)/requirements  # among its libraries are some that want a torch

# Packages for their data: what they depend on would be a gigabyte that nobody imports.
$(STAMPS)/data: $(PINS) examples/data.txt
	$(INSTALL) --no-deps -r examples/data.txt
	@touch $@
$(STAMPS)/tested: $(STAMPS)/with-test examples/data.txt  # one pip after the other, under -j, too
	@$(MAKE) --no-print-directory $(STAMPS)/data
	@touch $@

# Built in sight first: pip, which builds the same thing, hides the progress and finds it done.
$(NATIVE): $(STAMPS)/requirements setup.py fusedrnn/__init__.py $(shell find csrc -type f)
	$(PY) setup.py -q build_ext --inplace
	@rm -f $(STAMPS)/native* && touch $@
$(STAMPS)/installed: setup.py pyproject.toml | $(NATIVE)
	$(INSTALL) -q --no-build-isolation --no-deps -e .
	@touch $@
