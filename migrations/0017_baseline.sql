-- The schema of 0.1.0, the first release. Each table belongs to the module that its comment names.
--
-- It is number 17 because databases of development have versions 1 to 16. `vos-auth migrate` tells
-- these by their versions, and refuses them.
--
-- Ids are UUIDv7, so a primary key is also the order of creation. The sweeper, the courier and the
-- listings use that order, so no table needs a second index on a time.

-- Owned by src/account/: the accounts, active and disabled.
CREATE TABLE account (
    id                  uuid PRIMARY KEY,
    -- As EmailAddress normalizes it (ASCII, lower case, punycode domain), so addresses are compared
    -- by plain equality. A collation or case folding could take two addresses for one.
    email               text NOT NULL CONSTRAINT account_email_key UNIQUE,
    state               text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'disabled')),
    locale              text CHECK (locale IN ('vi', 'en')),
    traits              jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(traits) = 'object'),
    -- A PHC string, or a hash that another system made. NULL: the owner recovers by email first.
    password_hash       text,
    password_changed_at timestamptz,
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    -- When an import last wrote the account. While it equals `updated_at`, the account was not used
    -- or changed here, and a later import may change it. After that an import leaves the account
    -- alone: it must never restore an old password.
    imported_at         timestamptz,
    -- The number of the last recovery that has ended: a new password, a new address and disabling
    -- the account end all that have begun (docs/decisions/0007).
    recoveries_ended    bigint NOT NULL DEFAULT 0,
    -- Since when emails to the address bounce after a relay has accepted them (RFC 3464). NULL: no
    -- bounce is known. For operators alone: it delays no email, because anyone who has seen a
    -- Return-Path can report a bounce.
    bouncing_since      timestamptz
);

-- One `start` writes the next three tables, in one statement.
--
-- None of them refers to `account`. A foreign key, even a NULL one, would lock `account`, and then
-- the time of a `start` could tell who has an account (src/lib.rs, invariant 1).
--
-- Their rows live for minutes, hence their storage parameters (docs/decisions/0001):
-- * fillfactor leaves room in a page for updates that change no index (HOT).
-- * Dead rows are vacuumed by their number. By default PostgreSQL waits for a fifth of the table.
-- * Inserts alone cause no vacuum, and nothing is analyzed. Under load PostgreSQL would do both
--   every minute, for rows that are soon deleted, and every plan uses an index whatever the
--   statistics say. Wraparound still causes a vacuum.

-- A number and not a time, because the clocks of two replicas may differ by a second. Databases of
-- development gave 1 to the recoveries that they had before.
CREATE SEQUENCE recovery_number START 2;

-- Owned by src/recovery/: the recoveries, one for each code that was asked for.
CREATE TABLE recovery_session (
    id            uuid PRIMARY KEY,
    -- SHA-256 of the cookie's token, so that a copy of this table opens no recovery.
    token_hash    bytea NOT NULL CHECK (octet_length(token_hash) = 32),
    email         text NOT NULL,
    -- Which of RECOVERY_SECRETS the code is derived from. The code itself is never stored.
    key_id        text NOT NULL,
    state         text NOT NULL DEFAULT 'code_sent' CHECK (state IN ('code_sent', 'verified', 'consumed', 'revoked')),
    attempts_left smallint NOT NULL DEFAULT 5 CHECK (attempts_left BETWEEN 0 AND 5),
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    verified_at   timestamptz,
    locale        text CHECK (locale IN ('vi', 'en')),
    client_ip     inet NOT NULL,
    user_agent    text NOT NULL CHECK (char_length(user_agent) <= 200),
    -- The order in which recoveries begin. An account stores up to which number they have ended, so
    -- a changed password need not find them by address: an index on the address would cost every
    -- start one more random page (docs/decisions/0007).
    number        bigint NOT NULL DEFAULT nextval('recovery_number')
) WITH (
    fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2147483647
);

ALTER SEQUENCE recovery_number OWNED BY recovery_session.number;

-- A recovery is found by its whole token, so the index needs no order. Every start writes a random
-- page of it, and a hash index has half the size of a unique one. It need not be unique: a token
-- has 256 random bits.
CREATE INDEX recovery_session_token_hash_idx ON recovery_session USING hash (token_hash);

