-- What the release before has stopped using (docs/decisions/7): it knows ended recoveries by their number, and finds tokens by the
-- index of 11.
DROP INDEX recovery_session_email_idx;
ALTER TABLE recovery_session DROP CONSTRAINT recovery_session_token_hash_key;
