# `make demo` and `make test` set up everything they need in .venv.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := src tests scripts examples benchmarks lab train.py infer.py evaluate.py noxfile.py

.PHONY: demo test test-slow check style floor newest build niivue docs

.venv/installed: pyproject.toml constraints.txt
	@echo "Installing the package and its dependencies into .venv. This takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed  ## Segment the real case that ships with the package from two of its sequences
	@echo "Starting examples/demo.py. Loading PyTorch takes some seconds."
	$(BIN)/python examples/demo.py

test: .venv/installed  ## Everything that is fast, on the CPU
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed  ## What takes minutes
	$(BIN)/pytest -m slow

check: .venv/installed  ## Lint, format, types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

style: .venv/installed  ## Mend what can be mended
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

floor: .venv/installed  ## What is saved and loaded, on the oldest packages that pyproject.toml allows
	$(BIN)/nox --session floor

newest: .venv/installed  ## The same on the newest packages, on the oldest and the newest Python
	$(BIN)/nox --session newest

build: .venv/installed  ## Wheel and source distribution in dist/
	$(BIN)/python -m build

niivue: .venv/installed  ## The viewer of the pages from npm once more, with a check of its hash
	$(BIN)/python scripts/renew_niivue.py

docs: .venv/installed  ## The documentation as a site in outputs/site
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "Open outputs/site/index.html."
