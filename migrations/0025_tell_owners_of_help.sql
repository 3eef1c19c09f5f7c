-- Owned by src/outbox/. The owner of an account is told by email when an operator gives a recovery ticket, or sets another
-- address. NOT VALID, so that no row is read under the lock; migration 0027 validates the constraints.
ALTER TABLE outbox
    -- Where the email goes, if not to the account's stored address: to the address that was replaced.
    ADD COLUMN address text,
    DROP CONSTRAINT outbox_kind_check,
    DROP CONSTRAINT outbox_check1,
    ADD CONSTRAINT outbox_kind_check
        CHECK (kind IN ('recovery_code', 'password_changed', 'ticket_given', 'email_changed')) NOT VALID,
    ADD CONSTRAINT outbox_owner_check CHECK ((kind <> 'recovery_code') = (account_id IS NOT NULL)) NOT VALID;
