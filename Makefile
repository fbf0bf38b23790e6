# Everything a developer or CI runs. `make help` lists it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# What the build and the tests need from Debian; later parts add theirs here.
DEBIAN_PACKAGES := ca-certificates chromium chromium-driver curl debootstrap gcc libc6-dev make nginx-light openssl pkg-config postgresql prometheus python3 python3-venv redis-server sqlite3 tmux

HOST := $(shell rustc -vV | sed -n 's/^host: //p')
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
DIST := tollgate-$(VERSION)-$(HOST)
# glibc linked in. Random numbers then must come from the system call: the crate's own look-up of a libc function
# finds none in a static binary, and what it falls back to, /dev/urandom, is not there in an empty root.
STATIC := -C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"
# What the binary that is downloaded is built by: how often each part of it ran in a build that counts. What never ran
# stands apart from the rest (docs/decisions/0041-built-by-what-runs.md).
COUNTING = $(abspath $(TARGET_DIR))/counting
COUNTS = $(COUNTING)/tollgate.profdata
COUNTED = -C profile-use=$(COUNTS) -C link-arg=-Wl,-z,keep-text-section-prefix
PROFDATA = $(shell rustc --print sysroot)/lib/rustlib/$(HOST)/bin/llvm-profdata
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# nextest where it is installed, else the tests that come with cargo.
TEST := $(shell command -v cargo-nextest >/dev/null && echo 'cargo nextest run' || echo 'cargo test')
# Many tests wait for a lease, a deadline or a server for a part of their time: half as many again as there are cores
# keep these busy.
export NEXTEST_TEST_THREADS ?= $(shell echo $$(( ($$(nproc) * 3 + 1) / 2 )))

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | sort | awk -F'\t' '{printf "%-14s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## Install what build and tests need from Debian (with sudo unless root)
	@missing=(); for package in $(DEBIAN_PACKAGES); do \
		dpkg-query -W -f='$${Status}' "$$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$$package"); \
	done; \
	if [ "$${#missing[@]}" -gt 0 ]; then \
		as_root=(); [ "$$(id -u)" = 0 ] || as_root=(sudo); \
		"$${as_root[@]}" apt-get update -q; \
		"$${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$${missing[@]}"; \
	fi

.PHONY: fmt
fmt: ## Format the code
	cargo fmt --all

# --examples, of which there are none: with them cargo takes the dependencies as the lints have them, not anew.
.PHONY: lint
lint: ## Check format, lints and documentation
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items --lib --examples

.PHONY: test
test: ## Run all tests
	$(TEST) --locked

.PHONY: test-promises
test-promises: ## Run the tests of the promises (design: exact, nothing lost, …) on the built binary
	$(TEST) --locked --test it promises

.PHONY: test-stores
test-stores: ## Run the tests of the stores: SQLite and Postgres on the same cases, moving from one to the other
	$(TEST) --locked $(if $(findstring nextest,$(TEST)),-E 'test(/store::/) + test(/postgres/)',store::)
	$(if $(findstring nextest,$(TEST)),,$(TEST) --locked --test it postgres)

.PHONY: torture
torture: ## Run the long forms of the tests that kill, cut the power and fail disks (docs/guide/torture.md): TORTURE_SECONDS=120 TORTURE_SEED=1
	@export TORTURE_SEED="$${TORTURE_SEED:-$$(date +%Y%m%d)}" TORTURE_SECONDS="$${TORTURE_SECONDS:-120}"; \
	export TORTURE_KILLS="$${TORTURE_KILLS:-1000}" TORTURE_JOURNAL_FAULTS="$${TORTURE_JOURNAL_FAULTS:-120}"; \
	export TORTURE_JOURNAL_DISK_FAULTS="$${TORTURE_JOURNAL_DISK_FAULTS:-2100}"; \
	export TORTURE_STORE_DISK_FAULTS="$${TORTURE_STORE_DISK_FAULTS:-2100}"; \
	export TORTURE_CHECKPOINT_FAULTS="$${TORTURE_CHECKPOINT_FAULTS:-420}"; \
	env | grep ^TORTURE_ | sort; \
	if command -v cargo-nextest >/dev/null; then cargo nextest run --locked --profile torture torture::; \
		else cargo test --locked torture:: -- --nocapture; fi

