# make test      the suite, in this shell's virtual environment or in one made for it
# make check     what CI runs: lint, types, tests
# make test-all  the suite on CPython 3.11, 3.12 and 3.13 (those that are installed)
# make fuzz      the long fuzzing of what reads untrusted bytes, FUZZ_SECONDS for each target (Linux)

PYTHON ?= python3
VENV ?= $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
BIN = $(VENV)/bin
WORKERS ?= 4
FUZZ_SECONDS ?= 300
STAMP = $(VENV)/.juggler-dev

.PHONY: test check lint types test-all fuzz format clean

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: lint types test

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-all:
	set -e; for version in 3.11 3.12 3.13; do \
	    interpreter=$$(python$$version -c 'import sys; print(sys.executable)' 2>/dev/null || ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version.*/bin/python 2>/dev/null | tail -n 1); \
	    if [ -z "$$interpreter" ]; then echo "no CPython $$version here"; exit 1; fi; \
	    echo "== $$($$interpreter --version)"; \
	    VIRTUAL_ENV= $(MAKE) test PYTHON=$$interpreter VENV=.venv-$$version; \
	done

# Both run, and each failure counts. What fails is kept: see tests/fuzz/coverage_guided.py.
fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/fuzz.txt
	status=0; \
	FUZZ_PROFILE=long $(BIN)/python -m pytest tests/fuzz --timeout 0 || status=1; \
	$(BIN)/python -m tests.fuzz.coverage_guided --seconds $(FUZZ_SECONDS) || status=1; \
	exit $$status

$(STAMP): pyproject.toml requirements/dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf .venv .venv-3.* .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
