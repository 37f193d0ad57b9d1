# SPDX-License-Identifier: Apache-2.0
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
NAME ?= dev
HOSTS ?= 2
RINGS ?= unit simulation api lab
PYTEST_ARGS ?=
JOBS ?= 3
BENCH_ARGS ?=
MATRIX_ARGS ?=

BIN := .venv/bin
LOCKS := requirements-build.lock requirements.lock
STAMP := .venv/.installed-$(shell cat $(LOCKS) pyproject.toml | sha256sum | cut -c1-16)
# libvirt-python has no wheel: it is compiled, with what requirements-build.lock pins and nothing else.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --progress-bar off
SHORT := { grep -E --line-buffered '^ *(Collecting|Building wheel)' || true; }
PYTEST := $(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: help
help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: packages $(STAMP) ## Make .venv from the lock files, with the project in it

.PHONY: demo
demo: venv binaries ## Show a VM that is created, moved, killed behind the operator's back, and comes back; stays up
	@$(BIN)/python -m tests.demo up

.PHONY: demo-down
demo-down: venv ## Remove every trace of the demo
	@$(BIN)/python -m tests.demo down

.PHONY: test
# The lab mostly waits: more processes than CPUs (JOBS) run its files side by side, each with hosts of its own.
test: venv binaries ## Run all rings: unit, simulation, api, lab (as root; a demo that is up is left alone)
	@$(PYTEST) -v -n $(JOBS) --dist loadfile --no-loadscope-reorder $(RINGS:%=tests/%)

.PHONY: test-unit
test-unit: venv ## Run the ring of pure functions
	@$(PYTEST) tests/unit

.PHONY: test-simulation
test-simulation: venv ## Run the controllers in a simulated world on a virtual clock
	@$(PYTEST) tests/simulation

.PHONY: test-api
test-api: venv binaries ## Run against a real kube-apiserver and etcd
	@$(PYTEST) tests/api

.PHONY: test-lab
test-lab: venv binaries ## Run against real libvirt hosts on this machine (as root)
	@$(PYTEST) tests/lab

.PHONY: fresh
fresh: ## Run the demo, twice, on a Debian 12 without anything installed, in a folder of this machine (as root)
	@bash tests/fresh.sh

.PHONY: matrix
matrix: venv binaries ## Cross every effect with every fault in the lab (MATRIX_ARGS="--scenario migrate"); record it in docs
	@$(BIN)/python -m tests.lab.matrix $(MATRIX_ARGS)

.PHONY: mutants
mutants: venv ## Break the product on purpose; every mutant must die
	@$(BIN)/python -m tests.simulation.mutants

.PHONY: bench
bench: venv binaries ## Measure creation, healing and API writes on real hosts
	@$(BIN)/python -m tests.bench $(BENCH_ARGS)

.PHONY: lab-up
lab-up: venv ## Start real libvirt hosts on this machine (HOSTS=3, NAME=dev)
	@$(BIN)/python -m tests.lab up --name $(NAME) --hosts $(HOSTS)

.PHONY: lab-down
lab-down: venv ## Remove every trace of them (NAME=dev)
	@$(BIN)/python -m tests.lab down --name $(NAME)

.PHONY: control-plane-up
control-plane-up: venv ## Start a real control plane (NAME=dev; CONTROL_PLANE=given|build|download forces a way)
	@$(BIN)/python -m tests.controlplane up --name $(NAME)

.PHONY: control-plane-down
control-plane-down: venv ## Remove every trace of it (NAME=dev)
	@$(BIN)/python -m tests.controlplane down --name $(NAME)

.PHONY: generate
generate: venv ## Write crds/ and the generated parts of docs/ from the code
	@$(BIN)/python -m homeostat.api.crd
	@$(BIN)/python -m tests.generate_docs

.PHONY: lint
lint: venv ## Check style, formatting, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.PHONY: lock
lock: ## Pin the newest versions that pyproject.toml allows (needs uv)
	set -- --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command 'make lock'; \
	uv pip compile "$$@" --extra dev pyproject.toml -o requirements.lock; \
	printf 'setuptools\nwheel\n' | uv pip compile "$$@" - -o requirements-build.lock

.PHONY: packages
packages:
	@bash tests/install.sh

.PHONY: binaries
binaries: venv
	@$(BIN)/python -m tests.controlplane build >/dev/null

$(STAMP): | packages
	@echo "venv: installing what the lock files pin"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) --require-hashes -r requirements-build.lock | $(SHORT)
	@$(PIP) --require-hashes --no-build-isolation -r requirements.lock | $(SHORT)
	@$(PIP) --no-deps --no-index --no-build-isolation --editable . | $(SHORT)
	@rm -f .venv/.installed-*
	@touch $@
