# `make demo` and `make test` are all that a fresh machine with python >= 3.11 and make needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST_TRITON := $(VENV)/triton-3.6/.installed

.PHONY: setup demo test lint format docs gpu gpu-ladder clean

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

# A process a core, each with one thread: most tests start processes of their own and wait for them.
test: setup $(OLDEST_TRITON)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/reference/keys.md, from the config dataclasses.
docs: setup
	$(BIN)/python -m ratplus.sweeps.define.key_reference docs/reference/keys.md

# On a machine with a CUDA device and torch, triton, lightning, pandas, matplotlib and pytest installed; needs neither
# network nor .venv. Under 10 minutes: nothing new is begun after GPU_KERNEL_SECONDS and GPU_MODEL_SECONDS; what was left
# out is named in the files. Results go to $OUT (default outputs/gpu), also where a test fails.
GPU_TESTS := tests/kernels/test_gpu.py tests/ratplus/model/test_decode_graph_gpu.py \
	tests/ratplus/training/test_training_gpu.py
GPU_MODELS ?= ratplus-24x2048x128 attention-24x2048x128
GPU_MODEL_OPTIONS ?= --context 4096,32768 --batch 1,max --prefill-tokens 65536 --repeats 5 --budget 0.5
GPU_KERNEL_SECONDS ?= 280
GPU_MODEL_SECONDS ?= 100
gpu:
	$(PYTHON) -m pip install --no-deps --no-build-isolation -e .
	@out="$${OUT:-outputs/gpu}"; mkdir -p "$$out"; failed=""; \
	step() { name=$$1; shift; echo "== $$name"; "$$@" || failed="$$failed $$name"; }; \
	step tests timeout 150 $(PYTHON) -m pytest -q -m gpu $(GPU_TESTS) --junitxml="$$out/tests.xml"; \
	step kernels $(PYTHON) -m ratplus.kernels.bench.gpu "$$out/kernels.json" $(GPU_KERNEL_SECONDS); \
	step model $(PYTHON) -m ratplus.bench.models "$$out/model.json" $(GPU_MODELS) $(GPU_MODEL_OPTIONS) \
		--seconds $(GPU_MODEL_SECONDS); \
	step report $(PYTHON) -m ratplus.analysis.efficiency "$$out"; \
	if [ -n "$$failed" ]; then echo "failed:$$failed; results so far are in $$out"; exit 1; fi

# A small reproduction on one GPU within LADDER_SECONDS (docs/scale.md), on a machine that needs neither network nor .venv:
# torch, triton, lightning, pandas and matplotlib are installed there, and Hydra's wheels lie in WHEELS if it is not.
# ratplus is put together from links, since an old setuptools can't install it; PYTHONSAFEPATH keeps Python from taking the
# bare folder of this checkout for it. Archive and tables go to $OUT.
LADDER_SECONDS ?= 300
LADDER_OVERRIDES ?=
# Steps of each pretraining; none: the first ones are timed, and as many are run as fit.
LADDER_STEPS ?=
WHEELS ?= .gpu/wheels
gpu-ladder:
	@site=$$(mktemp -d) && trap 'rm -rf "$$site"' EXIT && mkdir "$$site/ratplus" && \
	for entry in ratplus/* kernels sweeps analysis conf; do ln -s "$$PWD/$$entry" "$$site/ratplus/"; done && \
	if ls $(WHEELS)/*.whl >/dev/null 2>&1; then \
		$(PYTHON) -m pip install -q --no-index --no-deps --target "$$site" $(WHEELS)/*.whl; fi && \
	PYTHONSAFEPATH=1 PYTHONPATH="$$site$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) -m ratplus.sweeps.verbs.timed_sweep \
		experiment=gpu_ladder $(LADDER_OVERRIDES) --seconds $(LADDER_SECONDS) $(if $(LADDER_STEPS),--steps $(LADDER_STEPS)) \
		--out "$${OUT:-outputs/gpu}"

clean:
	rm -rf $(VENV)
