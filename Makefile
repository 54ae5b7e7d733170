# Needs Python 3.11 or newer, g++, make and git; everything else goes into $(VENV).
#   make build   a virtual environment with PyTorch, teraio and its native part
#   make demo    trains with and without a memory budget and compares
#   make test    style, types and tests
#   make test-kvikio    tests of spill I/O through kvikio; they need no GPU, but apt of Debian
#   make test-cuda    the tests for GPUs, without one, on PyTorch's CUDA build (5 GB in .venv-cuda)
#   make sanitize    the native part under address, undefined-behaviour and thread sanitizers
#   make gpu     tests and figures that need a GPU
PYTHON ?= python3
VENV   ?= .venv
# The exact pin keeps pip from fetching a newer build that brings CUDA along.
TORCH  ?= torch==2.13.0
MAX_JOBS ?= 2
# Processes that share the tests, a file at a time.
TEST_WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=

# The CUDA build of the same PyTorch as in $(VENV), so that the native part serves both.
CUDA_VENV ?= .venv-cuda
CUDA_TORCH ?= torch==2.13.0
CUDA_HEADERS ?= nvidia-cuda-crt==13.0.*

KVIKIO := kvikio-cu12 libkvikio-cu12 nvidia-cufile-cu12 rapids-logger cuda-pathfinder

BIN    := $(VENV)/bin
NATIVE := $(wildcard csrc/*.cpp csrc/*.h)
export MAX_JOBS
# PyTorch looks for ninja there.
export PATH := $(PATH):$(abspath $(BIN))
.DELETE_ON_ERROR:
.PHONY: demo test test-kvikio test-cuda sanitize gpu lint build clean

demo: $(VENV)/.built
	$(BIN)/python -m benchmarks.demo $(DEMO_ARGS)

test: lint
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

test-kvikio: $(VENV)/.kvikio
	LD_LIBRARY_PATH=$(abspath $(VENV))/driver TERAIO_REQUIRE=kvikio \
		$(BIN)/python -m pytest tests/integration/test_kvikio.py \
		tests/device/test_device_by_kvikio.py $(PYTEST_ARGS)

# A double takes the place of NVIDIA's driver and runtime: see tests/cuda/double.py.
test-cuda: $(CUDA_VENV)/.installed
	$(CUDA_VENV)/bin/python -m tests.cuda.double -n $(TEST_WORKERS) $(PYTEST_ARGS)

# What is instrumented is a copy in build/asan and build/tsan.
sanitize: $(VENV)/.built
	$(BIN)/python -m tests.sanitizers.run

# Everything that only a GPU can show; the results are in build/gpu.
gpu: $(VENV)/.built
	mkdir -p build/gpu
	TERAIO_REQUIRE=gpu $(BIN)/python -m pytest -m gpu -n $(TEST_WORKERS) --dist loadfile --junitxml build/gpu/tests.xml
	$(BIN)/python -m benchmarks --suite gpu --output build/gpu/suite.json
	$(BIN)/python -m benchmarks micro pack drive --output build/gpu
	$(BIN)/python -m benchmarks report build/gpu/suite.json build/gpu/pack.json build/gpu/drive.json

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

build: $(VENV)/.built

$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "teraio needs Python 3.11 or newer; say which with PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet "setuptools>=77,<82" wheel ninja
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

$(VENV)/.built: $(VENV)/.installed setup.py $(NATIVE)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

# Without its dependencies kvikio takes 16 MB instead of 2 GB: they are for what is not used here.
$(VENV)/.kvikio: $(VENV)/.built
	$(BIN)/pip install --quiet --no-deps $(KVIKIO)
	tests/integration/driver_library $(VENV)/driver
	touch $@

$(CUDA_VENV)/.installed: $(VENV)/.built
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/pip install --quiet $(CUDA_TORCH)
	$(CUDA_VENV)/bin/pip install --quiet --no-deps "$(CUDA_HEADERS)"
	$(CUDA_VENV)/bin/pip install --quiet "setuptools>=77,<82" wheel ninja
	$(CUDA_VENV)/bin/pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

clean:
	rm -rf build dist *.egg-info teraio/*.so .pytest_cache .mypy_cache .ruff_cache $(VENV)/.built
