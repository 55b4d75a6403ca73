# `make demo` and `make test` work on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS := $(wildcard protos/serverlessllm/v1/*.proto)
TESTS ?= tests
# Processes that run tests (see tests/conftest.py): as many as there are processors, and no more than
# have 4.5 GB of memory each, or 8. With more, those with clusters only make one another wait.
WORKERS ?= $(shell $(BIN)/python -c 'from sllm import machine; \
	print(max(1, min(machine.processors(), machine.memory_bytes() // 4_500_000_000, 8)))')
BENCH ?=
FUZZ ?=
# Whatever is imported is compiled once, also where the environment says not to: a run of the tests
# starts hundreds of programs.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test architectures fuzz fuzz-http every-step nightly check console gen \
	bench bench-load bench-migration bench-soak chaos-control bench-simulate bench-cluster \
	bench-engine bench-ready bench-switch bench-batch bench-forms bench-tenants bench-gateway \
	bench-tls bench-console bench-adapters bench-kv bench-kv-error bench-experts bench-order bench-peers bench-carrying \
	bench-pipeline bench-choices bench-ranks \
	clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt tools/install-vllm
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	./tools/install-vllm $(BIN)/python
	# Compiles what engines use of their libraries, not all of it.
	for engine in $$($(BIN)/python -c 'from sllm.node.worker.backends import names; print(*names.installed())'); do \
		$(BIN)/python -c "from sllm.node.worker import zygote; zygote.backend_of('$$engine')" || exit; \
	done
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

# Its last lines say what has failed and why, and what took longest.
test: setup
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --no-loadscope-reorder --tb=short \
		--durations=40 --durations-min=3 $(TESTS)

architectures: setup
	OMP_WAIT_POLICY=PASSIVE PYTHONPATH=examples $(BIN)/python -m tests.node.worker.trial.outcomes docs/architectures.md

fuzz: setup
	$(BIN)/python -m tests.fuzz $(FUZZ)

fuzz-http: setup
	test -x build/fuzz-http/bin/schemathesis || \
		{ $(PYTHON) -m venv build/fuzz-http && build/fuzz-http/bin/pip install --quiet schemathesis; }
	PYTHONPATH=examples $(BIN)/python -m tests.gateway.fuzz build/fuzz-http/bin/schemathesis $(FUZZ)

# What takes minutes with all of its kind, which `make test` leaves out; and examples of property
# tests that it does not try, others each time: SEED, which is printed, brings them back.
nightly: SEED ?= $(shell date +%s)
nightly: setup
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --no-loadscope-reorder -m nightly $(TESTS)
	EXAMPLES=20 $(BIN)/python -m pytest --numprocesses $(WORKERS) --no-loadscope-reorder \
		-m hypothesis --hypothesis-seed=$(SEED) -o timeout=3600 $(TESTS)

# Generations that are moved after each of their tokens; `make test` moves them after a few.
every-step: setup
	EVERY_STEP=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --no-loadscope-reorder \
		-m "nightly or not nightly" -k any_step tests/e2e

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	./tools/check-breaking $(BIN)/buf
	./tools/check-generated $(BIN)/python
	$(BIN)/python -m pytest --quiet tests/test_imports.py

# What it builds is committed: nobody needs Node.js but who changes the page.
console: setup
	./tools/build-console $(BIN)/python

gen: setup
	$(BIN)/python tools/generate.py gen

bench: setup
	PYTHONPATH=examples $(BIN)/python -m bench.cold_start $(BENCH)

bench-migration: setup
	PYTHONPATH=examples $(BIN)/python -m bench.migration $(BENCH)

bench-soak: setup
	PYTHONPATH=examples $(BIN)/python -m bench.soak $(BENCH)

# Control planes and members of etcd, killed, stopped and cut off at random; needs etcd, and takes
# libfaketime, and the right to make network namespaces.
chaos-control: setup
	PYTHONPATH=examples $(BIN)/python -m bench.control_chaos $(BENCH)

bench-carrying: setup
	PYTHONPATH=examples $(BIN)/python -m bench.carrying $(BENCH)

bench-load: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]' || true
	PYTHONPATH=examples $(BIN)/python -m bench.load $(BENCH)

bench-simulate: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt matplotlib || true
	$(BIN)/python -m bench.simulate $(BENCH)

bench-cluster: setup
	PYTHONPATH=examples $(BIN)/python -m bench.cluster $(BENCH)

bench-engine: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[vllm-serve]' || true
	PYTHONPATH=examples $(BIN)/python -m bench.engine $(BENCH)

bench-ready: setup
	PYTHONPATH=examples $(BIN)/python -m bench.ready_made $(BENCH)

bench-ranks: setup
	PYTHONPATH=examples $(BIN)/python -m bench.ranks $(BENCH)

bench-batch: setup
	PYTHONPATH=examples $(BIN)/python -m bench.batching $(BENCH)

bench-tenants: setup
	PYTHONPATH=examples $(BIN)/python -m bench.tenants $(BENCH)

bench-forms: setup
	PYTHONPATH=examples $(BIN)/python -m bench.structured_output $(BENCH)

bench-experts: setup
	$(BIN)/python -m bench.experts $(BENCH)

bench-console: setup
	$(BIN)/python -m bench.console $(BENCH)

bench-gateway: setup
	PYTHONPATH=examples $(BIN)/python -m bench.gateway $(BENCH)

bench-tls: setup
	PYTHONPATH=examples $(BIN)/python -m bench.tls $(BENCH)

bench-kv: setup
	PYTHONPATH=examples $(BIN)/python -m bench.kv $(BENCH)

bench-kv-error: setup
	PYTHONPATH=examples $(BIN)/python -m bench.kv_error $(BENCH)

bench-adapters: setup
	PYTHONPATH=examples $(BIN)/python -m bench.adapters $(BENCH)

bench-choices: setup
	PYTHONPATH=examples $(BIN)/python -m bench.moving.choices $(BENCH)

bench-pipeline: setup
	PYTHONPATH=examples $(BIN)/python -m bench.pipeline $(BENCH)

bench-order: setup
	PYTHONPATH=examples $(BIN)/python -m bench.order $(BENCH)

bench-peers: setup
	$(BIN)/python -m bench.peers $(BENCH)

bench-switch: setup
	PYTHONPATH=examples $(BIN)/python -m bench.switching $(BENCH)

clean:
	rm -rf $(VENV) build dist clients/typescript/node_modules clients/typescript/src/gen .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
