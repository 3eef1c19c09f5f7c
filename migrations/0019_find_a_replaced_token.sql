-- no-transaction
-- Owned by src/recovery/. Finds a recovery by the token that `verify` replaced, and what the sweeper has to clear. Only
-- successes with a key have an entry, for two minutes, so a start writes none.
CREATE INDEX CONCURRENTLY recovery_session_replay_idx ON recovery_session (replay_until, replay_token_hash)
    WHERE replay_until IS NOT NULL;
