# Python 3.11 or later and make are all that is needed; the rest is set up in .venv, from the locks.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test faults torture soak coverage check fmt lint types e2e run bench docs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.run ## the whole job against a simulated cluster and GitHub (ARGS='--pods 200 --keep')
	@$(BIN)/python -m tracker demo $(ARGS)

test: $(VENV)/.dev ## the tests that need nothing but this machine (ARGS='-k name')
	@$(BIN)/python -m pytest -q -m 'not e2e and not faults' $(ARGS)

faults: $(VENV)/.dev ## the whole program under outages, kills and restarts: minutes
	@$(BIN)/python -m pytest -q -m faults $(ARGS)

torture: $(VENV)/.dev ## 500 kills at named points and at random (ARGS='--rounds 100 --seed 7')
	@$(BIN)/python -m tests.torture $(ARGS)

CORE := pods images workloads annotations records inventory answers batch_answers backoff entries \
	batches refusals catalog delivery reconcile reconciler lookups pacing event_orders model app \
	what_is_recorded

coverage: $(VENV)/.dev ## lines and branches of core and work layer that their own tests reach: 95 % at least
	@$(BIN)/coverage run -m pytest -q --timeout 300 $(CORE:%=tests/test_%.py) $(ARGS)
	@$(BIN)/coverage report

soak: $(VENV)/.dev ## half an hour of churn and faults, after which nothing has grown (ARGS='--minutes 3')
	@$(BIN)/python -m tests.soak $(ARGS)

check: lint types test faults e2e ## exactly what CI runs

lint: $(VENV)/.dev ## rules, format, layers, spelling
	@$(BIN)/ruff check --quiet && $(BIN)/ruff format --quiet --check && echo 'lint: ok'
	@$(BIN)/lint-imports --no-cache >$(VENV)/.layers || { cat $(VENV)/.layers; exit 1; }
	@echo 'layers: ok'
	@$(BIN)/codespell && echo 'spelling: ok'

types: $(VENV)/.dev ## mypy, strict
	@$(BIN)/mypy

e2e: $(VENV)/.dev ## the tests on a real API server (KUBEBUILDER_ASSETS names the folder with etcd and kube-apiserver)
	@if [ -n "$$KUBEBUILDER_ASSETS" ]; then $(BIN)/python -m pytest -q -m e2e $(ARGS); \
	else echo 'e2e: skipped, KUBEBUILDER_ASSETS is not set (setup-envtest prints a folder for it)'; fi

fmt: $(VENV)/.dev ## format the code and mend what can be mended
	@$(BIN)/ruff check --quiet --fix-only && $(BIN)/ruff format

run: $(VENV)/.run ## watch the cluster of your kubeconfig (settings from the environment)
	@$(BIN)/python -m tracker run $(ARGS)

bench: $(VENV)/.dev $(if $(findstring --plots,$(ARGS)),$(VENV)/.bench) ## time the main job (a real API server with KUBEBUILDER_ASSETS, else the simulated one; ARGS=-h lists the scenarios)
	@$(BIN)/python -m bench $(ARGS)

docs: $(VENV)/.dev ## write the generated files anew
	@$(BIN)/python -m tests.support.generated

lock: $(VENV)/.python ## resolve the dependencies anew into the locks
	@$(BIN)/python -m pip install --quiet 'uv>=0.9'
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml --group dev -o requirements-dev.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --group bench -o requirements-bench.lock

clean: ## remove what was set up and what was left behind
	rm -rf $(VENV) build dist .*_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The locks carry hashes: what is installed is what was resolved. A line for each package shows
# that it goes on; the pipe must not swallow how it ended.
install = { $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r $(1); \
	echo $$? >$(VENV)/.ended; } | sed -n 's/^Collecting \([^ ]*\).*/    \1/p'; exit "$$(cat $(VENV)/.ended)"

$(VENV)/.python:
	@[ -n '$(PYTHON)' ] || { echo 'make: no Python 3.11 or later was found; install one, or name it: make PYTHON=/path/to/python3'; exit 1; }
	@echo '==> making $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv $(VENV) || { echo 'make: this Python makes no virtual environments; on Debian install python3-venv'; exit 1; }
	@touch $@

$(VENV)/.run: requirements.lock | $(VENV)/.python
	@echo '==> installing what the program needs'
	@$(call install,requirements.lock)
	@$(BIN)/python -c "import site; open(site.getsitepackages()[0] + '/here.pth', 'w').write('$(CURDIR)\n')"
	@printf '#!/bin/sh\nexec "%s" -m tracker "$$@"\n' '$(CURDIR)/$(BIN)/python' >$(BIN)/deployment-tracker
	@chmod +x $(BIN)/deployment-tracker
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/.python
	@echo '==> installing what the program and its tests need'
	@$(call install,requirements-dev.lock)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.run

$(VENV)/.bench: requirements-bench.lock | $(VENV)/.dev
	@echo '==> installing what draws plots'
	@$(call install,requirements-bench.lock)
	@touch $@
