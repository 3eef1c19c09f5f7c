# The two commands of a newcomer, and the few of a developer. `make help` lists them.

SHELL := /bin/bash
target := $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: help run test prepare bench cost courier chaos blind catalogue fuzz hostile upgrade failover page-tools screenshots import

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

run: ## run the service on PORT (default 8080) with a database, accounts and a mailbox of its own
	@cargo build
	@env -u DATABASE_URL -u DATABASE_URL_FILE scripts/with-postgres run "$(target)/debug/vos-auth" dev || { code=$$?; [ $$code -eq 130 ] || [ $$code -eq 143 ]; }

page-tools: # what the tests of the pages need: Chromium, and axe from npm
	@ls /usr/bin/chromium /usr/bin/chromedriver >/dev/null 2>&1 || scripts/apt-install Chromium chromium chromium-driver
	@command -v npm >/dev/null || scripts/apt-install npm npm
	@[ -e tests/page/node_modules/axe-core/axe.min.js ] || npm ci --prefix tests/page --no-audit --no-fund --silent

screenshots: page-tools ## take the pictures of the pages in docs/images anew (needs pngquant)
	@command -v pngquant >/dev/null || scripts/apt-install pngquant pngquant fonts-noto-core
	@mkdir -p docs/images && rm -f docs/images/recovery-*.png docs/images/mailbox-*.png
	@SCREENSHOTS="$$PWD/docs/images" scripts/with-postgres test cargo test --test it -- the_whole_journey_in dev_leads
	@pngquant --force --ext .png --speed 1 16 docs/images/*.png

test: page-tools ## run every test against a database of their own
	@/usr/bin/python3 -c 'import jwt, cryptography' 2>/dev/null || scripts/apt-install PyJWT python3-jwt python3-cryptography
	@ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || scripts/apt-install libfaketime faketime
	@ls /usr/sbin/postfix /usr/sbin/saslpasswd2 /usr/lib/*/sasl2/libplain.so /usr/bin/openssl >/dev/null 2>&1 \
	  || scripts/apt-install Postfix postfix sasl2-bin libsasl2-modules openssl
	@ls /usr/sbin/nginx /usr/bin/curl >/dev/null 2>&1 || scripts/apt-install nginx nginx curl
	@[ -x /usr/bin/promtool ] || scripts/apt-install promtool --no-install-recommends prometheus
	@cargo test --no-run
	@[ "$$(id -u)" -eq 0 ] || echo 'make test: without root, the tests with a real Postfix, the one of restoring a dump and the one on a read-only file system are left out' >&2
	@scripts/with-postgres test cargo test

catalogue: page-tools ## run every test, and write what became of each requirement into docs/catalogue.md
	@scripts/with-postgres test cargo test --no-fail-fast -- --format=pretty | tee /dev/stderr | scripts/catalogue

prepare: ## write .sqlx anew after a query or a migration was changed (needs cargo-sqlx)
	@scripts/with-postgres prepare scripts/sqlx-prepare

bench: ## measure the service beside pgbench with the same statement (ARGS="--part closed --seconds 10")
	@cargo bench --bench start --no-run
	@scripts/with-postgres bench cargo bench --bench start -- $(ARGS)

cost: ## count instructions, statements and WAL of a start, against bounds if given (ARGS="--wal 2000")
	@command -v valgrind >/dev/null || scripts/apt-install valgrind valgrind
	@cargo build --release
	@scripts/with-postgres cost python3 benches/cost/measure.py "$(target)/release/vos-auth" $(ARGS)

courier: ## measure the courier: beside lettre alone, replicas on one outbox, a stalling relay, what an outage left (needs root)
	@[ -x /usr/sbin/postfix ] || scripts/apt-install Postfix postfix
	@cargo bench --bench courier --no-run
	@scripts/with-postgres courier cargo bench --bench courier

chaos: ## break everything around two replicas under load, and count what was lost (ARGS="--seed 1 …"; needs root)
	@ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || scripts/apt-install libfaketime faketime
	@[ -x /usr/sbin/postfix ] || scripts/apt-install Postfix postfix
	@cargo build --quiet --bench chaos
	@scripts/with-postgres chaos cargo test --quiet --bench chaos -- $(ARGS)

failover: ## lose one PostgreSQL of two after the other under load, and count what was lost (ARGS="--losses 6"; needs root)
	@ls /usr/bin/patroni /usr/bin/etcd /usr/sbin/haproxy /usr/lib/postgresql/15/bin/postgres /usr/bin/openssl /usr/bin/curl >/dev/null 2>&1 \
	  || scripts/apt-install Patroni --no-install-recommends patroni etcd-server haproxy postgresql-15 openssl curl
	@[ -x /usr/sbin/postfix ] || scripts/apt-install Postfix postfix
	@cargo test --quiet --bench failover -- $(ARGS)

blind: ## measure whether time tells who has an account (ARGS="--calls 5000 --seed 1")
	@cargo bench --bench blind --no-run
	@scripts/with-postgres blind cargo bench --bench blind -- $(ARGS)

fuzz: ## try the parsers with made-up input, each for so long (seconds=600; needs nightly Rust, which it installs)
	@scripts/fuzz $(or $(seconds),600)

hostile: ## measure what clients notice of 10,000 idle connections and 200 slow writers
	@cargo bench --bench hostile --no-run
	@scripts/with-postgres hostile cargo bench --bench hostile

upgrade: ## take the release before to this one and back under load (FROM=a revision, ARGS="--rows 1000000")
	@ls /usr/sbin/nginx /usr/bin/curl /usr/bin/openssl >/dev/null 2>&1 || scripts/apt-install nginx nginx curl openssl
	@from=$$(scripts/release-before $(FROM)) && cargo build --quiet --bench upgrade \
	  && scripts/with-postgres upgrade cargo test --quiet --bench upgrade -- --from "$$from" $(ARGS)

import: ## measure the move of a million accounts: time, memory, kill -9 in the middle, logins (ARGS="--accounts 100000")
	@cargo build --release
	@scripts/with-postgres import python3 benches/import/measure.py "$(target)/release/vos-auth" $(ARGS)
