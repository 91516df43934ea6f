# One door for people and CI. `make` alone lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

HOST := $(shell rustc -vV | sed -n 's/^host: //p')
TARGET := $(or $(CARGO_TARGET_DIR),target)
BIN := $(TARGET)/release

# Debian packages, by what needs them.
FOR_BUILD := gcc libc6-dev libseccomp-dev
FOR_RUN := busybox-static iproute2 nftables nginx-light
FOR_TEST := $(FOR_RUN) chromium containernetworking-plugins crun curl dbus-daemon docker-registry e2fsprogs \
	golang-github-containers-common iptables openssl procps prometheus protobuf-compiler qemu-system-x86 runc
FOR_BENCH := $(FOR_TEST) containerd

# E2e tests wait more than they compute; with many more at once than processors they wait for each other.
TEST_THREADS ?= $(shell echo $$(( $$(nproc) + 1 )))

.PHONY: help build run test test-vm test-fast test-otlp lint critest soak soak-numbers bench need-build need-run need-test need-critest need-bench

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: need-build ## all binaries, into target/release
	cargo build --release --locked -p lapstrake -p netplugin
	@$(MAKE) --no-print-directory static

# The shim is resident once per pod, the command line is started anew for each command, and both enter foreign mount
# namespaces: static, the one small, the other quick, and each with no more features of its libraries than it needs.
# They have their own target directory, so that nothing built later for the tests can replace them unseen.
STATIC := RUSTFLAGS="-C target-feature=+crt-static" LIBSECCOMP_LINK_TYPE=static \
	LIBSECCOMP_LIB_PATH=$$(dirname $$(gcc -print-file-name=libseccomp.a)) \
	cargo build --locked --target $(HOST)

# Where tests find them, whatever cargo puts into $(BIN) meanwhile.
STATIC_ONES := LAPSTRAKE_SHIM=$(abspath $(TARGET))/$(HOST)/small/lapstrake-shim \
	LAPSTRAKE_OCI=$(abspath $(TARGET))/$(HOST)/command/lapstrake-oci

.PHONY: static
static:
	$(STATIC) --profile small -p lapstrake-shim
	$(STATIC) --profile command -p lapstrake-oci
	install -m 755 $(TARGET)/$(HOST)/small/lapstrake-shim $(TARGET)/$(HOST)/command/lapstrake-oci $(BIN)

run: need-run build ## a real pod on this machine, from image to clean-up
	deploy/examples/run.sh $(BIN)

test: need-test build ## everything but the vm ring; needs root and leaves nothing behind
	@if [ "$$(id -u)" != 0 ]; then echo "make test: the kernel and e2e rings need root"; exit 1; fi
	cargo test --release --locked --workspace --no-run
	@$(MAKE) --no-print-directory static
	@$(MAKE) --no-print-directory test-runc
	@export E2E_REQUIRE_ROOT=1 $(STATIC_ONES); $(call cargo_test,--workspace)
	@$(MAKE) --no-print-directory static # cargo has put its own in their place

# The tests of containers, execs and logs once more, with Debian's runc in place of the built-in runtime.
# All of the workspace, so that nothing is compiled again with other features.
.PHONY: test-runc
test-runc:
	E2E_REQUIRE_ROOT=1 E2E_HANDLER=/usr/sbin/runc $(STATIC_ONES) \
		cargo test --release --locked --workspace --test it -- container_lifecycle:: exec:: logs:: \
		--test-threads $(TEST_THREADS)

test-vm: need-test build ## e2e and kernel rings in a QEMU guest: systemd, pure cgroup v2, a Debian kernel
	@if [ "$$(id -u)" != 0 ]; then echo "make test-vm: needs root to make the guest"; exit 1; fi
	$(STATIC_ONES) E2E_REQUIRE_ROOT=1 cargo test --release --locked --workspace --test it -- --ignored --nocapture vm::

test-fast: ## the pure ring and the house rules: no root, no daemon
	cargo test --locked -p e2e --test tidy
	cargo test --locked -p lapstrake -p image -p streaming -p protocol -p cgroup -p seccomp --bins --lib