.PHONY: test-real
test-real: ## Run the official OpenAI client against a real model: REAL_BASE_URL=http://127.0.0.1:18090/v1
	@[ -n "$${REAL_BASE_URL:-}" ] || { echo 'set REAL_BASE_URL to the base URL of an OpenAI-compatible server, such as http://127.0.0.1:18090/v1'; exit 1; }
	cargo build --locked
	[ -x $(TARGET_DIR)/openai/bin/python ] || python3 -m venv $(TARGET_DIR)/openai
	$(TARGET_DIR)/openai/bin/pip install -q --disable-pip-version-check openai
	$(TARGET_DIR)/openai/bin/python tests/real/openai_client.py $(TARGET_DIR)/debug/tollgate "$$REAL_BASE_URL"

.PHONY: test-openapi
test-openapi: ## Hold a running server against its own description, for the token of every role
	cargo build --locked
	[ -x $(TARGET_DIR)/schemathesis/bin/schemathesis ] || python3 -m venv $(TARGET_DIR)/schemathesis
	$(TARGET_DIR)/schemathesis/bin/pip install -q --disable-pip-version-check 'schemathesis>=4.32,<5'
	$(TARGET_DIR)/schemathesis/bin/python tests/openapi/conformance.py $(TARGET_DIR)/debug/tollgate

.PHONY: test-cloudevents
test-cloudevents: ## Send usage with the CloudEvents SDK for Python, again and again: each event counts once
	cargo build --locked
	[ -x $(TARGET_DIR)/cloudevents/bin/python ] || python3 -m venv $(TARGET_DIR)/cloudevents
	$(TARGET_DIR)/cloudevents/bin/pip install -q --disable-pip-version-check 'cloudevents>=1.11,<2'
	$(TARGET_DIR)/cloudevents/bin/python tests/cloudevents/send.py $(TARGET_DIR)/debug/tollgate

.PHONY: test-analytics
test-analytics: ## Read what a server wrote for analytics with DuckDB and pandas, and check its notices with Standard Webhooks' library
	cargo build --locked
	[ -x $(TARGET_DIR)/analytics/bin/python ] || python3 -m venv $(TARGET_DIR)/analytics
	$(TARGET_DIR)/analytics/bin/pip install -q --disable-pip-version-check duckdb pandas standardwebhooks
	$(TARGET_DIR)/analytics/bin/python tests/analytics/read.py $(TARGET_DIR)/debug/tollgate

.PHONY: test-stripe
test-stripe: ## Send webhooks signed by Stripe's own library for Python, good and bad, twice and out of order
	cargo build --locked
	[ -x $(TARGET_DIR)/stripe/bin/python ] || python3 -m venv $(TARGET_DIR)/stripe
	$(TARGET_DIR)/stripe/bin/pip install -q --disable-pip-version-check stripe
	$(TARGET_DIR)/stripe/bin/python tests/stripe/webhooks.py $(TARGET_DIR)/debug/tollgate

# What looks at the page from outside; nothing of it is part of the build.
BROWSE := $(TARGET_DIR)/page
.PHONY: page-tools
page-tools:
	cargo build --locked
	[ -x $(BROWSE)/bin/python ] || python3 -m venv $(BROWSE)
	$(BROWSE)/bin/pip install -q --disable-pip-version-check 'selenium>=4.30,<5'

.PHONY: test-admin
test-admin: ## Run the tests of the page for people, those in a real browser among them
	$(TEST) --locked --test it admin::

.PHONY: test-axe
test-axe: page-tools ## Have axe-core look at every page: narrow, wide and dark (needs npm, which fetches it)
	npm install --silent --no-audit --no-fund --prefix $(BROWSE)/axe axe-core@4
	PYTHONDONTWRITEBYTECODE=1 $(BROWSE)/bin/python tests/page/axe.py $(TARGET_DIR)/debug/tollgate $(BROWSE)/axe/node_modules/axe-core/axe.min.js

.PHONY: screenshots
screenshots: page-tools ## Take the pictures of docs/images from a made-up business
	PYTHONDONTWRITEBYTECODE=1 $(BROWSE)/bin/python tests/page/screenshots.py $(TARGET_DIR)/debug/tollgate docs/images

.PHONY: check
check: lint test test-openapi ## Everything that must be green: lints, tests, generated files unchanged, the API as described

.PHONY: generate
generate: ## Write the generated pages of docs/reference
	UPDATE_GENERATED=1 cargo test --locked --lib generated_

.PHONY: formats
formats: ## Write the stored files of tests/it/formats (for a new format only: old files are kept as they are)
	UPDATE_FORMATS=1 cargo test --locked --test it formats::

.PHONY: bench
bench: ## Measure what design and docs/reference/performance.md say: BENCH_ROWS=1,5 for some, BENCH_ROUNDS, BENCH_SECONDS, BENCH_BINARY
	cargo bench --locked

