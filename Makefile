# Each target makes .venv and installs what it needs by itself. `make help` lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# two processes of tests, a file of tests in one of them; see tests/conftest.py for the order
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder

export OMP_NUM_THREADS ?= 1
export DO_NOT_TRACK = true
export RAY_USAGE_STATS_ENABLED = 0
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(INSTALLED)  ## Make .venv with every dependency pinned

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## The whole loop on the embedded world, 10 to 30 minutes on two cores; report in runs/demo
	$(BIN)/atelier demo

test: $(INSTALLED)  ## Every test
	$(BIN)/python -m pytest tests -q $(PARALLEL)

test-fast: $(INSTALLED)  ## Unit tests only
	$(BIN)/python -m pytest tests -q $(PARALLEL) -m "not integration and not slow"

bench-data: $(INSTALLED)  ## Figures of collecting and preparing beside their rivals, in docs/benchmarks/data.md
	$(BIN)/python -m tests.benchmarks.data $(PARTS)

bench-train: $(INSTALLED)  ## Figures of the training engine, in docs/benchmarks/train.md; PARTS=fidelity, PARTS=gpu for the long ones
	$(BIN)/python -m tests.benchmarks.train $(PARTS)

bench-assess: $(INSTALLED)  ## Pictures a minute of an assessment beside the pipeline called prompt by prompt, in docs/benchmarks/assess.md
	$(BIN)/python -m tests.benchmarks.assess $(RUNS)

bench-serve: $(INSTALLED)  ## Figures of the image API beside Ray Serve's examples, in docs/benchmarks/serve.md; PARTS=quick shows that it works
	$(BIN)/python -m tests.benchmarks.serve $(PARTS)

bench-ablations: $(INSTALLED)  ## The choices behind the training's defaults, in docs/benchmarks/ablations; goes on where it stopped
	$(BIN)/python -m tests.benchmarks.ablations $(ARGS)

bench-moderation: $(INSTALLED)  ## False alarms and recall of prompt moderation, in docs/benchmarks/moderation.md; needs ../shared/data
	$(BIN)/python -m tests.benchmarks.moderation

bench-watermark: $(INSTALLED)  ## How often the invisible watermark is read after what happens to pictures, in docs/benchmarks/watermark.md
	$(BIN)/python -m tests.benchmarks.watermark $(ARGS)

ladder: $(INSTALLED)  ## All families at equal wall time, in docs/benchmarks/ladder; MINUTES=20 a family, PARTS="families ablation"
	$(BIN)/python -m tests.benchmarks.ladder $(PARTS)

lint: $(INSTALLED)  ## ruff, mypy and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## Sort imports and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(INSTALLED)  ## Write constraints.txt from what .venv holds now
	{ echo '# Every dependency of a fresh install, pinned. Made by `make constraints`; pyproject.toml names what is used directly.'; \
	  $(BIN)/pip freeze --all --exclude-editable | sed 's/+cpu$$//' | grep -viE '^(atelier|pip)\b'; } > constraints.txt

clean:  ## Remove runs and caches, keep .venv
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info

.PHONY: help install demo test test-fast bench-data bench-train bench-assess bench-serve bench-ablations bench-moderation bench-watermark ladder lint format constraints clean
