# make quickstart | test | bench | check | format | clean        needs Python 3.11 and nothing else: no virtual environment,
# no activation. The first run makes .venv and installs the versions of constraints.txt into it (some minutes);
# later runs install again only if setup.py or constraints.txt changed.
#
# Variables: PYTHON=/path/to/python3.11   VENV=/another/venv   RECBOLE_PAD_DATA=/folder/with/datasets

ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3; do "$$p" -c "" 2>/dev/null && { echo $$p; break; }; done)
endif
VENV ?= .venv
STAMP := $(VENV)/.installed

# Real data for the tests that want it (RECBOLE_PAD_DATA); those tests are skipped where it is not given.
ifneq ($(strip $(RECBOLE_PAD_DATA)),)
export RECBOLE_PAD_DATA
endif

.PHONY: help install quickstart test bench check format clean

help:
	@echo "make quickstart   install if needed, then train PAD and, for an epoch, RecBole's SASRec on ml-100k, and print a table"
	@echo "make test         every test that needs no GPU, slow ones too"
	@echo "make bench        every figure of docs/performance.md, with its verdict (some 20 minutes; RECBOLE_PAD_DATA for all rows)"
	@echo "make check        lint, format and type check"
	@echo "make format       rewrite the files as ruff wants them"
	@echo "make clean        remove build leftovers and caches (keeps .venv, saved/ and log/)"

install: $(STAMP)

quickstart: $(STAMP)
	$(VENV)/bin/recbole-pad quickstart

test: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2

bench: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/run_all.py

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path "./.venv/*" -prune -exec rm -rf {} +

$(STAMP): setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python found. On Debian 12: apt-get install python3.11 python3.11-venv." \
		"Elsewhere: docs/install.md, then make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" || { \
		echo "Python 3.11 is needed, $(PYTHON) is: $$("$(PYTHON)" --version 2>&1)." \
		"On Debian 12: apt-get install python3.11 python3.11-venv." \
		"Elsewhere, and for Python 3.12 and newer: docs/install.md" >&2; exit 1; }
	@"$(PYTHON)" -c "import ensurepip, venv" 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3.11-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
	"$(VENV)/bin/python" -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch "$(STAMP)"
