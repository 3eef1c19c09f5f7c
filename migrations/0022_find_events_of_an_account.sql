-- no-transaction
-- Owned by src/audit.rs. Finds what happened to an account (`account history`). A start writes no event, so it does not
-- write this index.
CREATE INDEX CONCURRENTLY audit_event_account_id_id_idx ON audit_event (account_id, id) WHERE account_id IS NOT NULL;
