-- Owned by src/second_factor/. What an account asks for besides the password, once its owner has enrolled it
-- (docs/decisions/0041). An account without a confirmed row needs only its password.
CREATE TABLE second_factor (
    id           uuid PRIMARY KEY,
    account_id   uuid NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    kind         text NOT NULL CHECK (kind IN ('totp')),
    -- The owner's name for the device.
    name         text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 60),
    -- The secret of TOTP, encrypted under the key of FACTOR_SECRETS with this id.
    key_id       text NOT NULL,
    secret       bytea NOT NULL,
    -- The last time step whose code was used (RFC 6238, 5.2): a code is accepted once.
    last_step    bigint NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL,
    -- NULL until a first code shows that the owner's device has the secret.
    confirmed_at timestamptz,
    last_used_at timestamptz
);

CREATE INDEX second_factor_account_idx ON second_factor (account_id, id);

-- Codes that stand in for a lost device. SHA-256 of 80 random bits each; a used one stays, so that the owner sees how many
-- are left.
CREATE TABLE backup_code (
    account_id uuid NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    code_hash  bytea NOT NULL CHECK (octet_length(code_hash) = 32),
    used_at    timestamptz,
    PRIMARY KEY (account_id, code_hash)
);

-- Owned by src/session/. A login whose password was right and whose second factor is not given yet.
CREATE TABLE login_step (
    token_hash          bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    account_id          uuid NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    -- A new password ends the step.
    password_changed_at timestamptz,
    attempts_left       smallint NOT NULL CHECK (attempts_left >= 0),
    expires_at          timestamptz NOT NULL
);

CREATE INDEX login_step_expires_idx ON login_step (expires_at);
CREATE INDEX login_step_account_idx ON login_step (account_id);

-- The method by which a second factor was given; NULL: none. Adding a column that is NULL rewrites no row.
ALTER TABLE session ADD COLUMN second_factor text CHECK (second_factor IN ('totp', 'backup_code'));
ALTER TABLE recovery_session ADD COLUMN second_factor text CHECK (second_factor IN ('totp', 'backup_code'));
