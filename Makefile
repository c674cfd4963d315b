# Each target sets up what it needs in .venv, once. PYTHON=... picks another interpreter.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test test-cluster lint reference campaign clean

# A version manager's shim may exist and still fail, so each candidate must run, be new enough
# and be able to create an environment with pip. Evaluated only when .venv is made.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON = $(shell for p in python3.12 python3.11 python3.13 python3.14 python3; do \
	$$p -c '$(USABLE)' >/dev/null 2>&1 && echo $$p && break; done)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | expand -t 16 | sed 's/^/make /'

train: .venv/.ready ## train the default recipe on CIFAR-10 (ARGS="--epochs 2" adds options)
	@exec .venv/bin/leanres train --data auto $(ARGS)

test: .venv/.ready ## run the tests (ARGS="tests/models -x" adds options)
	@OMP_NUM_THREADS=1 exec .venv/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

test-cluster: .venv-cluster/.ready ## run the tests on real Ray (Linux; some 10 minutes)
	@OMP_NUM_THREADS=1 LEANRES_CLUSTER_RESULTS=$(CURDIR)/results/bench/cluster.json \
		exec .venv-cluster/bin/python -m pytest tests/cluster $(ARGS)

lint: .venv/.ready ## check style, format and types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

reference: .venv/.ready ## write docs/commands.md and the files of docs/architecture.md from the code
	@.venv/bin/python docs/commands.py
	@.venv/bin/python docs/architecture.py

campaign: .venv/.ready ## look for faults at length, about an hour (ARGS="kills two_writers": these parts)
	@OMP_NUM_THREADS=1 exec .venv/bin/python tests/faults/campaign.py $(ARGS)

clean: ## remove .venv, builds and caches; runs/ stays
	rm -rf .venv .venv-cluster build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +

.venv/.ready: PACKAGES = -e '.[dev]'
.venv-cluster/.ready: PACKAGES = -e '.[cluster,search]' pytest

# The stamp is written last, so an interrupted setup is repeated. A working environment is kept.
# compileall uses all cores where pip uses one; a few files need another Python and fail in it.
.venv/.ready .venv-cluster/.ready: pyproject.toml constraints.txt
	@$(@D)/bin/python -c '$(USABLE)' 2>/dev/null || { \
		python="$(PYTHON)"; test -n "$$python" || { \
		echo "no Python 3.11 or newer with venv found: install one, or name it: make PYTHON=..." >&2; \
		exit 1; }; \
		"$$python" -m venv --clear $(@D); }
	@echo "installing into $(@D) (once, a minute or two)"
	@$(@D)/bin/python -m pip install -qq --no-compile --disable-pip-version-check \
		-c constraints.txt $(PACKAGES)
	@$(@D)/bin/python -m compileall -qq -j 0 $(@D)/lib || true
	@touch $@
