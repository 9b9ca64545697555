# For everyone: `make demo`, `make quick`, `make test`. They set up .venv when it is missing or out of date.
PYTHON_IN_VENV := .venv/bin/python
.DEFAULT_GOAL := help

.PHONY: help setup demo demo-real quick test prove lint docs lock clean
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: ## Make .venv from the pinned requirements
	@tools/venv.sh

demo: setup ## Train a tiny agent that learns to correct itself, and show that it did
	@.venv/bin/redraft train recipes/quickstart.yaml --again

demo-real: setup ## Train a real model of 135M parameters to do as it is told; a quarter of an hour
	@.venv/bin/redraft train recipes/smollm2-words-rise.yaml --again

quick: setup ## Style, types and unit tests, 5 minutes on two cores; no apt
	@tools/check.sh style types unit

test: setup ## quick, the docs and all other tests but the long proofs: 27 to 38 minutes by the processor; asks before it installs with apt
	@tools/debian.sh promtool=prometheus chromium=chromium java=default-jre-headless
	@tools/check.sh style types docs unit integration

prove: setup ## The long proofs: many kills, many seeds
	@$(PYTHON_IN_VENV) -m pytest -m prove -s

lint: setup ## Style and types
	@tools/check.sh style types

docs: setup ## The documentation as a site, in site/
	@$(PYTHON_IN_VENV) -m tools.reference
	@NO_MKDOCS_2_WARNING=1 $(PYTHON_IN_VENV) -m mkdocs build --quiet
	@echo "site/index.html"

lock: setup ## New pins in requirements/ (or in INTO=FOLDER) from the ranges in pyproject.toml
	@$(PYTHON_IN_VENV) -m tools.lock --into $(or $(INTO),requirements)

clean: ## Remove .venv and caches; runs stay
	@rm -rf .venv .cache .pytest_cache .hypothesis .ruff_cache site *.egg-info
