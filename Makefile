PYTHON ?= python3
VENV ?= .venv
ENV ?= development

# JupyterLab's own: beside it papermill takes twice as long to start.
LAB ?= .venv-lab
NEWS := @jupyterlab/apputils-extension:announcements  # asks its makers for news and newer versions
BIN := $(VENV)/bin
INSTALL := pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

TESTS := PYTHONPATH=tests:tests/support

.PHONY: help init lab test coverage check docs bench prove browser

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 17

# umask: the notebook shows what is in the database, and papermill saves it readable by everyone.
# JUPYTER_…: a kernel `python3` that the user has elsewhere would run another Python.
init: $(VENV)/.installed  ## make the database of ENV (development), keep the notebook that shows it
	@umask 077 && mkdir -p executed && \
	export JUPYTER_PATH= JUPYTER_PREFER_ENV_PATH=1 && \
	out=executed/init-$$(date -u +%Y%m%dT%H%M%SZ).ipynb && \
	if $(BIN)/papermill notebooks/init.ipynb $$out -r env '$(ENV)'; then status=0; else status=$$?; fi; \
	echo "executed notebook: $$out"; \
	[ $$status -ne 0 ] || $(BIN)/python -m abathur_nb archive $$out || status=$$?; exit $$status

lab: $(LAB)/.installed  ## open the notebooks in JupyterLab, the index first
	$(LAB)/bin/jupyter lab --notebook-dir notebooks --LabApp.default_url=/lab/tree/index.ipynb

test: $(VENV)/.installed  ## run every test, or those in TESTED
	$(BIN)/python -m pytest -n auto $(TESTED)

coverage: $(VENV)/.installed  ## run the tests of one process, and list the branches that they do not run
	$(BIN)/python -m pytest -n auto --cov=abathur_nb --cov-branch --cov-report=term:skip-covered tests/unit tests/archive

check: $(VENV)/.installed  ## lint, formatting, types, the directions of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed  ## write the pages that are generated from the code
	$(BIN)/python docs/generate.py

bench: $(VENV)/.installed  ## measure speed against plain sqlite3 and papermill
	$(TESTS) $(BIN)/python tests/bench/bench.py

prove: $(VENV)/.installed  ## inject every fault and count what survives
	$(TESTS) $(BIN)/python -m faults.prove
	$(BIN)/python -m pytest -n auto -m sweep tests/faults

browser: $(LAB)/.installed-browser  ## run every notebook in JupyterLab, in Chromium, in both themes
	$(LAB)/bin/python -m pytest tests/browser/in_jupyterlab.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(INSTALL) '.[dev]'
	@touch $@

$(LAB)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LAB)
	$(LAB)/bin/$(INSTALL) '.[lab]'
	$(LAB)/bin/jupyter labextension disable --level=sys_prefix $(NEWS)
	@touch $@

$(LAB)/.installed-browser: $(LAB)/.installed
	$(LAB)/bin/$(INSTALL) '.[dev,browser]'
	@touch $@
