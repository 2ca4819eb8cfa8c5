# Ratchet's commands. Each does its own set-up: the first one on a fresh machine makes .venv from requirements.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
RATCHET_HOME ?= $(CURDIR)/.ratchet
export RATCHET_HOME
# Nothing phones home, and no library looks for models on a hub.
export HF_HUB_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1
export PYTHONUNBUFFERED = 1

BIN := .venv/bin
READY := .venv/.ready
TEST_HOME := $(CURDIR)/.ratchet/test

.PHONY: help setup demo run test test-fast test-integration test-browser check format bench bench-gateway bench-ingest bench-feedback bench-stitching bench-episodes bench-learning chaos conformance clean

help:
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 20

setup: $(READY) ## make .venv and install everything that is pinned

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "Ratchet needs Python 3.11: install it, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up .venv (about 2 GB, a minute or more on the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY) ## the whole loop on embedded services; HOLD=1 leaves the approval to you
	@$(BIN)/python manage.py demo $(if $(HOLD),--hold)

run: $(READY) ## everything for real use, in the foreground, until Ctrl-C
	@$(BIN)/python manage.py run

check: $(READY) ## format, lint, types, import contracts, migrations
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	RATCHET_HOME=$(TEST_HOME) $(BIN)/python manage.py makemigrations --check --dry-run

format: $(READY) ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: check ## the whole test suite
	@$(MAKE) --no-print-directory browser
	RATCHET_HOME=$(TEST_HOME) $(BIN)/python -m pytest --durations=25 tests

test-fast: $(READY) ## unit tests only: no database, seconds
	RATCHET_HOME=$(TEST_HOME) $(BIN)/python -m pytest tests/unit tests/architecture

test-integration: $(READY) ## real PostgreSQL, Redis, HTTP, TRL
	RATCHET_HOME=$(TEST_HOME) $(BIN)/python -m pytest tests/integration tests/e2e

test-browser: $(READY) browser ## the pages in a real browser
	RATCHET_HOME=$(TEST_HOME) $(BIN)/python -m pytest tests/browser

# Browser tests drive Debian's Chromium. Where it is missing and can be installed, install it; elsewhere they say so and skip.
.PHONY: browser
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && echo "Installing Chromium for the browser tests ..." \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	  || echo "No Chromium: the browser tests will be skipped (install the package chromium to run them)."

bench: bench-gateway bench-ingest bench-feedback bench-stitching bench-episodes bench-learning ## every benchmark; tables go to docs/benchmarks.md

# Needs taskset and, for its peers, node with npm and apt-get or an nginx; a peer that is missing becomes a row that says so.
bench-gateway: $(READY) ## what does the gateway cost, with capture on, beside its peers? 15 minutes, on two quiet cores
	$(BIN)/python -m tests.benchmarks.bench_gateway --soak

bench-ingest: $(READY) ## how fast ingest drains a spool, and how little room an agent's calls take
	$(BIN)/python -m tests.benchmarks.bench_ingest

bench-feedback: $(READY) ## how long a signal takes to be accepted, at 500 a second
	$(BIN)/python -m tests.benchmarks.bench_feedback

bench-stitching: $(READY) ## are the calls of a run found together, and no stranger's among them?
	$(BIN)/python -m tests.benchmarks.bench_stitching

bench-episodes: $(READY) ## calls to runs to episodes to snapshots: how fast, and does it stay so as history grows?
	$(BIN)/python -m tests.benchmarks.bench_episodes

bench-learning: $(READY) ## does learning work? 3 seeds, 300 held-out tasks, and a shuffled-reward control
	$(BIN)/python -m tests.benchmarks.bench_learning

conformance: $(READY) ## OpenAI's own tests and agents of six SDKs, directly and through the gateway: 5 minutes
	@$(BIN)/python -m tests.conformance

chaos: $(READY) ## 100,000 calls and 100 kills: is anything lost, doubled or wrong? SEED=N repeats a schedule
	@command -v cc >/dev/null || echo "No C compiler: clocks will not jump (install the package gcc for that)."
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED))

clean: ## stop the embedded servers and delete all state of this folder's home
	@test ! -x $(BIN)/python || $(BIN)/python manage.py stop_servers
	rm -rf $(RATCHET_HOME)
