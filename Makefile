# `make` alone lists the targets. Everything runs in the environment that scripts/bootstrap makes.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := $(or $(SO_AGENT_VENV),.venv)
PYTHON := $(VENV)/bin/python
KILLS ?= 300

# Nothing here may reach for a model hub by surprise: not the demo, not the tests.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
# Rendering without a screen.
export MUJOCO_GL := egl

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## create or update .venv from the hashed lock; quick when nothing changed
	@scripts/bootstrap

.PHONY: rendering
rendering:
	@scripts/bootstrap --rendering

.PHONY: demo
demo: rendering ## teleoperate and record two episodes on the virtual SO-101
	@$(VENV)/bin/so-agent demo

.PHONY: lint
lint: setup ## format check, ruff, mypy --strict, import layers
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# Tests that compute, and keep no deadlines: two at a time. The others have a machine to themselves, as an arm should.
COMPUTING := tests/inference tests/experiments tests/config tests/fl/app tests/cli/test_train.py tests/cli/test_policy.py \
	tests/cli/test_serve.py

.PHONY: test
test: rendering lint ## everything CI runs: lint, then the whole suite with coverage; the service and the federation last
	$(PYTHON) -m pytest -q -n 2 --cov --cov-report= --cov-fail-under=0 $(COMPUTING)
	$(PYTHON) -m pytest -q -m "not deployment and not booted" --cov --cov-append --cov-report=term $(addprefix --ignore=,$(COMPUTING))
	$(PYTHON) -m pytest -q -rs -m booted tests/systemd
	$(PYTHON) -m pytest -q -m deployment tests/fl

.PHONY: test-api
test-api: rendering ## the HTTP API against its own description, with ten times the requests of `test`; 5 minutes
	EXAMPLES=150 $(PYTHON) -m pytest -q tests/http/test_openapi.py

# Parts of `test` that take minutes each: a machine that boots, and stations that learn.
.PHONY: test-service
test-service: rendering ## the service on a booted machine of its own (systemd-nspawn, as root): 5 minutes
	$(PYTHON) -m pytest -q -rs -m booted tests/systemd

.PHONY: test-federation
test-federation: rendering ## a SuperLink with TLS and keys, stations, rounds, pre-emption, what dies meanwhile; 15 minutes
	$(PYTHON) -m pytest -q -m deployment tests/fl

.PHONY: coverage
coverage: test ## the suite's coverage as pages in htmlcov/
	$(VENV)/bin/coverage html

.PHONY: durability
durability: rendering ## kill the recorder, the arm and the agent KILLS=300 times and count what is lost
	$(PYTHON) -m tests.durability.harness --kills $(KILLS)

.PHONY: bench-control
bench-control: rendering ## lerobot's record loop against this one, on the same virtual arm
	$(PYTHON) -m benchmarks.control

.PHONY: bench-inference
bench-inference: rendering ## engines against stock lerobot, at the size of SmolVLA: some minutes and 10 GB
	$(PYTHON) -m benchmarks.inference

.PHONY: bench-tasks
bench-tasks: rendering ## touches a minute, and what the arm is sent, beside lerobot's own loops; 45 minutes
	$(PYTHON) -m benchmarks.tasks headline
	$(PYTHON) -m benchmarks.tasks queue

.PHONY: fleet-sim
fleet-sim: setup ## 1,000 simulated stations on one mosquitto: answers, memory, mass reconnect; 4 minutes
	$(PYTHON) -m benchmarks.fleet_sim

.PHONY: bench-surfaces
bench-surfaces: rendering ## control loop and recording with and without an open page; 8 minutes
	$(PYTHON) -m benchmarks.surfaces

.PHONY: bench-preemption
bench-preemption: rendering ## wanting the arm 50 times while the station trains: first tick, rounds; 30 minutes
	$(PYTHON) -m benchmarks.preemption

.PHONY: federation-faults
federation-faults: setup ## everything between a station and its fleet dies once: how long until it is back; 15 minutes
	$(PYTHON) -m tests.fl.faults

.PHONY: simulate-federation
simulate-federation: setup ## ten simulated stations learn together for five rounds; a table and a curve; some minutes
	$(PYTHON) -m benchmarks.federation_simulation

.PHONY: evaluate
evaluate: rendering ## the demo policy on 100 unseen tables through the whole stack, and controls; 30 minutes
	$(PYTHON) -m benchmarks.evaluate

.PHONY: train-demo-policy
train-demo-policy: rendering ## record, learn and pack the demo policy again: about an hour; goes on where it stopped
	$(PYTHON) -m experiments.demo_policy all --folder demo-policy

.PHONY: docs
docs: setup ## this documentation as a site in site/, made strictly; needs no network, to make or to read
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet
	@echo "Open site/index.html."

# DEMO is where train-demo-policy keeps what it records and learns; what is missing there is made first, in an hour.
DEMO ?= demo-policy
.PHONY: prove-federation
prove-federation: rendering ## three stations learn together, each alone, and all in one place; some hours; goes on where it stopped
	$(PYTHON) -m experiments.demo_policy record --folder $(DEMO)
	$(PYTHON) -m experiments.demo_policy pretrain --folder $(DEMO)
	$(PYTHON) -m experiments.federation all --folder $(DEMO)

.PHONY: lock
lock: ## regenerate requirements.lock from pyproject.toml, with hashes and without addresses
	$(VENV)/bin/uv pip compile pyproject.toml --extra virtual --extra openvino --extra simulation --extra docs --extra dev --generate-hashes --no-header \
		--universal --python-version 3.12 -o requirements.lock

.PHONY: clean
clean: ## remove the environment and everything generated
	rm -rf $(VENV) .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis site htmlcov .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
