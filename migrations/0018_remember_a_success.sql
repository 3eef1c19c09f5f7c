-- Owned by src/recovery/. A client whose answer of `verify` or `reset-password` was lost sends the same Idempotency-Key
-- again and gets that success again (docs/decisions/0035). NULL, as at every start, unless there was a success with a
-- key; the sweeper clears them two minutes after it.
ALTER TABLE recovery_session
    -- Until when the success can be repeated.
    ADD COLUMN replay_until      timestamptz,
    -- SHA-256 of the key.
    ADD COLUMN replay_key        bytea,
    -- After `verify`: SHA-256 of the token that it replaced. The client still has that one if the answer was lost.
    ADD COLUMN replay_token_hash bytea,
    -- After `reset`: the session whose token may be lost. No foreign key, because the sweeper deletes sessions.
    ADD COLUMN replay_session_id uuid;
