-- The least rights of two roles that own nothing: one for the service, one for an operator's commands (`account`, `operator`,
-- `outbox`) and the admin API.
-- `migrate` runs as the owner. Run this file as a superuser or the owner, after each `migrate` and before the first replica of
-- the new release. It can be run again at any time, also while replicas serve:
--
--   runuser -u postgres -- psql -q vos_auth <deploy/grants.sql
--
-- Other names for the roles: psql -v serve=NAME -v operator=NAME. The roles have to exist.
--
-- A migration that adds a table, a sequence or a column adds its rights here; `tests/it/roles.rs` compares them with the
-- schema. There are no default privileges: a new table is closed until a release grants rights on it. A right is revoked one
-- release after the last one that uses it, because older replicas still serve.
\set ON_ERROR_STOP on
\if :{?serve} \else \set serve vos_auth_serve \endif
\if :{?operator} \else \set operator vos_auth_operator \endif
BEGIN;

-- No other role can connect unless granted. Only the owner can create tables, including temporary ones.
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC, :"serve", :"operator";
GRANT CONNECT ON DATABASE :"DBNAME" TO :"serve", :"operator";
REVOKE CREATE ON SCHEMA public FROM PUBLIC, :"serve", :"operator";
GRANT USAGE ON SCHEMA public TO :"serve", :"operator";

-- Start from no rights, so that a right that is no longer listed is revoked.
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM :"serve", :"operator";
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM :"serve", :"operator";

-- The version of the schema, which `/readyz` compares.
GRANT SELECT ON _sqlx_migrations TO :"serve";

-- The service sets passwords and clears the mark of a bouncing address. It does not create, rename, disable or delete accounts.
GRANT SELECT, UPDATE (password_hash, password_changed_at, updated_at, recoveries_ended, bouncing_since) ON account TO :"serve";
GRANT SELECT, INSERT, UPDATE, DELETE ON account TO :"operator";

-- The service creates, uses and deletes these rows. An operator's commands end sessions and recoveries, send notices again, and
-- delete the rows of an erased account (its sessions by the foreign key).
GRANT SELECT, INSERT, UPDATE, DELETE ON session, recovery_session, outbox, throttle TO :"serve";
GRANT SELECT, INSERT, UPDATE, DELETE ON second_factor, backup_code, login_step TO :"serve";
GRANT SELECT, UPDATE (revoked_at) ON session TO :"operator";
GRANT SELECT, UPDATE (state), DELETE ON recovery_session TO :"operator";
-- An operator's help enqueues a notice to the owner.
GRANT SELECT, INSERT, UPDATE (next_attempt_at), DELETE ON outbox TO :"operator";
-- `account unblock` counts its uses in the table from which it deletes.
GRANT SELECT, INSERT, UPDATE, DELETE ON throttle TO :"operator";

-- Operators ask, approve and cancel. The service ends a request when the owner stops it, and deletes old ones. It can make and
-- approve none: an approval needs a column that it may not write. The admin API's role carries an address change out.
GRANT SELECT, UPDATE (state, ended_at, ended_by), DELETE ON operator_request TO :"serve";
GRANT SELECT, INSERT, UPDATE (state, approved_by, approved_at, effective_at, notice_id, ended_at, ended_by)
    ON operator_request TO :"operator";

-- The schemes of stored hashes, as last counted.
GRANT SELECT, INSERT, UPDATE ON hash_census TO :"serve";

-- Who may call the admin API. The service has no rights on it: only the connections of the admin API read it.
GRANT SELECT, INSERT, UPDATE ON operator TO :"operator";

-- Both roles append, and the service changes no row. The sweeper deletes by id after AUDIT_RETENTION. `account erase` clears two
-- columns. Webhooks read the kind, the account and the time of an event, and not its client.
GRANT SELECT (id, what, account_id, created_at), INSERT, DELETE ON audit_event TO :"serve";
GRANT SELECT, INSERT, UPDATE (client_ip, user_agent) ON audit_event TO :"operator";

-- The hooks of EVENT_HOOKS. A trigger, which runs as the owner, inserts the deliveries; neither role can make one up. An
-- operator's command replays dead letters.
GRANT SELECT, INSERT, UPDATE, DELETE ON event_hook TO :"serve";
GRANT SELECT, UPDATE, DELETE ON event_delivery TO :"serve";
GRANT SELECT, UPDATE (died_at, enqueued_at, next_attempt_at) ON event_delivery TO :"operator";

GRANT USAGE ON SEQUENCE recovery_number TO :"serve", :"operator";

COMMIT;
