# Everything a clone needs. `make` lists the targets; a second call of any of them is quick.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

HOST ?= 127.0.0.1
PORT ?= 8000
SCHEMA ?= examples/calendar/schema.yaml
DATABASE ?= sqlite:///$(CURDIR)/var/tidemark.db
WORKERS ?= 2
TESTS ?= tests
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)

# Databases of tests live in memory where there is room: they are made by the thousand, and no test cuts the power.
SCRATCH ?= $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 6000000 {found = 1; print "/dev/shm"} \
	END {if (!found) print ENVIRON["TMPDIR"] ? ENVIRON["TMPDIR"] : "/tmp"}')

VENV := .venv
CLIENT := client_reference/typescript
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet
COMPILE := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --generate-hashes \
	--python-version 3.11 pyproject.toml

.PHONY: help setup serve test client lint demo bench generate lock secrets clean packages

help:  ## List the targets.
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.dev packages $(CLIENT)/node_modules/.package-lock.json  ## Install everything, tests and their database included.

serve: $(VENV)/.run  ## Run the service with SQLite and the calendar example (HOST, PORT, SCHEMA, DATABASE).
	@mkdir -p var
	@exec $(BIN)/tidemark serve --schema "$(SCHEMA)" --database "$(DATABASE)" --host "$(HOST)" --port "$(PORT)" --migrate

test: setup lint $(if $(filter tests,$(TESTS)),client)  ## Run every check and every test (TESTS=tests/protocol for some of them).
	TMPDIR="$(SCRATCH)" $(BIN)/python -m pytest -n $(WORKERS) $(TESTS)

client: setup  ## Build and test the browser client, its size and its documentation included.
	tools/client run package
	tools/client run docs:check
	tools/client test
	@if command -v chromium >/dev/null || test -n "$${CHROMIUM:-}"; then tools/client run test:browser; \
		else echo 'Chromium is missing: the tests of the client in a browser do not run.'; test -z "$${CI:-}"; fi

lint: $(VENV)/.dev $(CLIENT)/node_modules/.package-lock.json  ## Style, types and the order of imports.
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo
	tools/client run check

demo: $(VENV)/.dev  ## Watch two devices edit the same rows offline and come to the same state.
	@$(BIN)/python -m examples.demo

bench: setup bench/socketio/node_modules  ## Measure the service beside the limit of the same database, and socket.io.
	@$(BIN)/python -m bench

generate: $(VENV)/.dev  ## Write again what is made from other files: the TypeScript of the protocol and the examples.
	@$(BIN)/python -m tools.generate

lock: $(VENV)/.dev  ## Lock the versions again (UPGRADE=--upgrade takes the newest).
	$(COMPILE) $(UPGRADE) --group build -o requirements/run.txt
	$(COMPILE) $(UPGRADE) --group build --all-extras -c requirements/run.txt -o requirements/image.txt
	$(COMPILE) $(UPGRADE) --group dev -c requirements/run.txt -o requirements/dev.txt

secrets:  ## Make up the secrets of compose.yaml, once.
	@tools/secrets

clean:  ## Remove what was installed or built; var/, the data, stays.
	rm -rf $(VENV) bench/socketio/node_modules build dist $(addprefix $(CLIENT)/,node_modules build dist *.tgz)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# The servers are there for the tests. Without them these run on SQLite and say so. Of the others than PostgreSQL the
# programs are enough: packages with a service for the whole machine are not wanted. Redis's tools hold the server too.
packages: | $(BIN)/python
	@compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null \
		|| tools/packages postgresql || echo 'PostgreSQL is missing: its tests will not run.'
	@PATH="$$PATH:/usr/sbin"; { command -v mariadbd && command -v mariadb; } >/dev/null \
		|| tools/packages mariadb-server-core mariadb-client-core || echo 'MariaDB is missing: its tests will not run.'
	@{ command -v redis-server || command -v valkey-server || command -v redis-check-rdb; } >/dev/null \
		|| tools/packages redis-tools || echo 'Redis is missing: its tests will not run.'
	@PATH="$$PATH:/usr/sbin:$(CURDIR)/$(BIN)"; command -v nats-server >/dev/null \
		|| tools/unpack nats-server usr/sbin/nats-server $(BIN) || echo 'NATS is missing: its tests will not run.'
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| tools/packages chromium || echo 'Chromium is missing: tests in a browser will not run.'

$(CLIENT)/node_modules/.package-lock.json: $(CLIENT)/package-lock.json
	@tools/client ci --no-audit --no-fund

bench/socketio/node_modules: bench/socketio/package-lock.json
	@if command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund --prefix bench/socketio; \
		else echo 'Node.js is missing: nothing will stand beside the stream.'; fi

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'Tidemark needs Python 3.11 or newer.' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || tools/packages python3-venv
	$(PYTHON) -m venv $(VENV)

# The locks name everything: with --no-deps nothing is resolved again, and a newer release of something cannot upset that.
$(VENV)/.run: requirements/run.txt pyproject.toml | $(BIN)/python
	$(PIP) --no-deps --require-hashes -r requirements/run.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	$(PIP) --no-deps --require-hashes -r requirements/dev.txt
	@touch $@
