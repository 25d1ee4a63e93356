# From a fresh clone, each target makes its environment, installs the pinned versions, and runs. Two tests run at a time,
# with a thread each: processes of PyTorch that share cores slow each other down many times over.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
DOCS ?= .venv-docs
OUT ?= out/demo
MARKED ?= not slow

.PHONY: results test test-slow test-oldest lint docs notebook demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal -m '$(MARKED)'

# What is slow and rarely breaks: processes that are killed, whole programs, each family of models as commands.
test-slow:
	$(MAKE) test MARKED=slow

# The same tests with the oldest versions that pyproject.toml admits.
test-oldest: $(OLDEST)/installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist worksteal -m 'slow or not slow'

lint: $(VENV)/linters
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# Writes the site to site/. The pages and the API reference are read from the sources: no torch is needed.
docs: $(DOCS)/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

# Executes the notebook and stores its outputs, without warnings and progress bars.
notebook: $(VENV)/installed
	$(VENV)/bin/pip install --quiet -c constraints.txt nbclient ipykernel
	$(VENV)/bin/python docs/notebooks/execute.py

demo: $(VENV)/installed
	$(VENV)/bin/diffuseseg demo --output_dir $(OUT) --overwrite

# Writes the tables and pictures of the documentation from benchmarks/results.
results: $(VENV)/installed
	$(VENV)/bin/python benchmarks/tables.py

$(VENV)/installed: pyproject.toml setup.py constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/linters: $(VENV)/installed
	$(VENV)/bin/pip install --quiet -c constraints.txt -e '.[lint]'
	touch $@

$(OLDEST)/installed: pyproject.toml setup.py constraints-oldest.txt
	test -d $(OLDEST) || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install -c constraints-oldest.txt -e '.[test]'
	touch $@

$(DOCS)/installed: constraints.txt
	test -d $(DOCS) || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet -c constraints.txt filelock psutil tqdm mkdocs mkdocs-material 'mkdocstrings[python]' ruff
	touch $@