lint: ## format, clippy, and licences and spelling where the tools are installed
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(call when_installed,cargo-deny,cargo deny check)
	$(call when_installed,typos,typos)

# Debian's static busybox runs its own applets whatever PATH holds; the suite's images need one that
# does not. The two packages exclude each other, so this one is only unpacked.
CRITEST_BUSYBOX := $(TARGET)/critest/bin/busybox
CRITEST_RUNS ?= 1
CRITEST_ARGS ?=

critest: need-critest build $(CRITEST_BUSYBOX) ## the CRI conformance suite, given its binary: CRITEST=…/critest
	@if [ ! -x "$(CRITEST)" ]; then echo "SKIPPED: give the suite's binary (github.com/kubernetes-sigs/cri-tools): make critest CRITEST=/path/to/critest"; exit 1; fi
	cargo run --release --locked -q -p e2e --bin critest -- $(abspath $(CRITEST)) \
		--busybox $(CRITEST_BUSYBOX) --runs $(CRITEST_RUNS) $(CRITEST_ARGS)

soak: CRITEST_RUNS := 20
soak: CRITEST_ARGS := --brief --random
soak: critest ## the conformance suite twenty times, in another order each time

$(CRITEST_BUSYBOX):
	mkdir -p $(TARGET)/critest
	cd $(TARGET)/critest && apt-get download -q busybox && dpkg-deb -x busybox_*.deb . && rm busybox_*.deb

# Not a part of `make test`: a dozen crates more, and half of ours once again.
test-otlp: need-build ## spans reach a collector: the cargo feature that no release has
	cargo test --locked --workspace --features lapstrake/otlp --bin lapstrake -- otlp

# By `cargo test`, because a runner would end a test that takes an hour.
soak-numbers: need-test build ## an hour of scrapes, a hundred pods: memory, descriptors and threads stay as they are
	E2E_REQUIRE_ROOT=1 E2E_SOAK_SECONDS=$${E2E_SOAK_SECONDS:-3600} \
		cargo test --release --locked --workspace --test it -- --nocapture metrics::being_asked

bench: need-bench build ## side by side with what is installed of the peers
	LAPSTRAKE_BIN_DIR=$(CURDIR)/$(BIN) cargo run --release --locked -p runtime-bench
	cargo run --release --locked -p e2e --bin bench
	cargo test --release --locked -p netplugin --test kernel -- --ignored --nocapture --test-threads 1
	cargo run --release --locked -p e2e --bin bench-streaming
	cargo run --release --locked -p e2e --bin bench-density
	cargo run --release --locked -p e2e --bin bench-images

need-build: ; @$(call install_packages,$(FOR_BUILD))
need-run: ; @$(call install_packages,$(FOR_BUILD) $(FOR_RUN))
need-test: ; @$(call install_packages,$(FOR_BUILD) $(FOR_TEST))
need-critest: ; @$(call install_packages,$(FOR_BUILD) $(FOR_TEST))
need-bench: ; @$(call install_packages,$(FOR_BUILD) $(FOR_BENCH))

# Installs those of $(1) that are missing.
define install_packages
missing=$$(for it in $(1); do dpkg-query -Wf '$${Status}' $$it 2>/dev/null | grep -q 'ok installed' || echo $$it; done); \
if [ -n "$$missing" ]; then \
	as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	$$as_root apt-get update -q; \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; \
fi
endef

# The same profile as the shipped binaries, so that a clean clone compiles everything once.
define cargo_test
if cargo nextest --version >/dev/null 2>&1; then \
	cargo nextest run --release --locked --no-fail-fast --test-threads $(TEST_THREADS) $(1); \
else \
	cargo test --release --locked --no-fail-fast $(1); \
fi
endef

define when_installed
@if command -v $(1) >/dev/null; then echo "$(2)"; $(2); else echo "SKIPPED: $(1) is not installed"; fi
endef
