-- Who is signed in, and where. Owned by src/session.rs.
--
-- The token is stored as its SHA-256. Sessions of an account are listed and revoked together, hence the second index.
CREATE TABLE session (
    id               uuid PRIMARY KEY,
    token_hash       bytea NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    account_id       uuid NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    authenticated_at timestamptz NOT NULL,
    last_seen_at     timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL,
    revoked_at       timestamptz,
    client_ip        inet NOT NULL,
    user_agent       text NOT NULL CHECK (char_length(user_agent) <= 200)
) WITH (fillfactor = 80);

CREATE INDEX session_account_id_idx ON session (account_id);
