# One screen of targets; `make` lists them. Everything that is set up stays in .venv and build/.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
LOCKED := mkdir -p build && flock build/.lock
NATIVE_INPUTS := $(wildcard csrc/*.c csrc/*.h csrc/*.map csrc/core/* csrc/driver/* csrc/python/*) native.mk build_ffi.py setup.py
DEMO_QUOTES := $(wildcard ../shared/data/*.csv)
CTEST := $(MAKE) --no-print-directory -s -j2 -C tests/c
PYTEST := $(PY) -m pytest
OPERATIONS := $(PYTEST) -q -o addopts=--import-mode=importlib benchmarks --benchmark-only --benchmark-max-time=0.2 \
	--benchmark-columns=median,iqr,rounds --benchmark-sort=name
PEERS := 'faster-fifo>=1.4' 'iceoryx2>=0.10' 'tachyon-ipc>=0.5' 'cmake>=3.30'

.DEFAULT_GOAL := help
.PHONY: help demo test build check lint format generate ctest asan tsan unit models fuzz arm64 bench bench-report simulate simulate-mutations stress soak reliability reliability-page ecosystem docs clean

help:            ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-18s %s\n' "$$name" "$$text"; done

# Only what the package needs to run: `make demo` on a fresh machine waits for no test tool.
$(VENV)/.run-stamp: pyproject.toml
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo 'installing shmdriver into $(VENV)'
	@$(PIP) install 'setuptools>=68' wheel 'cffi>=1.16'
	@$(LOCKED) $(PIP) install --no-build-isolation -e .
	@touch $@

$(VENV)/.dev-stamp: pyproject.toml $(VENV)/.run-stamp
	@echo 'installing test and benchmark tools into $(VENV)'
	@$(LOCKED) $(PIP) install --no-build-isolation -e '.[dev,bench]'
	@touch $@

build/.native-stamp: $(NATIVE_INPUTS) $(VENV)/.run-stamp
	@$(LOCKED) $(PY) setup.py -q build_ext --inplace
	@touch $@

build: build/.native-stamp    ## editable install in .venv, native module in place

demo: build      ## see it work: real data between processes, and what survives kill -9
	@$(PY) -m shmdriver demo $(addprefix --quotes ,$(DEMO_QUOTES)) $(DEMO_ARGS)

lint: build $(VENV)/.dev-stamp    ## ruff, mypy --strict, generated files up to date
	@$(PY) -m ruff check -q .
	@$(PY) -m mypy src scripts tests examples build_ffi.py $(wildcard benchmarks)
	@$(PY) scripts/generate_abi.py --check
	@$(PY) scripts/generate_lifecycle.py --check

format: $(VENV)/.dev-stamp    ## rewrite Python files in the house format
	@$(PY) -m ruff format .

generate: $(VENV)/.run-stamp    ## rewrite what is derived from csrc/shmd_abi.h and from the lifecycle's table
	@$(PY) scripts/generate_abi.py
	@$(MAKE) --no-print-directory build
	@$(PY) scripts/generate_lifecycle.py

ctest:           ## C tests, plain
	@$(CTEST) PROFILE=release run

asan:            ## C tests under ASAN and UBSAN
	@$(CTEST) PROFILE=asan run

tsan:            ## C tests of the rings between threads, under TSAN
	@$(CTEST) PROFILE=tsan run

unit: build $(VENV)/.dev-stamp    ## Python unit tests
	@$(PYTEST) -q tests/unit

test: build lint ctest asan tsan $(VENV)/.dev-stamp    ## build everything, lint, C tests, sanitizers, models, a slice of fuzzing, all Python tests
	@$(PYTHON) scripts/check_models.py --no-mutations || test $$? -eq 77
	@$(MAKE) --no-print-directory fuzz SECONDS=$(or $(SECONDS),4)
	@$(PYTEST) -q -m 'not stress' tests/unit tests/integration tests/chaos tests/fuzz

check: build $(VENV)/.dev-stamp    ## before a commit: format, lint, types, unit, C tests, sanitizers
	@$(PY) -m ruff format --check -q .
	@$(MAKE) --no-print-directory lint ctest asan tsan unit

models:          ## Spin models of docs/MEMORY_MODEL.md: every property, every mutation (minutes; needs spin)
	@$(PYTHON) scripts/check_models.py || test $$? -eq 77

fuzz:            ## libFuzzer targets of tests/fuzz: make fuzz SECONDS=60 runs each for a minute
	@$(MAKE) --no-print-directory -s -j2 -C tests/fuzz SECONDS=$(or $(SECONDS),60) run

# Says plainly what is missing: a run that shows nothing must not look like one that passed.
ARM64_TOOLS := aarch64-linux-gnu-gcc qemu-aarch64
arm64:           ## C tests built for ARM64, run under qemu-user (shows sizes and arithmetic, not its weak memory: that is `make models`)
	@for tool in $(ARM64_TOOLS); do command -v $$tool >/dev/null || { \
		echo "arm64: SKIPPED, nothing was built: $$tool is missing (Debian: gcc-aarch64-linux-gnu qemu-user)"; exit 0; }; done; \
	$(CTEST) PROFILE=arm64 SECONDS_MAX=600 run

# A peer that cannot be installed here is no error: the report says so.
$(VENV)/.bench-stamp: pyproject.toml $(VENV)/.dev-stamp
	@echo 'installing plots and peers into $(VENV)'
	@$(PIP) install 'matplotlib>=3.8'
	@for peer in $(PEERS); do $(PIP) install "$$peer" 2>/dev/null || echo "  $$peer cannot be installed here"; done
	@touch $@

bench: build $(VENV)/.bench-stamp    ## all benchmarks, against the peers that can be installed here
	@$(PY) -m benchmarks $(BENCH_ARGS)
	@$(OPERATIONS) --benchmark-json=build/bench/operations.json

bench-report: build $(VENV)/.bench-stamp    ## measure everything and rewrite the figures and plots of docs and README
	@$(PY) -m benchmarks.report --measure

simulate: build $(VENV)/.dev-stamp    ## the driver under a fake clock, from 10,000 seeds; SEED=4711: that one, with all that happened
	@$(PY) -m tests.simulation $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) $(SIMULATE_ARGS)

simulate-mutations: build $(VENV)/.dev-stamp    ## break the driver in known ways: the simulation must notice each
	@$(PY) -m tests.simulation --mutations

stress: build $(VENV)/.dev-stamp    ## minutes of kills, hand-offs, hostile clients, fuzzing, also under sanitizers
	@$(CTEST) PROFILE=release STRESS=1 SECONDS_MAX=1200 run
	@$(CTEST) PROFILE=asan STRESS=1 SECONDS_MAX=1200 run
	@$(CTEST) PROFILE=tsan STRESS=1 SECONDS_MAX=1200 run
	@$(MAKE) --no-print-directory fuzz SECONDS=60
	@$(PYTEST) -q -s -m stress tests; code=$$?; test $$code -eq 5 || exit $$code

soak: build $(VENV)/.dev-stamp    ## MINUTES=60 of load with random kills and stops, under stress-ng where there is one
	@$(PY) -m tests.chaos.soak --minutes $(or $(MINUTES),60) $(SOAK_ARGS)

reliability: build ctest $(VENV)/.dev-stamp    ## run every test of a fault, and rewrite docs/RELIABILITY.md
	@code=0; $(PYTEST) -q -m 'fault and not stress' tests || code=$$?; $(PY) scripts/reliability.py --passed tests/c; exit $$code
	@if $(PYTHON) scripts/check_models.py >build/models.log; then $(PY) scripts/reliability.py --passed models; else test $$? -eq 77; fi
	@$(MAKE) --no-print-directory fuzz SECONDS=10 && $(PY) scripts/reliability.py --passed tests/fuzz

reliability-page: build    ## rewrite docs/RELIABILITY.md from the sources and from what was run before
	@$(PY) scripts/reliability.py

# The packages stay out of `make test`, which skips what is not installed.
ecosystem: build $(VENV)/.dev-stamp    ## install pyarrow, pandas, polars; test what takes our views without a copy
	@$(LOCKED) $(PIP) install --no-build-isolation -e '.[ecosystem]'
	@$(PYTEST) -q tests/integration/test_ecosystem.py tests/integration/test_examples.py

docs: build      ## API reference from the docstrings, into build/docs
	@$(PIP) install --no-build-isolation -e '.[docs]'
	@$(PY) scripts/make_docs.py build/docs

clean:           ## remove everything that was built (not .venv)
	rm -rf build dist src/shmdriver/native src/shmdriver/_native.c src/shmdriver/_native*.so src/*.egg-info
