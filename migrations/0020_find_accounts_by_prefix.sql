-- no-transaction
-- Owned by src/account/. Finds accounts by the beginning of their address (`account find`). The index of
-- account_email_key has the order of the database's language, in which a prefix is no range.
CREATE INDEX CONCURRENTLY account_email_c_idx ON account (email COLLATE "C");
