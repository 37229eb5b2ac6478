# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NATIVE := setup.py CMakeLists.txt $(wildcard csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh csrc/*/*.h csrc/include/sod/*)
BUILD  := build/ctest
PEERS  := .peers/.installed
VLLM   := .venv-vllm
ALFWORLD := $(VENV)/.alfworld
# More arguments for the benchmarks: make bench BENCH="--device cuda --ops step_kl"
BENCH  ?=
# What `sod` (the first four) and TRL import and a machine with a GPU may lack; all plain Python.
CARRIED := tomli[-_]w|httpx2|httpcore2|truststore|datasets|dill|multiprocess
# Likewise for the GPU run: make gpu GPU="--parts build bench"
GPU    ?=
# cmake, ninja and clang-format of the pinned set come before those of the system.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo demo-quick test check format ctest vllm alfworld pytest-vllm pytest pytest-main aot cuda-compile bench bench-quick bench-pytest gpu gpu-dry gpu-carry results clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(STAMP)  ## Make .venv with everything pinned, build the native library, install what the sandbox needs

$(STAMP): pyproject.toml requirements-cpu.txt scripts/system_packages.sh $(NATIVE)
	bash scripts/system_packages.sh
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile -r requirements-cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

demo: $(STAMP)  ## Distil a tool-using agent end to end, in minutes, on two CPU cores
	$(BIN)/sod demo --overwrite

demo-quick: $(STAMP)  ## The same in about a minute, too small to claim anything
	$(BIN)/sod demo --quick --overwrite

# vLLM pins its own stack, so it and its tests live in an environment of their own, beside the same sources.
vllm: $(VLLM)/.installed  ## Make .venv-vllm, in which the tests of the vLLM engines and teacher run

$(VLLM)/.installed: requirements-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile -r requirements-vllm.txt
	echo "$(CURDIR)" > "$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sod.pth"
	touch $@

# Its planner is compiled, for minutes; see docs/environments.md.
alfworld: $(ALFWORLD)  ## Add ALFWorld and its planner to .venv; `make test` then plays it too

$(ALFWORLD): requirements-alfworld.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --no-build-isolation -r $<
	touch $@

# The checks, the C++ tests and the tests on vLLM use one core each, so two of them run at a time.
test: $(STAMP)  ## Everything CI runs: style, types, imports, C++ tests, GPU binaries, Python tests with coverage
	$(MAKE) --jobs=2 --output-sync=target check ctest pytest-vllm aot
	$(MAKE) pytest-main

check: $(STAMP)  ## Format, lint, types, import contracts, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/**.h' 'csrc/**.cpp' 'csrc/**.cu' 'csrc/**.cuh')
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(STAMP)  ## Rewrite the sources into the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/**.h' 'csrc/**.cpp' 'csrc/**.cu' 'csrc/**.cuh')

ctest: $(STAMP)  ## C++ unit tests of csrc, no torch and no Python in them
	cmake -S . -B $(BUILD) -G Ninja -DSOD_BUILD_CUDA=OFF -DSOD_BUILD_TESTS=ON
	MAKEFLAGS= cmake --build $(BUILD)
	ctest --test-dir $(BUILD) --output-on-failure

pytest-vllm: $(STAMP) $(VLLM)/.installed  ## Python tests on vLLM, in process and over HTTP
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/vllm --cov --cov-report=

pytest: pytest-vllm  ## All Python tests with coverage (Triton interpreter, real sandbox, models and vLLM)
	$(MAKE) pytest-main

pytest-main: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --benchmark-disable \
		--cov --cov-append --cov-report=term-missing:skip-covered --cov-fail-under=95

aot: $(STAMP)  ## Compile every Triton kernel for every architecture; check spills, registers, shared memory
	$(BIN)/python -m sod_kernels.triton.aot

cuda-compile: $(STAMP)  ## Compile csrc/cuda with nvcc; check the resource report
	$(BIN)/python csrc/cuda/compile_check.py

# Peers live apart from .venv and come last on the path, so that they cannot change what the tests run on.
# Without a network they are rows that say so.
$(PEERS): requirements-peers.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --upgrade --target $(@D) -r $< \
		&& touch $@ || echo "The peers could not be installed; the table will say so."

bench: $(STAMP) $(PEERS)  ## Benchmarks beside their peers: table, plots, JSON in benchmarks/results
	$(BIN)/python -m benchmarks.run $(BENCH)
	$(BIN)/python benchmarks/bench_step_weights.py

bench-quick: $(STAMP) $(PEERS)  ## The same on a few small shapes
	$(BIN)/python -m benchmarks.run --profile quick $(BENCH)

# The machine with the GPU brings its own Python, torch and nvcc; nothing is installed there.
gpu:  ## On a GPU: build, check, measure, train; see docs/gpu.md
	$(PYTHON) -m benchmarks.gpu $(GPU)

gpu-dry: $(STAMP)  ## Every path of it without a GPU, on tiny sizes
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gpu --dry $(GPU)

gpu-carry: $(STAMP) $(PEERS)  ## Put into .peers what a machine without a network lacks
	grep -E '^($(CARRIED))==' requirements-cpu.txt | $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --no-deps --no-compile --upgrade --target .peers -r /dev/stdin

results: $(STAMP)  ## Write RESULTS.md and its pictures from benchmarks/results
	$(BIN)/python -m benchmarks.results_page

bench-pytest: $(STAMP)  ## Small shapes under pytest-benchmark, for watching one change
	$(BIN)/python -m pytest benchmarks/test_small_shapes.py

clean:  ## Remove what was built, keep the packages in .venv and the runs
	rm -rf $(STAMP) $(ALFWORLD) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find sod_kernels -name '*.so' -delete
