# Targets for people; cargo does the work. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test release test-binaries bench lint mutants soak fuzz man clean

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
export TASKVISOR_BIN ?= $(abspath $(TARGET_DIR))/release/taskvisor

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{ printf "make %-8s %s\n", $$1, $$2 }'

setup: ## install what is missing beside cargo (root on Debian), or say what is
	@resources/setup.sh

demo: ## build everything and run real programs in a guest with two vCPUs
	@resources/setup.sh build
	@$(CARGO) build --release --locked -p taskvisor
	@resources/demo.sh

test: ## all tests: units, whole system on KVM, the same kernel under QEMU
	@resources/setup.sh build test
	@$(MAKE) --no-print-directory -j2 release test-binaries
	@tests/run.sh

# The two share nothing but the guest's directory, which is locked. Each cargo has its own jobs, not make's.
release:
	@MAKEFLAGS= $(CARGO) build --release --locked -p taskvisor
test-binaries:
	@MAKEFLAGS= $(CARGO) test --locked --workspace --no-run

bench: ## counts and times, each beside its counterpart; writes target/bench.json
	@resources/setup.sh build test bench
	@$(CARGO) build --release --locked -p taskvisor
	@$(CARGO) run --release --locked -q -p taskvisor-tests --bin taskvisor-bench -- --json $(TARGET_DIR)/bench.json

lint: ## formatting and clippy, host and guest; warnings are errors
	@resources/setup.sh build
	@tests/lint.sh

mutants: ## takes protections out one by one; each must make its test fail
	@resources/setup.sh build test
	@tests/mutants.sh

soak: ## the stress programs over and over for SOAK_MINUTES (10)
	@resources/setup.sh build
	@$(CARGO) build --release --locked -p taskvisor
	@tests/soak.sh

fuzz: ## coverage-guided fuzzing of every reader for FUZZ_SECONDS (120) each
	@resources/setup.sh build test
	@fuzz/run.sh $(or $(FUZZ_SECONDS),120)

man: ## manual pages and shell completions, written to target/man1 and target/completions
	@$(CARGO) build --release --locked -p taskvisor
	@$(TASKVISOR_BIN) man --out $(TARGET_DIR)/man1
	@mkdir -p $(TARGET_DIR)/completions
	@for shell in bash zsh fish; do $(TASKVISOR_BIN) completions $$shell > $(TARGET_DIR)/completions/taskvisor.$$shell; done

clean: ## remove everything that was built
	@$(CARGO) clean
