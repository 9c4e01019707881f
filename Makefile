# Two commands matter: `make quickstart` and `make test`. Both set up what they need.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# These want other versions than retrain.
VLLM_VENV := .venv-vllm
SGLANG_VENV := .venv-sglang
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One thread a process: several processes with several threads each fight over the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
# For `make chaos`: how many processes are killed, by which random order, and what is switched on.
KILLS  ?= 60
SEED   ?= 1
ALSO   ?= tracking squeeze stopping
PROPERTIES = $(shell grep -rl --include='test_*.py' '^from hypothesis' tests)

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint format chaos fuzz vllm sglang bench docs model clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 14

quickstart: $(VENV)/.installed  ## train a whole campaign on the embedded model and show what came out
	@$(BIN)/retrain campaigns/quickstart.toml

test: $(VENV)/.installed-dev  ## the whole test suite
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

lint: $(VENV)/.installed-dev  ## ruff and mypy --strict
	@$(BIN)/ruff check src tests benchmarks
	@$(BIN)/ruff format --check src tests benchmarks
	@$(BIN)/mypy

format: $(VENV)/.installed-dev  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix src tests benchmarks
	@$(BIN)/ruff format src tests benchmarks

chaos: $(VENV)/.installed-dev  ## kill and resume campaigns 60 times; every file must come out the same
	@$(BIN)/python tests/integration/chaos.py --kills $(KILLS) --seed $(SEED) --also $(ALSO)

fuzz: $(VENV)/.installed-dev  ## the properties on examples that no run has drawn before
	@HYPOTHESIS_PROFILE=fuzz $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) $(PROPERTIES)

vllm: $(VENV)/.installed-dev $(VLLM_VENV)/.installed  ## runs at a real vLLM for CPUs, which it installs
	@$(ONE_THREAD) $(BIN)/python -m pytest -vv -s --durations=10 tests/integration/real_vllm.py

sglang: $(VENV)/.installed-dev $(SGLANG_VENV)/.installed  ## the same at a real SGLang
	@$(ONE_THREAD) $(BIN)/python -m pytest -vv -s --durations=10 tests/integration/real_sglang.py

bench: $(VENV)/.installed-bench  ## this trainer's step beside TRL's, in one run
	@$(BIN)/python benchmarks/step_vs_trl.py
	@$(BIN)/python benchmarks/profile_step.py

docs: $(VENV)/.installed  ## write the config reference and the JSON schema from the schema
	@$(BIN)/python -m retrain.config.reference

model: $(VENV)/.installed  ## make the embedded model again, from nothing
	@$(BIN)/python -m retrain.models.tiny

clean:  ## remove the environments and caches; logs/ stays
	rm -rf $(VENV) $(VLLM_VENV) $(SGLANG_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "retrain needs Python 3.11 or newer; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing retrain into $(VENV) (a minute or two, once)"
	@$(PIP) torch
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@$(PIP) -e '.[bench]'
	@touch $@

$(VLLM_VENV)/.installed: tests/integration/install_server.py | $(VENV)/.installed-dev
	@$(BIN)/python $< vllm $(VLLM_VENV)
	@touch $@

$(SGLANG_VENV)/.installed: tests/integration/install_server.py | $(VENV)/.installed-dev
	@$(BIN)/python $< sglang $(SGLANG_VENV)
	@touch $@
