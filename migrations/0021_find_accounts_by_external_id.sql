-- no-transaction
-- Owned by src/account/. Finds accounts by their id in another system. Accounts without one have no entry. An entry of
-- an index has at most 2704 bytes, so a longer id is found by its beginning.
CREATE INDEX CONCURRENTLY account_external_id_idx ON account ((left(traits->>'external_id', 200)), id)
    WHERE traits->>'external_id' IS NOT NULL;
