-- no-transaction
-- A session is found by its whole token alone, so the place of an entry need not be in the order of tokens. A hash index takes half
-- the room of the unique one, and every start writes a random page of it. Two tokens alike are not to be feared: 256 random bits.
CREATE INDEX CONCURRENTLY recovery_session_token_hash_idx ON recovery_session USING hash (token_hash);
