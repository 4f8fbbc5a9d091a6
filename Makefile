SHELL := /bin/bash
.DEFAULT_GOAL := help
GRID ?= demo
EXTRAS ?=
LOGDIR ?= runs
SCENES := data/clevr_mirror
PYTHON ?= python3
BIN := .venv/bin
# A file's tests stay together, since they share what they set up; the slowest files come first by name.
TEST_PROCESSES ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# `make ablate` needs the core only; `make test` every extra. uv adds what is missing to the same .venv.
STAMP = .venv/.installed-$(subst $(comma),-,$(if $(EXTRAS),$(EXTRAS),core))
comma := ,

.PHONY: help setup ablate lint test test-slow faults bench bench-gpu complexity paper-slice tensorboard docs

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

setup: $(STAMP)  ## make .venv; EXTRAS=all or EXTRAS=render,coco adds the heavy parts

$(STAMP): pyproject.toml requirements.lock scripts/setup
	@PYTHON=$(PYTHON) scripts/setup "$(EXTRAS)"
	@touch $@

ablate: setup  ## run grid GRID (default: demo) and write its report under runs/GRID; also DEVICES, WORKERS, CELLS_PER_DEVICE, OUT
	@$(BIN)/implicit-slate ablate $(GRID) $(if $(OUT),--out $(OUT)) $(if $(DEVICES),--devices $(DEVICES)) \
		$(if $(WORKERS),--workers $(WORKERS)) $(if $(CELLS_PER_DEVICE),--cells-per-device $(CELLS_PER_DEVICE))
	@$(if $(filter demo,$(GRID)),$(BIN)/implicit-slate evaluate $(or $(OUT),runs/demo) --metrics reconstruction$(comma)segmentation \
		--images 200 --draws 1 --batch-size 200)

lint:  ## set up with all extras, then check style, layout and types
	@$(MAKE) --no-print-directory setup EXTRAS=all
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test:  ## set up with all extras, then run the tests
	@$(MAKE) --no-print-directory setup EXTRAS=all
	@$(BIN)/python -m pytest $(TEST_PROCESSES) -m "not slow"

test-slow:  ## also run the tests that take longer
	@$(MAKE) --no-print-directory setup EXTRAS=all
	@$(BIN)/python -m pytest $(TEST_PROCESSES)

faults:  ## kill a grid's processes 100 times and cut its disk's power 20 times: its numbers must not change (as root; long)
	@$(MAKE) --no-print-directory setup EXTRAS=test
	@$(BIN)/python -m pytest -s tests/faults

bench:  ## time our training step and a plain one, the Jacobian callback, our solvers and torchdeq's, loading, generation
	@$(MAKE) --no-print-directory setup EXTRAS=test
	@$(BIN)/python -m benchmarks.training_step
	@$(BIN)/python -m benchmarks.profile_step
	@$(BIN)/python -m benchmarks.scaling
	@$(BIN)/python -m benchmarks.slot_jacobian
	@$(BIN)/python -m benchmarks.against_torchdeq
	@$(BIN)/python -m benchmarks.loading
	@$(BIN)/python -m benchmarks.generation

bench-gpu:  ## measure this machine's GPU in 8 minutes, without network, with .venv's Python, else PYTHON; OUT=runs/gpu
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(if $(OUT),--out $(OUT))

complexity: setup  ## measure time and memory against the number of iterations, in each gradient mode; OUT=runs/complexity
	@$(BIN)/python -m benchmarks.complexity $(if $(OUT),--out $(OUT))

paper-slice:  ## train both modes at the paper's size, 4 seeds each, on one GPU; renders scenes first; also CELLS_PER_DEVICE=2
	@$(MAKE) --no-print-directory setup EXTRAS=render
	@[ -d $(SCENES) -a ! -e $(SCENES)/render.json ] || \
		$(BIN)/implicit-slate data render --scenes 10000 --size 96 --out $(SCENES)
	@$(MAKE) --no-print-directory ablate GRID=paper_slice

tensorboard: setup  ## start TensorBoard on runs/ (LOGDIR=runs/demo for a grid, or another folder)
	@$(BIN)/implicit-slate tensorboard $(LOGDIR)

docs:  ## build the documentation site into docs/_build; a warning is an error
	@$(MAKE) --no-print-directory setup EXTRAS=all
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build
	@echo docs/_build/index.html
