# Every target works from a fresh clone. ARGS is passed on:
#   make up ARGS="--port 9000"      make test ARGS="-k relay"

ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
CODE := domain commands projections infra api migrations tests

# The first of these that is Python 3.11 or later makes the environment.
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# Tests share three workers, with servers of their own each: they wait for a third of their time.
# Checks run as many at once.
WORKERS := 3
CHECKS := check-ruff check-mypy check-basedpyright check-imports check-audit

.PHONY: install install-test up test fuzz check $(CHECKS) bench faults clean

install: $(VENV)/.installed

install-test: $(VENV)/.installed-test

# Sentinels, so that nothing is done when nothing changed.
$(VENV)/.made:
	@for python in $(PYTHONS); do \
		if $$python -c '$(NEW_ENOUGH)' 2>/dev/null; then \
			$$python -m venv $(VENV) && touch $@; exit $$?; \
		fi; \
	done; \
	echo "make: Python 3.11 or later is needed (looked for: $(PYTHONS))" >&2; exit 1

# No build isolation: the build back end is pinned like everything else.
$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/.made
	$(PIP) -r requirements.txt
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.installed-test: requirements-test.txt requirements-tracing.txt $(VENV)/.installed
	$(PIP) -r requirements-test.txt
	@touch $@

# exec: Ctrl-C and SIGTERM reach the supervisor itself, not only a shell above it.
up: install
	@exec $(BIN)/messenger up $(ARGS)

# What is pure is covered whole, branches too, by its own tests alone. A run is repeated by its
# seed: order, examples and whatever else chance decides (`make test SEED=N`; a run prints its own).
SEED ?=
SEEDED = $(if $(SEED),--randomly-seed=$(SEED) --hypothesis-seed=$(SEED))
test: install-test
	$(BIN)/python -m pytest --quiet tests/domain tests/commands --cov --cov-fail-under=100 $(SEEDED)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --no-loadscope-reorder $(SEEDED) $(ARGS)

# Every decoder against what it was not made for, at length: EXAMPLES of each test.
EXAMPLES ?= 500
fuzz: install-test
	HYPOTHESIS_PROFILE=fuzz FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -m fuzz \
		$(SEEDED) --timeout=0 --numprocesses $(WORKERS) $(ARGS)

# Every check says what it finds, also where another one failed.
check: install-test
	@$(MAKE) --no-print-directory --keep-going --jobs=$(WORKERS) $(CHECKS)

check-ruff: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-mypy: install-test
	$(BIN)/mypy

check-basedpyright: install-test
	$(BIN)/basedpyright

check-imports: install-test
	$(BIN)/lint-imports

check-audit: install-test
	$(BIN)/python -m tests.audit

bench: install-test
	$(BIN)/python -m tests.benchmarks $(ARGS)

# All faults, each on real processes under load; ARGS="--seed 7 relay" repeats some of a run.
faults: install-test
	$(BIN)/python -m tests.faults $(ARGS)

clean:
	rm -rf $(VENV) build dist .coverage htmlcov .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
