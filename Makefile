# Busbar's commands; `make` alone lists them. Every target uses cargo's release profile, the only one, so that
# RocksDB's C++ is compiled once.

SHELL := /bin/sh
# Read when a recipe runs, not when make starts: `deps` may have changed what it finds.
ENV := . ./.ci/env
CARGO := $(ENV); cargo

.DEFAULT_GOAL := help
.PHONY: help deps build demo test verify deny fix bench image clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

deps: ## install what the build needs and this machine lacks (libclang, cargo-nextest)
	@.ci/deps

build: deps ## build busbar and busbar-bench
	$(CARGO) build --release --locked -p busbar -p busbar-bench

demo: build ## three brokers, a killed leader, every acknowledged record checked
	@$(ENV); "$$CARGO_TARGET_DIR/release/busbar" demo

verify: deps ## format, lints and documentation; never writes to the tree
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --release --locked -p busbar-client --features tracing -- -D warnings
	$(CARGO) clippy --release --locked -p busbar-client --all-features --all-targets -- -D warnings
	$(ENV); RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps
	$(ENV); RUSTDOCFLAGS="-D warnings" cargo doc --release --locked -p busbar-client --all-features --no-deps

test: verify ## verify, doctests, then every test (nextest builds the programs that the tests run)
	$(CARGO) test --release --locked --workspace --doc
	$(CARGO) nextest run --release --locked --workspace
	$(CARGO) test --release --locked -p busbar-client --all-features --doc
	$(CARGO) nextest run --release --locked -p busbar-client --all-features

deny: ## hold dependencies to deny.toml: licences, sources, bans (needs cargo-deny; `cargo deny check` asks for advisories, too)
	cargo deny --locked check bans licenses sources

fix: ## format and apply clippy's suggestions
	$(CARGO) clippy --release --workspace --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

bench: build ## a local three-node cluster under full load for 10 s (ARGS: options of busbar-bench)
	@$(ENV); benches/local.sh $(ARGS)

image: build ## the container image busbar:dev, from the binary built here
	@$(ENV); docker/image.sh

clean: ## remove what cargo built for Busbar; RocksDB and the other dependencies stay
	$(CARGO) clean --release --workspace
