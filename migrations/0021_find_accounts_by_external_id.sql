-- no-transaction
-- Owned by src/account/. Finds accounts by their id in another system. Accounts without one have no entry.
CREATE INDEX CONCURRENTLY account_external_id_idx ON account ((traits->>'external_id'), id)
    WHERE traits->>'external_id' IS NOT NULL;
