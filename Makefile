# Every target does its own set-up in .venv; a machine needs Python >= 3.11 and make.
.DEFAULT_GOAL := help
.PHONY: help run test test-all test-newest lint bench figures clean

# The first interpreter that runs and is new enough: python3 where it will do.
find_python = $(shell for p in $(1) "$$HOME"/.pyenv/versions/*/bin/python; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < ($(2)))' 2>/dev/null \
	&& echo "$$p" && break; done)
PYTHON ?= $(call find_python,python3 python3.13 python3.12 python3.11,3$(comma) 11)
NEWEST ?= $(call find_python,python3.14 python3.13 python3.12 python3,3$(comma) 12)
comma := ,
BIN := .venv/bin
CPU := JAX_PLATFORMS=cpu
# Most of the quick tests' time is XLA's, for programs that run for milliseconds; the slow ones
# compile as users do. PINNED has a flag that the pinned jax knows and the newest does not.
QUICK := --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1
PINNED := --xla_cpu_use_fusion_emitters=false
PYTEST := -m pytest -n 2 --dist worksteal

help:
	@echo "make run          train a small decoder on the Python standard library's text (about 5 minutes)"
	@echo "make test         the tests that take minutes        make test-all     all of them"
	@echo "make test-newest  all quick tests on the newest jax  make lint         ruff, mypy, import-linter"
	@echo "make bench        every benchmark                    make figures      every reproduction"

.venv/ready: setup.cfg pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 was found; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[experiments,test,lint,tensorboard]'
# Apart from the rest, since jax looks for a TPU where libtpu can be imported; Linux on x86-64 only.
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt --target .venv/tpu-aot libtpu
	@touch $@

run: .venv/ready
	$(BIN)/python -m experiments run --config=experiments/configs/language/quickstart.py --workdir=runs/quickstart

test: .venv/ready
	$(CPU) XLA_FLAGS="$(QUICK) $(PINNED) $$XLA_FLAGS" $(BIN)/python $(PYTEST) -m "not slow"

test-all: test
	$(CPU) $(BIN)/python $(PYTEST) -m slow

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready
	$(BIN)/python -m experiments bench

figures: .venv/ready
	$(BIN)/python -m experiments reproduce

# Newest releases of everything: no constraints, and an environment made anew.
test-newest:
	@test -n "$(NEWEST)" || { echo "error: the newest jax needs Python >= 3.12, and none was found; set NEWEST=..."; exit 1; }
	$(NEWEST) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -e '.[experiments,test]'
	.venv-newest/bin/python -c "import sys, jax, flax, optax; print('Python', sys.version.split()[0], 'jax', jax.__version__, 'flax', flax.__version__, 'optax', optax.__version__)"
	$(CPU) XLA_FLAGS="$(QUICK) $$XLA_FLAGS" .venv-newest/bin/python $(PYTEST) -m "not slow"

clean:
	rm -rf .venv .venv-newest .cache build dist *.egg-info
