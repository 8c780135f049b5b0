PYTHON ?= python3
BIN := .venv/bin
BASE := .venv/.base
DEV := .venv/.dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help install demo test slow check bench docs evidence lock wheel clean

help:
	@echo "make install  the tool at .venv/bin/tamis"
	@echo "make demo     a real model gets better at sums, with evidence (about 2 minutes once installed)"
	@echo "make test     the fast test suite"
	@echo "make slow     the slow tests"
	@echo "make check    lint and types"
	@echo "make bench    all benchmarks"
	@echo "make docs     the generated pages (one per method)"
	@echo "make evidence every claim check, into docs/evidence"
	@echo "make lock     resolve all dependencies anew into requirements.lock"
	@echo "make wheel    build the wheel into dist/"

install: $(BASE)

# torch first and alone: the lock names one build, and no resolver may pick another.
$(BASE): pyproject.toml requirements.lock
	@echo "installing tamis into .venv (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) --upgrade pip
	@$(PIP) $$(grep '^torch==' requirements.lock)
	@$(PIP) --constraint requirements.lock --editable .
	@touch $(BASE)

$(DEV): $(BASE)
	@$(PIP) --constraint requirements.lock --editable '.[dev]'
	@touch $(DEV)

demo: $(BASE)
	@$(BIN)/tamis run rft

test: $(DEV)
	@$(BIN)/python -m pytest -n auto --dist loadfile

slow: $(DEV)
	@$(BIN)/python -m pytest -n auto --dist loadfile -m slow

check: $(DEV)
	@$(BIN)/ruff check src tests benchmarks
	@$(BIN)/ruff format --check src tests benchmarks
	@$(BIN)/mypy

bench: $(DEV)
	@$(BIN)/python benchmarks/collect.py

docs: $(DEV)
	@$(BIN)/python -m tamis.report.pages docs

evidence: $(DEV)
	@$(BIN)/tamis check --all --out docs/evidence; $(BIN)/python -m tamis.report.pages docs

wheel: $(DEV)
	@$(BIN)/python -m build --no-isolation --wheel

lock:
	@rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet $$(grep '^torch==' requirements.lock)
	@.venv-lock/bin/python -m pip install --quiet '.[dev]'
	@(head -n 1 requirements.lock; .venv-lock/bin/python -m pip freeze | sed 's/+cpu//' | grep -v '^tamis') > requirements.new
	@mv requirements.new requirements.lock && rm -rf .venv-lock

clean:
	rm -rf .venv dist build
