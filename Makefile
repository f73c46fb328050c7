# Every task runs in .venv, which the first one makes. Paths stay relative: the folder's name may hold spaces.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

demo_extras := torch,plot
test_extras := torch,plot,test
docs_extras := docs

.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs clean

help:
	@echo "make demo    set up .venv, simulate data, convert it, train on it and show the result"
	@echo "make test    set up .venv, then 'make check' and the tests"
	@echo "make check   style, types, docstrings and the direction of imports"
	@echo "make bench   time xloader against every peer that is installed (PYTHON=python3.13 for annbatch and homeobox)"
	@echo "make docs    build the documentation into docs/_build"
	@echo "make clean   remove .venv and everything else that these made"
	@echo "Python 3.11 or newer is needed; name it with PYTHON=..., if it is not python3."

demo: .venv/demo.stamp
	$(BIN)/xloader demo

test: check
	$(BIN)/python -m pytest -n 2

check: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find xloader -name '*.py' ! -name cli.py -exec $(BIN)/numpydoc lint {} +
	$(BIN)/lint-imports

bench: .venv/bench.stamp
	$(BIN)/python -m tests.benchmarks
	$(BIN)/python -m tests.benchmarks.report

docs: .venv/docs.stamp
	$(BIN)/python -m sphinx -W -q docs docs/_build

clean:
	rm -rf .venv docs/_build xloader-demo .*_cache .hypothesis
	find xloader tests -name __pycache__ -prune -exec rm -rf {} +

# a stamp is written last, so that an interrupted set-up is done again
.venv/%.stamp: pyproject.toml constraints.txt | .venv/made.stamp
	$(PIP) install --quiet -e ".[$($*_extras)]" -c constraints.txt
	touch $@

# peers ask for newer packages than those that are tested together
.venv/bench.stamp: pyproject.toml | .venv/made.stamp
	$(PIP) install --quiet -e ".[test,bench]"
	touch $@

.venv/made.stamp:
	@"$(PYTHON)" -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and \
		"xloader needs Python 3.11 or newer, and $(PYTHON) is " + v + "; try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	"$(PYTHON)" -m venv --clear .venv
	touch $@
