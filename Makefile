# From a fresh clone, each target makes .venv, installs with the tested versions, and runs.
PYTHON ?= python3
VENV ?= .venv
# What `make demo` runs on; any diffusers DDPM pipeline and labelled dataset do.
MODEL ?= ../shared/checkpoints/faces64-ddpm
DATA ?= ../shared/data/faces64
CONFIG ?= labeled
OUT ?= out/demo

.PHONY: test lint demo

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest

lint: $(VENV)/installed
	$(VENV)/bin/pip install --quiet -c constraints.txt ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

demo: $(VENV)/installed
	$(VENV)/bin/diffuseseg fit --model $(MODEL) --dataset_name $(DATA) --dataset_config_name $(CONFIG) --output_dir $(OUT)/model --overwrite
	$(VENV)/bin/diffuseseg evaluate --model $(OUT)/model --dataset_name $(DATA) --dataset_config_name $(CONFIG) --output_dir $(OUT)/evaluation --overwrite

$(VENV)/installed: setup.py constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -c constraints.txt -e '.[test]'
	touch $@
