# `make demo` and `make test` are all that a fresh machine with python >= 3.11 and make needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST_TRITON := $(VENV)/triton-3.6/.installed

.PHONY: setup demo test lint format gpu clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ratplus needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV): once, about two minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

# The oldest Triton that ratplus allows, in a folder beside the environment's packages: tests/kernels/test_aot.py compiles
# every kernel with it too. An environment and its constraints hold one version only, so neither takes part here.
# There are no wheels for other platforms, and there the test is skipped.
$(OLDEST_TRITON): | $(STAMP)
	@if [ "$$(uname -s) $$(uname -m)" = "Linux x86_64" ]; then \
		echo "Fetching Triton 3.6 for the tests: once, 180 MB"; \
		$(BIN)/pip install --disable-pip-version-check --no-deps --upgrade --target $(@D) triton==3.6.0; \
	else mkdir -p $(@D); fi
	@touch $@

demo: setup
	$(BIN)/ratplus sweep experiment=demo

test: setup $(OLDEST_TRITON)
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# On a machine with a CUDA device and torch, triton and pytest installed; needs neither network nor .venv.
# Results go to $OUT (default outputs/gpu).
gpu:
	$(PYTHON) -m pip install --no-deps --no-build-isolation -e .
	$(PYTHON) -m pytest -m gpu tests/kernels/test_gpu.py
	$(PYTHON) -m ratplus.kernels.bench_gpu "$${OUT:-outputs/gpu}/kernels.json"

clean:
	rm -rf $(VENV)
