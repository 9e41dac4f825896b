# Thin: each target is a plain command that the README shows too. PYTHON=python3.12 make test
PYTHON ?= python3
BIN := .venv/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
READY := .venv/ready-$(VERSION)
RUN := runs/moving_digits

.PHONY: setup train docs test test-slow test-compile nightly lint lock clean

setup: $(READY)

$(READY): requirements/lock.txt pyproject.toml
	@test -n "$(VERSION)" || { echo "error: '$(PYTHON)' does not run; name one: PYTHON=python3.12 make"; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed; PYTHON=python3.12 make" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

train: setup
	$(BIN)/python -m vivit.data prepare moving_digits data
	$(BIN)/python -m vivit.train --config=configs/moving_digits.py --workdir=$(RUN)
	$(BIN)/python -m vivit.evaluate --workdir=$(RUN)
	$(BIN)/python -m vivit.analysis $(RUN)

# The site goes to site/. The extra is not in the lock file.
docs: setup
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

# Training steps compiled for TPUs and GPUs, in an environment of their own: 2 GB, half an hour.
COMPILE := .venv-compile/ready-$(VERSION)

test-compile: $(COMPILE)
	JAX_PLATFORMS=cpu .venv-compile/bin/python -m pytest -q -n 2 -m compile tests/test_targets.py tests/test_benchmark.py
	JAX_PLATFORMS=cpu .venv-compile/bin/python -m pytest -q tests/test_compile.py

$(COMPILE): requirements/lock.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv-compile
	.venv-compile/bin/python -m pip install --quiet --no-compile --require-hashes -r requirements/lock.txt
	.venv-compile/bin/python -m pip install --quiet --no-build-isolation --editable '.[compile]'
	touch $@

# Everything that needs no accelerator; .github/workflows/nightly.yml runs it once a day.
nightly: test test-slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Needs uv. The lock holds versions and hashes for every supported Python and platform.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	    --no-annotate --no-header --no-emit-index-url --quiet --output-file requirements/lock.txt

clean:
	rm -rf .venv .venv-compile .pytest_cache .ruff_cache
