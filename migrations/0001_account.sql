-- Who may sign in. Owned by src/account.rs.
--
-- `email` is stored only as EmailAddress normalises it (ASCII, lower case, punycode domain), so plain equality is the
-- whole comparison: no collation and no folding can make two addresses one.
CREATE TABLE account (
    id                  uuid PRIMARY KEY,
    email               text NOT NULL CONSTRAINT account_email_key UNIQUE,
    state               text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'disabled')),
    locale              text CHECK (locale IN ('vi', 'en')),
    traits              jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(traits) = 'object'),
    -- A PHC string or an imported foreign hash. NULL: the account recovers by mail first.
    password_hash       text,
    password_changed_at timestamptz,
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL
);
