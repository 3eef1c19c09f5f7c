-- What happened to an account, for the people who must answer for it. Owned by src/audit.rs; append only.
--
-- Never holds a code, a token or a password. No foreign key: the record outlives the account. Ids are UUIDv7, so the
-- primary key is the order of time and serves retention.
CREATE TABLE audit_event (
    id         uuid PRIMARY KEY,
    what       text NOT NULL,
    account_id uuid,
    created_at timestamptz NOT NULL,
    client_ip  inet,
    user_agent text CHECK (char_length(user_agent) <= 200)
);
