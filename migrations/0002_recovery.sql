-- The tables that one `start` writes, in one statement, for any address whatever.
--
-- None of them refers to `account`: even a NULL foreign key makes the insert lock `account`, and then `start` could be
-- told from one that met somebody (promise 1). Ids are UUIDv7, so the primary key is also the order of creation and
-- serves the sweeper and the courier; a second index on a time would cost every start and give nothing.
--
-- fillfactor leaves room on the page for updates that touch no index (HOT). The fixed vacuum thresholds keep a table
-- that turns over completely every few minutes from bloating until a fifth of it is dead.

-- Owned by src/recovery.rs.
CREATE TABLE recovery_session (
    id            uuid PRIMARY KEY,
    -- SHA-256 of the cookie's token: a copy of this table opens no session.
    token_hash    bytea NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    email         text NOT NULL,
    -- Which RECOVERY_SECRETS entry the code is derived from. The code itself is never stored.
    key_id        text NOT NULL,
    state         text NOT NULL DEFAULT 'code_sent' CHECK (state IN ('code_sent', 'verified', 'consumed', 'revoked')),
    attempts_left smallint NOT NULL DEFAULT 5 CHECK (attempts_left BETWEEN 0 AND 5),
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    verified_at   timestamptz,
    locale        text CHECK (locale IN ('vi', 'en')),
    client_ip     inet NOT NULL,
    user_agent    text NOT NULL CHECK (char_length(user_agent) <= 200)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000);

-- Owned by src/outbox.rs. A row is a mail that is still owed; a sent one is deleted.
CREATE TABLE outbox (
    id                  uuid PRIMARY KEY,
    kind                text NOT NULL CHECK (kind IN ('recovery_code', 'password_changed')),
    -- Unique: at most one unsent mail a session, so a resend while one is unsent adds none. No foreign key: each start
    -- would pay a look-up and a row lock for it, and a row without its session is finished like a decoy.
    recovery_session_id uuid UNIQUE,
    account_id          uuid,
    -- How often it was claimed; also the fence: a worker may finish only the claim that it made.
    attempts            integer NOT NULL DEFAULT 0,
    next_attempt_at     timestamptz NOT NULL,
    lease_until         timestamptz,
    expires_at          timestamptz NOT NULL,
    created_at          timestamptz NOT NULL,
    -- Stage and SMTP code alone ("rcpt 450"): a relay's own words may hold the address.
    last_error          text,
    CHECK ((kind = 'recovery_code') = (recovery_session_id IS NOT NULL)),
    CHECK ((kind = 'password_changed') = (account_id IS NOT NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- Owned by src/throttle.rs. Logged, although it could be rebuilt: an unlogged table is emptied by a crash or a
-- failover, and the bound on guesses with it.
CREATE TABLE throttle (
    -- SHA-256 of purpose and subject: no address is readable here.
    key      bytea PRIMARY KEY CHECK (octet_length(key) = 32),
    -- Two GCRA states: the time at which each bucket is full again.
    short_at timestamptz NOT NULL,
    long_at  timestamptz NOT NULL,
    -- How many of the last write's requests were admitted: RETURNING cannot see the row as it was before.
    admitted integer NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000);
