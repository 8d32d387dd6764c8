# Two commands for a newcomer: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= .ci/constraints.txt
BIN := $(VENV)/bin
INPUTS := pyproject.toml $(CONSTRAINTS) $(wildcard converter_core/*/*.[ch] plugins/converter_plugins/*/*.[ch])

.PHONY: demo test soak lint bench docs wheel clean

demo: $(VENV)/.installed
	$(BIN)/model-converter demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal

soak: $(VENV)/.installed-soak
	$(BIN)/python -m pytest -m soak -s

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict -f docs/mkdocs.yml

bench: $(VENV)/.installed-test
	$(BIN)/python tests/benchmarks/speed.py

# what could be published, and that it installs and runs where nothing else is
wheel: $(VENV)/bin/python
	rm -rf dist && $(BIN)/python -m pip wheel -q --no-deps -w dist .
	$(PYTHON) -m venv dist/venv && dist/venv/bin/python -m pip install -q -c $(CONSTRAINTS) torch dist/*.whl
	dist/venv/bin/model-converter demo
	rm -rf dist/venv && ls dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python $(INPUTS)
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) torch -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python $(INPUTS)
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) torch -e ".[test,lint]"
	$(BIN)/python -m pip install -q --no-deps -e examples/third_party_quantizer -e examples/third_party_target
	touch $@ $(VENV)/.installed

$(VENV)/.installed-soak: $(VENV)/.installed-test
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e ".[soak]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build dist site demo
