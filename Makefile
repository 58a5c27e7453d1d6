# Everything here sets itself up: a Python of at least 3.11 and make are all that is needed. What is installed goes to
# .venv (and .venv-lowest) beside this file and is installed again only when pyproject.toml changes.
#
# PYTHON=/path/to/python3.12 make test    chooses the interpreter
# make test PYTEST_ARGS="-k memory -x"    passes more to pytest
# make bench BENCH_ARGS="set get --quick" passes more to the benchmarks, SOAK_ARGS to the soak

VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# pip understands dependency groups since 25.1.
PIP_ITSELF := 'pip>=25.1'
DEVELOPMENT := --editable '.[ai,audit,duckdb,parquet,privacy,speed]' --group dev
PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=
# Files of tests run side by side: most of a test's time is waiting for a server, a timer or a process.
WORKERS ?= 3

# The first interpreter that is new enough and can make environments; `PYTHON=…` overrides the search, not the check.
PYTHON ?=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python)
define FIND_PYTHON
for candidate in $(CANDIDATES); do \
	"$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		&& { found=$$candidate; break; }; \
done; \
if [ -z "$${found:-}" ]; then \
	echo "Python 3.11 or newer with its venv module is needed, and none of these is: $(CANDIDATES)." >&2; \
	echo "Install one (on Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1; \
fi
endef

.DELETE_ON_ERROR:
.PHONY: help demo test test-long check lint format types lower-bounds lower-bounds-short bench soak soak-projections \
	clean distclean

help:
	@echo "make demo          run the example: nine agents that share memory, on a server of their own"
	@echo "make test          lint, types, and every test, on the newest and (shortly) on the lowest dependencies"
	@echo "make check         the same, and the formatting"
	@echo "make format        format the code and sort its imports"
	@echo "make test-long     the tests that take chances, for longer: faults at random, seams under load, slow handlers"
	@echo "make lower-bounds  unit and integration tests on the lowest dependency versions pyproject.toml allows"
	@echo "make bench         measure against raw NATS, side by side"
	@echo "make soak          run for long under load and faults; make soak-projections: kill projectors for long"
	@echo "make clean         remove what builds and tests left; make distclean: the environments too"

# On a model stand-in, unless AGENTFIELD_AI_MODEL names a real one.
demo: $(VENV)/.installed$(if $(AGENTFIELD_AI_MODEL),-ai)
	$(BIN)/python -m examples.support.demo

# In the order of the files, which has the long ones first: else what has few tests comes last, however long they take.
test: lint types lower-bounds-short
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# What is tried at random, or only shows in time, is tried in short by `make test`.
test-long: $(VENV)/.installed-development
	AGENTFIELD_TEST_LONG=1 $(BIN)/python -m pytest tests/integration/test_chaos.py tests/integration/test_current.py \
		tests/integration/test_slow_handlers.py $(PYTEST_ARGS)

check: $(VENV)/.installed-development
	$(BIN)/ruff format --check .
	$(MAKE) test

lint: $(VENV)/.installed-development
	$(BIN)/ruff check .

types: $(VENV)/.installed-development
	$(BIN)/mypy

format: $(VENV)/.installed-development
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

lower-bounds: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest tests/unit tests/integration $(PYTEST_ARGS)

# All unit tests, and of the others those that show in short that a real server is served.
lower-bounds-short: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) tests/unit
	$(LOWEST)/bin/python -m pytest tests/integration -m smoke

bench: $(VENV)/.installed-development
	$(BIN)/python $(PIP_INSTALL) --group bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

soak: $(VENV)/.installed-development
	$(BIN)/python -m benchmarks.soak $(SOAK_ARGS)

# A projector is killed 50 times while it projects 100,000 events; `make test` does the same in short.
soak-projections: $(VENV)/.installed-development
	AGENTFIELD_TEST_KILLS=50 AGENTFIELD_TEST_EVENTS=100000 $(BIN)/python -m pytest tests/integration/test_projections_killed.py

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(LOWEST)

# Environments. A stamp says what is in one; it is older than its reasons to be made again, or it is current.

$(BIN)/python:
	@$(FIND_PYTHON); echo "$$found -m venv $(VENV)"; "$$found" -m venv --clear $(VENV)

$(VENV)/.installed: pyproject.toml agentfield/version.py | $(BIN)/python
	$(BIN)/python $(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-ai: pyproject.toml agentfield/version.py | $(BIN)/python
	$(BIN)/python $(PIP_INSTALL) --editable '.[ai]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-development: pyproject.toml agentfield/version.py | $(BIN)/python
	$(BIN)/python $(PIP_INSTALL) --upgrade $(PIP_ITSELF)
	$(BIN)/python $(PIP_INSTALL) $(DEVELOPMENT)
	@touch $@ $(VENV)/.installed $(VENV)/.installed-ai

$(LOWEST)/.installed: $(VENV)/.installed-development tests/support/lowest.py
	$(BIN)/python -m venv --clear $(LOWEST)
	$(BIN)/python -m tests.support.lowest > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python $(PIP_INSTALL) --upgrade $(PIP_ITSELF)
	$(LOWEST)/bin/python $(PIP_INSTALL) --constraint $(LOWEST)/constraints.txt $(DEVELOPMENT)
	@touch $@