.PHONY: test-clients
test-clients: ## Run the clients of docs/guide/clients.md as they stand there (needs npm): served, then refused
	cargo build --locked
	[ -x $(TARGET_DIR)/clients/bin/python ] || python3 -m venv $(TARGET_DIR)/clients
	$(TARGET_DIR)/clients/bin/pip install -q --disable-pip-version-check openai langchain-openai standardwebhooks
	npm install --silent --no-audit --no-fund --prefix $(TARGET_DIR)/clients openai ai @ai-sdk/openai-compatible
	PYTHONDONTWRITEBYTECODE=1 $(TARGET_DIR)/clients/bin/python tests/clients/run.py $(TARGET_DIR)/debug/tollgate $(TARGET_DIR)/clients

STAGE := dist/$(DIST)
COMMITTED := $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
BUILT := $(TARGET_DIR)/$(HOST)/dist/tollgate
.PHONY: dist
dist: static-binary ## Build the static binary, and pack it as tarball, .deb and an image's context, with checksums: dist/
	rm -rf $(STAGE) dist/*.deb dist/*.tar.gz dist/container dist/SHA256SUMS
	mkdir -p $(STAGE)/man $(STAGE)/completions
	install -d -m 0700 dist/container/directories/data dist/container/directories/tmp
	cp $(BUILT) README.md LICENSE CHANGELOG.md $(STAGE)/
	cp -r packaging docs $(STAGE)/
	$(STAGE)/tollgate man > $(STAGE)/man/tollgate.1
	$(STAGE)/tollgate completions bash > $(STAGE)/completions/tollgate.bash
	$(STAGE)/tollgate completions zsh > $(STAGE)/completions/_tollgate
	$(STAGE)/tollgate completions fish > $(STAGE)/completions/tollgate.fish
	$(STAGE)/tollgate assets export $(STAGE)/assets --output json > /dev/null
	tar -C dist --sort=name --owner=0 --group=0 --mtime=@$(COMMITTED) -cf - $(DIST) | gzip -9n > dist/$(DIST).tar.gz
	packaging/deb.sh $(VERSION) $(STAGE) dist
	cp $(BUILT) packaging/Containerfile dist/container/
	cd dist && sha256sum *.tar.gz *.deb > SHA256SUMS
	python3 tests/dist/packages.py dist $(DIST)
	python3 tests/dist/empty_root.py $(STAGE)/tollgate
	@ls -l $(STAGE)/tollgate dist/*.tar.gz dist/*.deb

.PHONY: counts
counts:
	@[ -x $(PROFDATA) ] || rustup component add llvm-tools || { echo '$(PROFDATA) is missing: it comes with rustup as llvm-tools'; exit 1; }
	RUSTFLAGS='$(STATIC) -C profile-generate' cargo build --locked --profile dist --target $(HOST) --target-dir $(COUNTING)
	@# Counts are never the same twice, and the build by them would begin anew.
	if [ ! $(COUNTS) -nt $(COUNTING)/$(HOST)/dist/tollgate ]; then \
		PYTHONDONTWRITEBYTECODE=1 python3 tests/dist/exercise.py $(COUNTING)/$(HOST)/dist/tollgate $(COUNTING)/raw; \
		$(PROFDATA) merge -o $(COUNTS) $(COUNTING)/raw; \
	fi

.PHONY: static-binary
static-binary: counts
	RUSTFLAGS='$(STATIC) $(COUNTED)' cargo build --locked --profile dist --target $(HOST)
	@if LC_ALL=C ldd $(BUILT) 2>&1 | grep -vE 'statically linked|not a dynamic executable' | grep .; then \
		echo 'the binary is not static: it asks for the libraries above'; exit 1; fi

.PHONY: test-image
test-image: ## Build the image of `make dist`, and run what it says in what it holds (as root, needs buildah)
	python3 tests/dist/image.py dist/container

.PHONY: test-fresh
test-fresh: ## Run the README's first two commands in a Debian that has a Rust toolchain, its linker and make only (as root, needs debootstrap)
	PYTHONDONTWRITEBYTECODE=1 python3 tests/dist/fresh.py $(abspath $(TARGET_DIR))/debian

.PHONY: test-deb
test-deb: ## Install, run, upgrade and purge the .deb of `make dist` in a Debian of its own, under systemd (as root, needs debootstrap)
	PYTHONDONTWRITEBYTECODE=1 python3 tests/dist/deb.py dist/tollgate_$(VERSION)_$(shell dpkg --print-architecture).deb $(STAGE) $(TARGET_DIR)/debian
