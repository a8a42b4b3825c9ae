# Needs Python 3.11 or newer, make, and a network that reaches the package index; the rest is
# installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Processes that share the tests, file by file; 0 runs them in one process, for a debugger. Half of
# the tests' time is waiting: four processes keep two cores busy.
JOBS ?= 4
DIRECTORY ?= /var/tmp
QUEUED ?= 50000
ROUNDS ?= 5

INSTALLED := $(VENV)/.installed
INSTALLED_LINT := $(VENV)/.installed-lint
PEERS := .venv-peers
INSTALLED_BENCH := $(VENV)/.installed-bench
INSTALLED_DOCS := $(VENV)/.installed-docs
INSTALLED_PEERS := $(PEERS)/.installed

# tests/conftest.py has the order of the files.
SHARED := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# The tests start hundreds of interpreters, each of which would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-all mutation map lint docs bench bench-peers dist clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=python3.12 chooses the interpreter that .venv is made with,"
	@echo "  DEMO_PORT=8000 sets the port of the demo, ARGS='-k demo' adds arguments for pytest, JOBS=0"
	@echo "  runs the tests in one process, DIRECTORY=/var/tmp is where the benchmarks have their queues"
	@echo "  (a disk with a journal), QUEUED=1000000 how many files the longest of them has."

demo: $(INSTALLED) ## Run the demo: application, queue processor and relay; Ctrl-C stops them
	@exec $(BIN)/python -m demo.run

test: $(INSTALLED) ## Run the tests, less those of crashes and mail servers (3 minutes)
	$(BIN)/python -m pytest $(SHARED) -m 'not slow' \
	    --ignore tests/crash --ignore tests/peers $(ARGS)

test-all: $(INSTALLED) ## Run all tests: crash matrix, models, soak and mail servers too
	$(BIN)/python -m pytest $(SHARED) $(ARGS)

mutation: $(INSTALLED) ## Check that the tests notice deliberate defects (ARGS='--only smtp')
	$(BIN)/python tools/mutation/run.py $(ARGS)

map: ## Print every module with the first line of its docstring
	@$(PYTHON) tools/modules.py

lint: $(INSTALLED) $(INSTALLED_LINT) ## Check style and spelling (ruff, codespell), types (mypy)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m codespell_lib
	$(BIN)/python -m mypy pyramid_sendmail demo

docs: $(INSTALLED_DOCS) ## Build the documentation into build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs build/docs
	@echo 'open build/docs/index.html'

bench: $(INSTALLED) $(INSTALLED_BENCH) ## Run the benchmarks; write their figures into docs/
	$(BIN)/python -m tests.benchmarks --directory $(DIRECTORY) --queued $(QUEUED) --rounds $(ROUNDS) \
	    --json docs/benchmarks.json
	$(BIN)/python -m tests.benchmarks.readme

bench-peers: $(INSTALLED_PEERS) ## Install what the benchmarks compare with into .venv-peers
	@test -x $${MAIL_PEERS:-/var/cache/mail-peers}/postfix/usr/sbin/smtp-sink || tests/peers/install

# Until the name on the package index is ours. tests/test_docs.py has the same check, more exactly.
FROM_INDEX := (install|add) +([^ `]+ +)*pyramid[_-]sendmail([^A-Za-z0-9_/.-]|$$)

# -W error with two exceptions, both about what Pyramid itself imports: WebOb 1.8 needs cgi, up to
# Python 3.12, and Pyramid 2 needs pkg_resources.
dist: $(INSTALLED_LINT) ## Build sdist and wheel, try the wheel in an empty environment
	rm -rf build dist
	@if grep -nE '$(FROM_INDEX)' *.rst $$(find docs -name '*.rst'); then \
	    echo 'make dist: this installs another project of the same name from the package index:' \
	        "write 'pip install .' in a clone of the repository" >&2; exit 1; fi
	$(BIN)/python -m build --outdir dist .
	@set -eu; empty=$$(mktemp -d); trap 'rm -rf "$$empty"' EXIT; \
	if $(BIN)/python -m zipfile -l dist/*.whl | grep -E '^(tests|demo)/'; then \
	    echo 'make dist: the wheel must hold the package alone' >&2; exit 1; fi; \
	$(BIN)/python -m zipfile -l dist/*.whl | grep -q '^pyramid_sendmail/py\.typed'; \
	$(PYTHON) -m venv "$$empty/venv"; \
	"$$empty/venv/bin/python" -m pip install --quiet --quiet dist/*.whl; \
	"$$empty/venv/bin/python" -m pip check; \
	cd "$$empty"; \
	venv/bin/python -W error \
	    -W "ignore:'cgi' is deprecated:DeprecationWarning:webob.compat" \
	    -W 'ignore:pkg_resources is deprecated as an API' \
	    -c 'import pyramid_sendmail; print("imported", pyramid_sendmail.__name__)'; \
	venv/bin/psendmail-qp --version; \
	venv/bin/psendmail-qp --help

clean: ## Remove .venv and everything that was made
	rm -rf $(VENV) $(PEERS) build dist demo/var htmlcov .coverage .coverage.* *.egg-info
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find demo tests pyramid_sendmail -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): setup.cfg pyproject.toml $(BIN)/python
	@echo 'Installing pyramid_sendmail and what demo and tests need into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --quiet --editable '.[demo,testing]'
	@touch $@

$(INSTALLED_LINT): setup.cfg pyproject.toml $(BIN)/python
	@echo 'Installing what the checks need into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --quiet --editable '.[lint]'
	@touch $@

$(INSTALLED_DOCS): setup.cfg pyproject.toml $(BIN)/python
	@echo 'Installing what builds the documentation into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --quiet --editable '.[docs]'
	@touch $@

$(INSTALLED_BENCH): setup.cfg pyproject.toml $(BIN)/python
	@echo 'Installing what draws the pictures of the benchmarks into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --quiet --editable '.[bench]'
	@touch $@

# pyramid_tm: all sides of the comparison import it, so that it counts for none.
$(INSTALLED_PEERS): Makefile
	@echo 'Installing what the benchmarks compare with into $(PEERS) ...'
	@$(PYTHON) -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --quiet aiosmtplib django-mailer \
	    django-post_office pyramid_mailer pyramid_tm repoze.sendmail zope.sendmail
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo 'make: Python 3.11 or newer is needed, and "$(PYTHON)" is' \
	        "$$($(PYTHON) --version 2>&1 || echo 'not there')." \
	        'Choose another: make PYTHON=python3.12' >&2; exit 1; }
	@echo 'Making $(VENV) ...'
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	    echo 'make: "$(PYTHON) -m venv" failed (on Debian: apt-get install python3-venv)' >&2; \
	    exit 1; }
