# make demo    score and filter the bundled data with the bundled model
# make test    run the tests, in a process a core and at most eight of them; WORKERS=2 for another number
# make check   format, lint, types
# make docs    build the docs into site/, to be read from the disk: site/index.html
# make card    on a machine with a CUDA card: tests and figures in nine minutes (docs/benchmarks/card.md)
# The first four make their own environment in .venv the first time. Where there is a CUDA card, they use it.
# card uses CARD_PYTHON as it is: make card WHEELS=FOLDER (from scripts/card_wheels.sh), or SMALL=1 for a dry run.
# Other interpreter or place: make test PYTHON=python3.12 VENV=/tmp/venv

PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-out
WORKERS ?= auto
CARD_PYTHON ?= python3
CARD_OUT ?= card-out
CARD := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -c GPU)
comma := ,
CUDA := $(if $(filter-out 0,$(CARD)),$(comma)cuda)

.PHONY: demo test check docs card clean

demo: $(VENV)/.demo
	$(VENV)/bin/probing demo --out $(OUT)

# Bytecode is written whatever the environment says: over a hundred processes would each compile the code anew.
test: $(VENV)/.dev
	PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal

check: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# Warnings and dead links end it. What the pages show of commands: scripts/write_docs.py compares and writes.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

card:
	$(CARD_PYTHON) scripts/on_card.py --out $(CARD_OUT) $(if $(WHEELS),--wheels $(WHEELS)) $(if $(SMALL),--small)

clean:
	rm -rf $(VENV) $(OUT) site

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "probing needs Python 3.11 or later; name one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".$(if $(CUDA),[cuda])"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[dev$(CUDA)]"
	touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[docs$(CUDA)]"
	touch $@ $(VENV)/.demo
