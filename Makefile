# Everything runs in .venv, which is made anew when pyproject.toml changes. Only Python 3.11 or newer with pip is assumed.
PYTHON ?= python3
BIN = .venv/bin
.PHONY: demo test lint coverage bench oracle clean

demo: .venv/installed
	@$(BIN)/mmtwin demo

test: .venv/tested
	@$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/linted
	$(BIN)/ruff check src tests bench oracle
	$(BIN)/ruff format --check src tests bench oracle
	$(BIN)/mypy

# In the interpreter, where coverage sees inside the allocator's functions.
coverage: .venv/linted
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m coverage run -m pytest -p no:xdist
	$(BIN)/python -m coverage report

bench: .venv/tested
	@$(BIN)/python -m bench

oracle: .venv/recorded
	sh oracle/make.sh $(BIN)/mmtwin

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmtwin needs Python 3.11 or newer; name one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[record]' 'pytest>=8' 'hypothesis>=6.100' 'pytest-xdist>=3.6'
	@touch $@

.venv/linted: .venv/tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'ruff>=0.12' 'mypy>=1.15' 'coverage>=7.6'
	@touch $@

.venv/recorded: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[record]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
