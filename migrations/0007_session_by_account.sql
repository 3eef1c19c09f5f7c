-- The sessions of an account are listed and bounded newest first, so the index has their order too. Every sign-in and
-- refresh writes the table: its dead rows are cleaned by number, as in the other hot ones.
CREATE INDEX session_account_id_id_idx ON session (account_id, id);
DROP INDEX session_account_id_idx;
ALTER TABLE session SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
