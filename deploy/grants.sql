-- The least rights of two roles that own nothing: the service's, and the one of an operator's commands (`account`, `outbox`).
-- `migrate` runs as the owner. Run this file after each `migrate`, before the first replica of the new release, as a
-- superuser or the owner; it can be run again at any time, also while replicas serve:
--
--   runuser -u postgres -- psql -q vos_auth <deploy/grants.sql
--
-- Other names for the roles: psql -v serve=NAME -v operator=NAME. The roles have to exist.
--
-- A migration that adds a table, a sequence or a column states its rights here; `tests/it/roles.rs` compares them with the
-- schema. Default privileges are not used: a new table is closed until a release grants rights on it. A right is taken
-- away by the release after the one that stopped using it, as older replicas still serve.
\set ON_ERROR_STOP on
\if :{?serve} \else \set serve vos_auth_serve \endif
\if :{?operator} \else \set operator vos_auth_operator \endif
BEGIN;

-- No other role connects unless granted, and only the owner makes tables, temporary ones included.
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC, :"serve", :"operator";
GRANT CONNECT ON DATABASE :"DBNAME" TO :"serve", :"operator";
REVOKE CREATE ON SCHEMA public FROM PUBLIC, :"serve", :"operator";
GRANT USAGE ON SCHEMA public TO :"serve", :"operator";

-- From nothing, so that a right that is no longer listed is gone.
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM :"serve", :"operator";
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM :"serve", :"operator";

-- The version of the schema, which `/readyz` compares.
GRANT SELECT ON _sqlx_migrations TO :"serve";

-- The service sets passwords, and takes the mark of an address that bounced away. It makes, renames, disables and deletes no account.
GRANT SELECT, UPDATE (password_hash, password_changed_at, updated_at, recoveries_ended, bouncing_since) ON account TO :"serve";
GRANT SELECT, INSERT, UPDATE, DELETE ON account TO :"operator";

-- What the service makes, uses and, when it has expired, deletes. The operator's commands end sessions and recoveries, send
-- notices again, and delete what belongs to an account that is erased (its sessions by the foreign key).
GRANT SELECT, INSERT, UPDATE, DELETE ON session, recovery_session, outbox, throttle TO :"serve";
GRANT SELECT, UPDATE (revoked_at) ON session TO :"operator";
GRANT SELECT, UPDATE (state), DELETE ON recovery_session TO :"operator";
GRANT SELECT, UPDATE (next_attempt_at), DELETE ON outbox TO :"operator";
-- `account unblock` counts how often it was used, in the table that it empties.
GRANT SELECT, INSERT, UPDATE, DELETE ON throttle TO :"operator";

-- What kinds of hashes there are, as they were last counted.
GRANT SELECT, INSERT, UPDATE ON hash_census TO :"serve";

-- Appended by both, changed by no service. The sweeper deletes after AUDIT_RETENTION, by id; `account erase` blanks two columns.
GRANT SELECT (id), INSERT, DELETE ON audit_event TO :"serve";
GRANT SELECT, INSERT, UPDATE (client_ip, user_agent) ON audit_event TO :"operator";

GRANT USAGE ON SEQUENCE recovery_number TO :"serve", :"operator";

COMMIT;
