PYTHON ?= python3
VENV ?= .venv
ENV ?= development

BIN := $(VENV)/bin
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: help init lab test check bench prove

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 14

# umask: the notebook shows what is in the database, and papermill saves it readable by everyone.
# JUPYTER_…: a kernel `python3` that the user has elsewhere would run another Python.
init: $(VENV)/.installed  ## make the database of ENV (development), keep the notebook that shows it
	@umask 077 && mkdir -p executed && \
	export JUPYTER_PATH= JUPYTER_PREFER_ENV_PATH=1 && \
	out=executed/init-$$(date -u +%Y%m%dT%H%M%SZ).ipynb && \
	if $(BIN)/papermill notebooks/init.ipynb $$out -r env '$(ENV)'; then status=0; else status=$$?; fi; \
	echo "executed notebook: $$out"; \
	[ $$status -ne 0 ] || $(BIN)/python -m abathur_nb archive $$out || status=$$?; exit $$status

lab: $(VENV)/.installed-lab  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir notebooks notebooks/index.ipynb

test: $(VENV)/.installed  ## run every test
	$(BIN)/python -m pytest -n auto

check: $(VENV)/.installed  ## lint, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.installed  ## measure speed against plain sqlite3 and papermill
	$(BIN)/python tests/bench.py

prove: $(VENV)/.installed  ## inject every fault and count what survives
	$(BIN)/python tests/prove.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[dev]'
	@touch $@

$(VENV)/.installed-lab: $(VENV)/.installed
	$(INSTALL) '.[lab]'
	@touch $@