-- Owned by src/outbox/: the pending emails. A row is deleted after delivery.
CREATE TABLE outbox (
    id                  uuid PRIMARY KEY,
    kind                text NOT NULL CHECK (kind IN ('recovery_code', 'password_changed')),
    -- Unique: a recovery has at most one pending email, and a resend while it is pending adds none.
    -- No foreign key, because each start would pay for a lookup and a row lock. An email without
    -- its recovery is finished like one whose address has no account.
    recovery_session_id uuid UNIQUE,
    account_id          uuid,
    -- How often it was claimed. A courier may finish only the claim that it made.
    attempts            integer NOT NULL DEFAULT 0,
    next_attempt_at     timestamptz NOT NULL,
    lease_until         timestamptz,
    expires_at          timestamptz NOT NULL,
    created_at          timestamptz NOT NULL,
    -- Stage and SMTP code alone ("rcpt 450"), because a relay may quote the address in its reply.
    last_error          text,
    -- Of a notice that the password was changed: language and device of the request that did it.
    -- For an email with a code, its recovery has both.
    locale              text CHECK (locale IN ('vi', 'en')),
    user_agent          text CHECK (char_length(user_agent) <= 200),
    -- Which courier has claimed it: the id of the advisory lock that this courier holds while it
    -- lives (docs/decisions/0030). NULL: the lease alone ends the claim, as behind a connection
    -- pooler. No index, because every claim would write it.
    holder              integer,
    CHECK ((kind = 'recovery_code') = (recovery_session_id IS NOT NULL)),
    CHECK ((kind = 'password_changed') = (account_id IS NOT NULL))
) WITH (
    fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2147483647
);

-- Owned by src/throttle/: the rate limits of addresses and devices. Logged, because a crash or a
-- failover empties an unlogged table, and with it the bound on guesses.
CREATE TABLE throttle (
    -- SHA-256 of purpose and subject, so that the table contains no address.
    key      bytea PRIMARY KEY CHECK (octet_length(key) = 32),
    -- The states of two buckets (GCRA): the time at which each is full again.
    short_at timestamptz NOT NULL,
    long_at  timestamptz NOT NULL,
    -- How many requests the last write admitted: RETURNING cannot see the row before the update.
    admitted integer NOT NULL
) WITH (
    fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2147483647
);

-- Owned by src/session/: the signed-in devices. Every login and refresh writes it, so its dead rows
-- are vacuumed by their number, too.
CREATE TABLE session (
    id               uuid PRIMARY KEY,
    -- SHA-256 of the token, so that a copy of this table opens no session.
    token_hash       bytea NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    account_id       uuid NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    authenticated_at timestamptz NOT NULL,
    last_seen_at     timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL,
    revoked_at       timestamptz,
    client_ip        inet NOT NULL,
    user_agent       text NOT NULL CHECK (char_length(user_agent) <= 200)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- The sessions of an account are listed and bounded newest first, so the index has that order, too.
CREATE INDEX session_account_id_id_idx ON session (account_id, id);

-- Owned by src/audit.rs: what happened to accounts. Rows are appended, and deleted after
-- AUDIT_RETENTION; erasing an account clears the client of its rows. No row contains a code, a
-- token or a password. No foreign key, because the record outlives the account.
CREATE TABLE audit_event (
    id         uuid PRIMARY KEY,
    what       text NOT NULL,
    account_id uuid,
    created_at timestamptz NOT NULL,
    client_ip  inet,
    user_agent text CHECK (char_length(user_agent) <= 200)
);

-- Owned by src/account/hashes.rs: one row, the kinds of stored hashes (docs/decisions/0032).
-- `counts` is the last count; `most` is as many of each kind as there were after the last import.
-- A password for an address without a hash is verified against a decoy of a stored kind. Its kind
-- must not change when a replica restarts or an owner signs in, so it follows from this row, which
-- every replica reads. A replica that counts otherwise writes the row.
CREATE TABLE hash_census (
    id     boolean PRIMARY KEY DEFAULT true CHECK (id),
    counts jsonb NOT NULL,
    most   jsonb NOT NULL
);
