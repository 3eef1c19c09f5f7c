# The two commands of a newcomer, and the few of a developer. `make help` lists them.

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

run: ## run the service on PORT (default 8080) with a database, accounts and a mailbox of its own
	@scripts/apt-install run
	@cargo build
	@env -u DATABASE_URL -u DATABASE_URL_FILE scripts/with-postgres run "$(target)/debug/vos-auth" dev || { code=$$?; [ $$code -eq 130 ] || [ $$code -eq 143 ]; }

# The tests of the pages need axe, from npm.
axe = [ -e tests/page/node_modules/axe-core/axe.min.js ] || npm ci --prefix tests/page --no-audit --no-fund --silent

screenshots: ## take the pictures of the pages in docs/images anew
	@scripts/apt-install screenshots
	@$(axe)
	@mkdir -p docs/images && rm -f docs/images/recovery-*.png docs/images/mailbox-*.png
	@SCREENSHOTS="$$PWD/docs/images" scripts/with-postgres test cargo test --test it -- the_whole_journey_in dev_leads
	@pngquant --force --ext .png --speed 1 16 docs/images/*.png

test: ## run every test against a database of their own
	@scripts/apt-install test
	@$(axe)
	@cargo test --no-run
	@[ "$$(id -u)" -eq 0 ] || echo 'make test: without root, the tests with a real Postfix, the one of restoring a dump and the one on a read-only file system are left out' >&2
	@scripts/with-postgres test cargo test

catalogue: ## run every test, and write what became of each requirement into docs/catalogue.md
	@scripts/apt-install catalogue
	@$(axe)
	@scripts/with-postgres test cargo test --no-fail-fast -- --format=pretty | tee /dev/stderr | scripts/catalogue

prepare: ## write .sqlx anew after a query or a migration was changed (needs cargo-sqlx)
	@scripts/apt-install prepare
	@scripts/with-postgres prepare scripts/sqlx-prepare

bench: ## measure the service beside pgbench with the same statement (ARGS="--part closed --seconds 10")
	@scripts/apt-install bench
	@cargo bench --bench start -- $(ARGS)

cost: ## count what a start and a delivered code cost, against bounds if given (ARGS="--start-wal 2000 --by-statement")
	@scripts/apt-install cost
	@$(counting) cost $(ARGS)

courier: ## measure the courier: beside lettre alone, replicas on one outbox, a stalling relay, what an outage left (needs root)
	@scripts/apt-install courier
	@cargo bench --bench courier

chaos: ## break everything around two replicas under load, and count what was lost (ARGS="--seed 1 …"; needs root)
	@scripts/apt-install chaos
	@$(lab) chaos $(ARGS)

failover: ## lose one PostgreSQL of two after the other under load, and count what was lost (ARGS="--losses 6"; needs root)
	@scripts/apt-install failover
	@$(lab) failover $(ARGS)

clients: ## generate clients from the API's description (Python, TypeScript) and take each through a recovery
	@scripts/apt-install clients
	@cargo build
	@scripts/with-postgres clients scripts/clients "$(target)/debug/vos-auth"

blind: ## measure whether time tells who has an account (ARGS="--calls 5000 --seed 1")
	@scripts/apt-install blind
	@$(optimised) blind $(ARGS)

fuzz: ## try the parsers with made-up input, each for so long (seconds=600; needs nightly Rust, which it installs)
	@scripts/apt-install fuzz
	@scripts/fuzz $(or $(seconds),600)

hostile: ## measure what clients notice of 10,000 idle connections, 200 slow writers, and 1,700 unfinished headers at nginx
	@scripts/apt-install hostile
	@$(optimised) hostile

upgrade: ## take the release before to this one and back under load (FROM=a revision, ARGS="--rows 1000000")
	@scripts/apt-install upgrade
	@from=$$(scripts/release-before $(FROM)) && $(lab) upgrade --from "$$from" $(ARGS)

import: ## measure the move of a million accounts: time, memory, kill -9 in the middle, logins (ARGS="--accounts 100000")
	@scripts/apt-install import
	@$(counting) import $(ARGS)

fresh: ## try README's two commands on bare machines made by debootstrap (ARGS="--again ROW"; needs root)
	@scripts/apt-install fresh
	@scripts/fresh $(ARGS)

versions: ## run migrations, the whole journey and the statements' plans on PostgreSQL 14 to 18
	@scripts/apt-install versions
	@scripts/versions

pooler: ## test PgBouncer's transaction mode, with the version of Debian 13 in a bare root (needs root)
	@scripts/apt-install pooler
	@cargo test --test it --no-run
	@scripts/with-postgres pooler scripts/pooler-trixie

deb: ## make the Debian package in target/debian
	@cargo deb --version 2>/dev/null | grep -q ' 3.8.0' || cargo install --locked --quiet cargo-deb@3.8.0
	@scripts/deb

image: ## build the image vos-auth with buildah (BUILD_IMAGE=… RUN_IMAGE=… for other bases, ARGS="--tag …")
	@scripts/apt-install image
	@buildah build --format docker --tag vos-auth $(foreach base,BUILD_IMAGE RUN_IMAGE,$(if $($(base)),--build-arg $(base)=$($(base)))) $(ARGS) .

packages: ## prove package and image in bare roots (ARGS="bookworm trixie image"; needs root and some minutes)
	@scripts/packages-test $(ARGS)
