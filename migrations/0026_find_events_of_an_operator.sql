-- no-transaction
-- Owned by src/audit/. Finds what an operator did. Events without an operator have no entry.
CREATE INDEX CONCURRENTLY audit_event_operator_id_idx ON audit_event (operator, id) WHERE operator IS NOT NULL;
