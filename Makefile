# Two commands for a stranger: `make demo` and `make test`. Both need git, make and Python >= 3.11; everything else goes into .venv.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
JOBS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.PHONY: help demo test check format docs bench clean

help:  ## Say what each target does
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

demo: $(VENV)/.run  ## Run the whole loop with the embedded model and write $(OUT)/report.html
	$(BIN)/humanward demo $(OUT)

test: $(VENV)/.test  ## Every check: lint, format, types, floors, tests (JOBS=2 processes)
	@$(BIN)/python -m pytest -n $(JOBS)

check: $(VENV)/.test  ## Lint, format, types and floors only
	@$(BIN)/python -m pytest -q tests/test_checks.py tests/test_architecture.py

format: $(VENV)/.test  ## Format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.run  ## Make the pages of docs/ that follow from the code
	$(BIN)/python recipes/pages.py

bench: $(VENV)/.bench  ## Measure speed and memory beside peers and rewrite docs/benchmarks.md (an hour or two)
	$(BIN)/python bench/speed all --write docs/benchmarks.md

clean:  ## Remove the environment, caches and built files; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A version manager's shim may exist and not run, so each candidate is tried.
$(VENV)/.made:
	@for candidate in $(CANDIDATES); do \
		if "$$candidate" -c '$(USABLE)' 2>/dev/null; then \
			echo "Making $(VENV) with $$candidate; the first installation takes a few minutes." >&2; \
			"$$candidate" -m venv --clear $(VENV) && touch $@; \
			exit; \
		fi; \
	done; \
	echo "make: no Python >= 3.11 with venv found: install one (on Debian and Ubuntu also python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.bench: $(VENV)/.run
	@$(PIP) -e '.[bench]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/trl-1.12.0 'trl==1.12.0'
	@touch $@
