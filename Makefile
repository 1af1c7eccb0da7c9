# make demo | test | test-fast | check | chaos | bench | bench-peers
#
# Each target does its own set-up: a .venv beside this file, made once and again when pyproject.toml changes. uv is used
# when it is installed, else Python's venv and pip. Arguments go on: make demo ARGS="--seconds 10".
# Many a test waits, for processes of its own or for a disk: three at a time keep two cores busy.

VENV   := .venv
PYTHON := $(VENV)/bin/python
ARGS   ?=
THREE  := -n 3 --dist worksteal
PEERS  := $(patsubst bench/peers/%.txt,%,$(wildcard bench/peers/*.txt))
PEERS_PYTHON ?= $(PYTHON)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-fast check chaos bench bench-peers clean

help:
	@echo 'make demo        a thousand synthetic sensors and this machine'\''s own, live; ARGS="--seconds 10 --rate 50000"'
	@echo 'make test        everything: check, then every test'
	@echo 'make test-fast   the tests that are not slow: under two minutes on two cores'
	@echo 'make check       ruff (format and lint), mypy --strict, and that nothing from outside is unpickled or evaluated'
	@echo 'make chaos       kills, stops and failing disks by the thousand, each campaign up to an hour; ARGS="lanes --strikes 50"'
	@echo 'make bench       the numbers of bench/README.md, as ratios measured in one run'
	@echo 'make bench-peers the stream engines that python -m bench streams compares with, each in bench/.peers/NAME'
	@echo 'make clean       remove .venv and caches'

demo: $(VENV)/.all
	@$(VENV)/bin/tidemill demo $(ARGS)

test: check compiled
	@$(PYTHON) -m pytest $(THREE) $(ARGS)

test-fast: compiled
	@$(PYTHON) -m pytest $(THREE) -m 'not slow' $(ARGS)

check: $(VENV)/.dev
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m mypy
	@$(PYTHON) -m pytest -q tests/test_dangerous_calls.py

chaos: compiled
	@$(PYTHON) -m tests.chaos --long $(ARGS)
	@$(PYTHON) -m tests.chaos.planted_in_runs

bench: $(VENV)/.dev
	@$(PYTHON) -m bench $(ARGS)

bench-peers: $(PEERS:%=bench/.peers/%/.made)

# Tests start processes by the thousand: where Python is told to write no bytecode, each would compile all sources anew.
.PHONY: compiled
compiled: $(VENV)/.dev
	@$(PYTHON) -m compileall -q src

clean:
	rm -rf $(VENV) bench/.peers .mypy_cache .ruff_cache .pytest_cache .hypothesis

# -- set-up ------------------------------------------------------------------------------------------------

$(VENV)/.all: EXTRAS := all
$(VENV)/.dev: EXTRAS := all,dev

$(VENV)/.all $(VENV)/.dev: pyproject.toml
	@echo 'Setting up $(VENV) with tidemill[$(EXTRAS)]; the first time takes a minute or two.'
	@set -e; \
	if command -v uv >/dev/null 2>&1; then \
	    $(PYTHON) -c '' 2>/dev/null || uv venv --quiet --clear --python '>=3.11' $(VENV); \
	    uv pip install --quiet --python $(PYTHON) --editable '.[$(EXTRAS)]'; \
	else \
	    python=; \
	    for one in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	        if $$one -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python=$$one; break; fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo 'tidemill needs Python 3.11 or newer, and none was found as python3, python3.14 ... python3.11.' >&2; \
	        exit 1; \
	    fi; \
	    if ! $$python -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	        echo "$$python has no venv; on Debian and Ubuntu install it with: sudo apt install python3-venv" >&2; \
	        exit 1; \
	    fi; \
	    $(PYTHON) -m pip --version >/dev/null 2>&1 || $$python -m venv --clear $(VENV); \
	    $(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'; \
	fi
	@touch $(VENV)/.all $@

# .venv is made when it is the one that is asked for, and left alone when another interpreter is.
.PHONY: peers-python
peers-python: $(if $(filter $(PYTHON),$(PEERS_PYTHON)),$(VENV)/.dev)

# One environment for each stream engine, with the interpreter of .venv, so that both sides run the same; an engine
# that has no wheels for it is made with another by: make bench-peers PEERS_PYTHON=python3.12
bench/.peers/%/.made: bench/peers/%.txt | peers-python
	@echo 'Setting up bench/.peers/$*.'
	@set -e; \
	if command -v uv >/dev/null 2>&1; then \
	    uv venv --quiet --clear --python $(PEERS_PYTHON) bench/.peers/$*; \
	    uv pip install --quiet --python bench/.peers/$*/bin/python --requirement $<; \
	else \
	    $(PEERS_PYTHON) -m venv --clear bench/.peers/$*; \
	    bench/.peers/$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<; \
	fi
	@command -v java >/dev/null 2>&1 || [ $* != pyflink ] || echo 'PyFlink needs Java 17: sudo apt install openjdk-17-jre-headless' >&2
	@touch $@
