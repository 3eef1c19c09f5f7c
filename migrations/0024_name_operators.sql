-- Owned by src/operator.rs: who may call the admin API with a token, and in which role. An operator with a client certificate
-- has no row: the setting ADMIN_CLIENT_ROLES has its role.
CREATE TABLE operator (
    name       text PRIMARY KEY CHECK (char_length(name) BETWEEN 1 AND 64),
    role       text NOT NULL CHECK (role IN ('auditor', 'support', 'admin')),
    -- SHA-256 of the token, so that a copy of this table opens nothing.
    token_hash bytea NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- The row is kept, because audit events name the operator.
    revoked_at timestamptz
);

-- Owned by src/audit/. NULL unless an operator called the admin API. No CHECK, which would scan the table.
ALTER TABLE audit_event
    -- The name of the operator, or the identity in the client certificate.
    ADD COLUMN operator text,
    -- Why, in the operator's words, of at most 200 characters.
    ADD COLUMN reason   text,
    -- Which call of the admin API. NULL if `what` says it, because the call changed the account.
    ADD COLUMN call     text,
    -- `allowed`, `refused` (the role may not) or `failed`.
    ADD COLUMN outcome  text;
