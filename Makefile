# From a fresh clone, each target makes .venv, installs with the tested versions, and runs. Two tests run at a time, with
# a thread each: processes of PyTorch that share cores slow each other down many times over.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out/demo

.PHONY: test lint demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2

lint: $(VENV)/installed
	$(VENV)/bin/pip install --quiet -c constraints.txt ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

demo: $(VENV)/installed
	$(VENV)/bin/diffuseseg demo --output_dir $(OUT) --overwrite

$(VENV)/installed: setup.py constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -c constraints.txt -e '.[test]'
	touch $@
