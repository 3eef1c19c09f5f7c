# Commands for developers. `make help` lists them.

SHELL := /bin/bash
target := $(or $(CARGO_TARGET_DIR),target)
# Programs of the lab: with the service beside them, both for debugging or both optimised; or with an optimised service alone. The
# service is built apart, so that it has the features of a release.
lab = cargo build --quiet -p vos-auth-lab && cargo build --quiet && "$(target)/debug/lab"
optimised = cargo build --release -p vos-auth-lab && cargo build --release && "$(target)/release/lab"
counting = cargo build --quiet -p vos-auth-lab && cargo build --release && "$(target)/debug/lab" --service "$(target)/release/vos-auth"

.DEFAULT_GOAL := help
.PHONY: clients help run test prepare bench cost courier chaos blind catalogue fuzz hostile upgrade failover screenshots import fresh versions pooler deb image packages

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

run: ## run the service on PORT (default 8080) with its own database, demo accounts and mailbox
	@scripts/apt-install run
	@cargo build
	@env -u DATABASE_URL -u DATABASE_URL_FILE scripts/with-postgres run "$(target)/debug/vos-auth" dev || { code=$$?; [ $$code -eq 130 ] || [ $$code -eq 143 ]; }

# The page tests need axe, from npm.
axe = [ -e tests/page/node_modules/axe-core/axe.min.js ] || npm ci --prefix tests/page --no-audit --no-fund --silent

screenshots: ## renew the screenshots of the pages in docs/images
	@scripts/apt-install screenshots
	@$(axe)
	@mkdir -p docs/images && rm -f docs/images/recovery-*.png docs/images/mailbox-*.png docs/images/email-*.png docs/images/console-*.png
	@SCREENSHOTS="$$PWD/docs/images" scripts/with-postgres test cargo test --test it -- the_whole_journey_in has_the_look_of_its_brand dev_leads every_email a_hundred_emails lets_the_trader_in_in
	@pngquant --force --ext .png --speed 1 16 docs/images/*.png

test: ## run all tests against their own database
	@scripts/apt-install test
	@$(axe)
	@cargo test --no-run
	@[ "$$(id -u)" -eq 0 ] || echo 'make test: without root, the tests with a real Postfix, of restoring a dump, and on a read-only file system are skipped' >&2
	@scripts/with-postgres test cargo test

catalogue: ## run all tests, and write the result for each requirement into docs/catalogue.md
	@scripts/apt-install catalogue
	@$(axe)
	@scripts/with-postgres test cargo test --no-fail-fast -- --format=pretty | tee /dev/stderr | scripts/catalogue

prepare: ## regenerate .sqlx after a query or a migration was changed (needs cargo-sqlx)
	@scripts/apt-install prepare
	@scripts/with-postgres prepare scripts/sqlx-prepare

bench: ## compare the service with pgbench running the same statement (ARGS="--part closed --seconds 10")
	@scripts/apt-install bench
	@cargo bench --bench start -- $(ARGS)

cost: ## count instructions, statements and WAL of a start and a delivered code, against bounds if given (ARGS="--start-wal 2000 --by-statement")
	@scripts/apt-install cost
	@$(counting) cost $(ARGS)

courier: ## measure the courier: against lettre alone, several replicas, a stalling relay, after an outage (needs root)
	@scripts/apt-install courier
	@cargo bench --bench courier

chaos: ## inject faults around two replicas under load, and count lost emails (ARGS="--seed 1 …"; needs root)
	@scripts/apt-install chaos
	@$(lab) chaos $(ARGS)

failover: ## lose one of two PostgreSQL machines repeatedly under load, and count lost emails (ARGS="--losses 6"; needs root)
	@scripts/apt-install failover
	@$(lab) failover $(ARGS)

clients: ## generate clients from the API's description (Python, TypeScript) and take each through a recovery
	@scripts/apt-install clients
	@cargo build
	@scripts/with-postgres clients scripts/clients "$(target)/debug/vos-auth"

blind: ## measure whether response times reveal who has an account (ARGS="--calls 5000 --seed 1")
	@scripts/apt-install blind
	@$(optimised) blind $(ARGS)

fuzz: ## fuzz the parsers, each for some time (seconds=600; installs nightly Rust)
	@scripts/apt-install fuzz
	@scripts/fuzz $(or $(seconds),600)

hostile: ## measure how 10,000 idle connections, 200 slow writers and 1,700 unfinished headers affect other clients
	@scripts/apt-install hostile
	@$(optimised) hostile

upgrade: ## upgrade from the previous release and roll back under load (FROM=a revision, ARGS="--rows 1000000")
	@scripts/apt-install upgrade
	@from=$$(scripts/release-before $(FROM)) && $(lab) upgrade --from "$$from" $(ARGS)

import: ## measure the import of a million accounts: time, memory, a kill -9 during it, logins (ARGS="--accounts 100000")
	@scripts/apt-install import
	@$(counting) import $(ARGS)

fresh: ## try README's two commands on bare Debian machines made by debootstrap (ARGS="--again ROW"; needs root)
	@scripts/apt-install fresh
	@scripts/fresh $(ARGS)

versions: ## test migrations, the whole journey and query plans on PostgreSQL 14 to 18
	@scripts/apt-install versions
	@scripts/versions

pooler: ## test PgBouncer's transaction mode, with the version of Debian 13 (needs root)
	@scripts/apt-install pooler
	@cargo test --test it --no-run
	@scripts/with-postgres pooler scripts/pooler-trixie

deb: ## build the Debian package in target/debian
	@cargo deb --version 2>/dev/null | grep -q ' 3.8.0' || cargo install --locked --quiet cargo-deb@3.8.0
	@scripts/deb

image: ## build the container image vos-auth with buildah (BUILD_IMAGE=… RUN_IMAGE=… for other bases, ARGS="--tag …")
	@scripts/apt-install image
	@buildah build --format docker --tag vos-auth $(foreach base,BUILD_IMAGE RUN_IMAGE,$(if $($(base)),--build-arg $(base)=$($(base)))) $(ARGS) .

packages: ## test package and image in bare root file systems (ARGS="bookworm trixie image"; needs root and some minutes)
	@scripts/packages-test $(ARGS)
