# The two commands of a newcomer, and the few of a developer. `make help` lists them.

SHELL := /bin/bash
target := $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: help run test prepare bench courier chaos blind catalogue

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

run: ## run the service on PORT (default 8080) with a database, accounts and a mailbox of its own
	@cargo build
	@scripts/with-postgres run "$(target)/debug/vos-auth" dev || { code=$$?; [ $$code -eq 130 ] || [ $$code -eq 143 ]; }

test: ## run every test against a database of their own
	@/usr/bin/python3 -c 'import jwt, cryptography' 2>/dev/null || scripts/apt-install PyJWT python3-jwt python3-cryptography
	@ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || scripts/apt-install libfaketime faketime
	@ls /usr/sbin/postfix /usr/sbin/saslpasswd2 /usr/lib/*/sasl2/libplain.so /usr/bin/openssl >/dev/null 2>&1 \
	  || scripts/apt-install Postfix postfix sasl2-bin libsasl2-modules openssl
	@ls /usr/sbin/nginx /usr/bin/curl >/dev/null 2>&1 || scripts/apt-install nginx nginx curl
	@[ -x /usr/bin/promtool ] || scripts/apt-install promtool --no-install-recommends prometheus
	@cargo test --no-run
	@scripts/with-postgres test cargo test

catalogue: ## run every test, and write what became of each requirement into docs/catalogue.md
	@scripts/with-postgres test cargo test --no-fail-fast -- --format=pretty | tee /dev/stderr | scripts/catalogue

prepare: ## write .sqlx anew after a query or a migration was changed (needs cargo-sqlx)
	@scripts/with-postgres prepare scripts/sqlx-prepare

bench: ## measure `start` beside pgbench with the same statement (needs wrk)
	@cargo build --release
	@scripts/with-postgres bench scripts/bench-start

courier: ## measure the courier: replicas on one outbox, a stalling relay, what an outage left
	@cargo bench --bench courier --no-run
	@scripts/with-postgres courier cargo bench --bench courier

chaos: ## break everything around two replicas under load, and count what was lost (ARGS="--seed 1 …"; needs root)
	@ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || scripts/apt-install libfaketime faketime
	@[ -x /usr/sbin/postfix ] || scripts/apt-install Postfix postfix
	@cargo build --quiet --bench chaos
	@scripts/with-postgres chaos cargo test --quiet --bench chaos -- $(ARGS)

blind: ## measure whether time tells who has an account (ARGS="--calls 5000 --seed 1")
	@cargo bench --bench blind --no-run
	@scripts/with-postgres blind cargo bench --bench blind -- $(ARGS)
