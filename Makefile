# Everything sets itself up: only python3 (3.11 or newer) with pip and make are needed.
# The first call makes .venv from pinned versions (constraints.txt); later calls reuse it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
CHECKED := src tests docs benchmarks studies
EXTRAS := app,baselines,export,lora,ray,search,storage,transformers
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types format build clean

help:  ## Say what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	@echo "Setting up $(VENV) with the pinned packages (PyTorch is large; some minutes the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e .
	@touch $@

# The list of tools has one home, the dev group of pyproject.toml; old pips cannot read it by name.
# Every extra comes with them, so that no test is skipped for want of a package.
$(INSTALLED_DEV): $(INSTALLED)
	@echo "Adding the development tools ..."
	@$(BIN)/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"]))' > $(VENV)/dev-requirements.txt
	@$(PIP) -r $(VENV)/dev-requirements.txt
	@$(PIP) --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@

install: $(INSTALLED_DEV)  ## Set up .venv with the package (editable) and the tools

demo: $(INSTALLED)  ## Pretrain, probe and report on embedded data, on a CPU (ARGS="--out DIR")
	@$(BIN)/vjepa demo --out runs/demo $(ARGS)

# Tests start many processes: none of them compiles what another has, whatever the shell says.
test: $(INSTALLED_DEV)  ## Run the test suite (ARGS="tests/config -k name")
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -ra $(ARGS)

lint: $(INSTALLED_DEV)  ## Check style and formatting
	@$(BIN)/ruff check --quiet $(CHECKED)
	@$(BIN)/ruff format --quiet --diff $(CHECKED)
	@echo "lint: clean"

types: $(INSTALLED_DEV)  ## Check types
	@$(BIN)/ty check --python $(VENV) src

format: $(INSTALLED_DEV)  ## Format the code and mend what can be mended
	@$(BIN)/ruff check --fix $(CHECKED)
	@$(BIN)/ruff format $(CHECKED)

build: $(INSTALLED)  ## Build a wheel into dist/
	@$(BIN)/python -m pip wheel -qq --disable-pip-version-check --no-build-isolation --no-deps -w dist .
	@ls dist

clean:  ## Remove .venv, builds and caches; what runs wrote stays
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	@find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
