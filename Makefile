# Each target is one command; what it does lives where it names.
.PHONY: help prepare load demo test checks images unit lint deny e2e cluster-up cluster-down bench bench-table bench-connections bench-attacks bench-kill conformance crds

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

prepare: # what cargo needs beside itself; a no-op where it is there
	@command -v cc >/dev/null || { [ "$$(id -u)" = 0 ] || S=sudo; $$S apt-get update -q && $$S apt-get install -qy gcc libc6-dev; }

demo: prepare ## ten backends, a pool, the proxy and live figures on this machine; ARGS="--load" adds traffic
	cargo run --release --quiet -- demo $(ARGS)

test: prepare ## every test: lints, unit and property tests, the scenarios in a real cluster
	@$(MAKE) --no-print-directory -j2 checks images
	@$(MAKE) --no-print-directory e2e

checks: # in this order, and beside nothing but the images
	@env -u MAKEFLAGS $(MAKE) --no-print-directory lint unit

# They take longer than the checks beside them, so they do not step aside. Cargo has a pool of jobs of its own.
images: prepare # what the scenarios put into the cluster, built while other tests run
	@env -u MAKEFLAGS e2e/cluster/image >/dev/null

lint: prepare ## formatting and lints
	cargo fmt --check && cargo clippy --quiet --all-targets --features e2e -- -D warnings

DENY := $(or $(GUIDEWAY_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/guideway)/tools/cargo-deny-0.20.2

deny: prepare ## licences, bans and sources of every dependency, as deny.toml says
	@[ -x $(DENY)/bin/cargo-deny ] || env -u CARGO_TARGET_DIR cargo install --quiet --locked --root $(DENY) cargo-deny@0.20.2
	$(DENY)/bin/cargo-deny --log-level error check bans licenses sources

unit: prepare ## unit, property and integration tests, no cluster
	cargo test --quiet
	cargo test --quiet --features e2e --bin guideway-load

e2e: ## the scenarios in a genuine kind cluster; GUIDEWAY_E2E_KEEP=1 leaves it up
	e2e/run

cluster-up: ## bring the kind cluster up and leave it up
	e2e/cluster/up

cluster-down: ## take the kind cluster down without a trace
	e2e/cluster/down

bench-table: ## every gate of the Maglev table
	cargo bench --quiet --bench table

load: prepare # Guideway and the load that no existing tool offers
	cargo build --release --quiet --features e2e --bin guideway --bin guideway-load

bench: load ## CPU, memory and p99 beside nginx, HAProxy, Envoy, Caddy and Traefik; ARGS="--quick" for a try
	bench/proxy/run $(ARGS)

bench-connections: load ## what 10,000 clients notice that send a request per second each
	bench/proxy/connections $(ARGS)

bench-attacks: load ## what a good client notices of slow clients and of floods
	bench/attacks/run $(ARGS)

conformance: ## h2spec and the interoperability tests of gRPC, in clear text and over TLS
	cargo build --release --quiet && bench/conformance/run $(ARGS)

bench-kill: ## requests lost while a backend is killed twenty times
	bench/proxy/kill

crds: ## write crds/ from the Rust types
	cargo run --quiet -- crd > crds/loadbalancerpools.guideway.dev.yaml
