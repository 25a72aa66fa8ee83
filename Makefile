# Every target does its own set-up: Python 3.11 or later with pip is all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# what a machine with a card has: another Python, PyTorch and Triton
GPU_PYTHON ?= python3.12
GPU_VENV := .venv-gpu
GPU_READY := $(GPU_VENV)/.ready
# the oldest Triton that pyproject.toml allows; constraints.txt has the newest
OLDEST_TRITON := build/triton-3.6.0

.PHONY: help demo test optional site lint aot cuda sanitize bench bench-smoke copies roofline predictions gpu gpu-rehearse gpu-cache clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs,lint,test]'
	@touch $@

demo: $(READY)  ## fetch a model and tweets, learn from 5 per class, compare four methods (about 5 minutes)
	$(BIN)/ofa demo

test: $(READY)  ## run every test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

optional: $(READY)  ## install torchao, bitsandbytes, kernels and setfit, and run the tests that need them
	$(BIN)/python -m pip install --quiet --constraint constraints.txt bitsandbytes kernels setfit torchao
	$(BIN)/python -m pytest tests/ofa/decoder/test_quantised.py tests/ofa_kernels/test_layers.py tests/test_docs.py \
		tests/ofa/compare/test_encoder.py tests/ofa/compare/methods/test_set_fit.py

site: $(READY)  ## build the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(READY)  ## format, style and docstrings (ruff), direction of imports (import-linter), types (pyright)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

$(OLDEST_TRITON): | $(READY)
	rm -rf $@.part
	$(BIN)/python -m pip install --quiet --no-deps --target $@.part triton==$(@:build/triton-%=%)
	mv $@.part $@

aot: $(READY) $(OLDEST_TRITON)  ## compile every Triton kernel for three architectures: no spills, 128-bit loads
	$(BIN)/python -m tools.aot --write tools/aot.md
	PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python -m tools.aot --write tools/aot-3.6.0.md

cuda: $(READY)  ## compile every CUDA kernel for three architectures, where nvcc is: no spills, what it claims
	$(BIN)/python -m tools.cuda --write tools/cuda.md

sanitize: $(READY)  ## run the C++ kernels, fuzzed and from Python, under the address and UB sanitizers
	$(BIN)/python -m tools.sanitize

copies: $(READY)  ## time every operator, order and size in turns, beside a copy
	$(BIN)/python -m benchmarks.cpu

roofline: $(READY)  ## print what each kernel has to move, and how long that takes on H100, H200 and this CPU
	$(BIN)/python -m benchmarks.roofline

predictions: $(READY)  ## write what the kernels should reach on five cards into docs/gpu.md, after make aot or cuda
	$(BIN)/python -m benchmarks.roofline --predict --markdown docs/gpu.md

gpu: $(READY)  ## with a GPU: its tests, speed and launch choices, in under ten minutes, into benchmarks/results/
	$(BIN)/python -m benchmarks.gpu

$(GPU_READY): benchmarks/gpu/requirements.txt
	$(GPU_PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet --requirement benchmarks/gpu/requirements.txt
	@touch $@

gpu-rehearse: $(GPU_READY)  ## the same without a GPU, with the Python, PyTorch and Triton of a machine that has one
	$(GPU_VENV)/bin/python -m benchmarks.gpu --rehearse

gpu-cache: $(GPU_READY)  ## compile for sm_90 what `make gpu` launches, for a machine of the same Triton
	mkdir -p build && rm -f build/launches.jsonl
	$(GPU_VENV)/bin/python -m pytest tests/ofa_kernels -q -k triton -m 'not host' -p benchmarks.gpu.launches --launches build/launches.jsonl
	$(GPU_VENV)/bin/python -m benchmarks.gpu.cache build/launches.jsonl

bench: $(READY)  ## time ours, eager PyTorch, torch.compile and the authors' step in turns (about 3 minutes)
	$(BIN)/python -m pytest benchmarks/ --benchmark-only --benchmark-json bench.json

bench-smoke: $(READY)  ## run every benchmark once, to see that it runs
	$(BIN)/python -m pytest benchmarks/ --benchmark-disable

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(GPU_VENV) build *.egg-info .pytest_cache .ruff_cache bench.json ofa_kernels/_native.* ofa_kernels/_cuda.*
