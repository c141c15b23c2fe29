# make demo: the main job on the pocket organism.  make test: the tests.  Both set up first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PARALLEL := -n auto --dist worksteal

.PHONY: demo test test-all check easy-dataset-share clean

demo: $(READY)
	$(BIN)/emorg demo

# What the tests and the demo never download themselves; without it some tests are skipped.
SMOLLM2 := $(BIN)/emorg models get smollm2 >/dev/null || echo "make: tests that need smollm2 will be skipped"

test: $(READY)
	@$(SMOLLM2)
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: $(READY)
	@$(SMOLLM2)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[sweep,sweep-tests]'
	$(BIN)/python -m pytest $(PARALLEL)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_structure.py

# The original tool for locked training data, in an environment of its own, since it pins an old cryptography.
TOOL := $(VENV)/easy-dataset-share
easy-dataset-share: $(BIN)/easy-dataset-share
$(BIN)/easy-dataset-share: | $(READY)
	$(PYTHON) -m venv $(TOOL)
	$(TOOL)/bin/python -m pip install --quiet --disable-pip-version-check easy-dataset-share==0.5.0
	ln -s ../easy-dataset-share/bin/easy-dataset-share $@

# Installing again happens only when what is to be installed has changed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "emorg needs Python 3.11 or newer; this is %d.%d. Try: make PYTHON=python3.12 …" % sys.version_info[:2])'
	@echo "make: setting up .venv once; it downloads some 600 MB (torch is 190 of them) and takes minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,homework,gguf]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
