# For everyone: `make demo`, `make demo-real`, `make test`. They set up .venv when it is missing or out of date.
PYTHON_IN_VENV := .venv/bin/python
.DEFAULT_GOAL := help

.PHONY: help setup demo demo-real test prove lint docs lock clean
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: ## Make .venv from the pinned requirements
	@tools/venv.sh

demo: setup ## Train a tiny agent that learns to correct itself, and show that it did
	@.venv/bin/redraft train recipes/quickstart.yaml --again

demo-real: setup ## Train a real model of 135M parameters to do as it is told; a quarter of an hour
	@.venv/bin/redraft train recipes/smollm2-words-rise.yaml --again

test: setup ## All tests, under 20 minutes on two cores
	@tools/debian.sh promtool=prometheus chromium=chromium
	@$(PYTHON_IN_VENV) -m ruff check .
	@NO_MKDOCS_2_WARNING=1 $(PYTHON_IN_VENV) -m mkdocs build --quiet
	@OMP_NUM_THREADS=1 $(PYTHON_IN_VENV) -m pytest -m "not prove" tests/unit -n 2 --dist loadfile
	@$(PYTHON_IN_VENV) -m pytest -m "not prove" tests/integration tests/chaos -n 2 --dist loadfile --no-loadscope-reorder

prove: setup ## The long proofs: many kills, many seeds
	@$(PYTHON_IN_VENV) -m pytest -m prove -s

lint: setup ## Style
	@$(PYTHON_IN_VENV) -m ruff check .
	@$(PYTHON_IN_VENV) -m ruff format --check .

docs: setup ## The documentation as a site, in site/
	@$(PYTHON_IN_VENV) -m tools.reference
	@NO_MKDOCS_2_WARNING=1 $(PYTHON_IN_VENV) -m mkdocs build --quiet
	@echo "site/index.html"

lock: setup ## New pins in requirements/ (or in INTO=FOLDER) from the ranges in pyproject.toml
	@$(PYTHON_IN_VENV) -m tools.lock --into $(or $(INTO),requirements)

clean: ## Remove .venv and caches; runs stay
	@rm -rf .venv .cache .pytest_cache .hypothesis .ruff_cache site *.egg-info
