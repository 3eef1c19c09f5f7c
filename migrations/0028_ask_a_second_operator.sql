-- Owned by src/admin/request/. What one operator asks for and another one approves: another address for an account
-- (docs/decisions/0040), and a recovery ticket for a protected account.
--
-- An address change takes effect a while after its approval. Until then the owner can stop it, from any session. So it is
-- stored: every replica may carry it out, and it is carried out once, under the lock of the account's row.
CREATE TABLE operator_request (
    id           uuid PRIMARY KEY,
    kind         text NOT NULL CHECK (kind IN ('ticket', 'address')),
    -- An erased account leaves no request behind, because a request has addresses.
    account_id   uuid NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    state        text NOT NULL DEFAULT 'asked'
        CHECK (state IN ('asked', 'approved', 'done', 'stopped', 'cancelled', 'expired', 'failed')),
    asked_by     text NOT NULL CHECK (char_length(asked_by) BETWEEN 1 AND 200),
    reason       text NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 200),
    asked_at     timestamptz NOT NULL,
    approved_by  text CHECK (char_length(approved_by) BETWEEN 1 AND 200),
    approved_at  timestamptz,
    -- Of an address change: the stored address when it was asked for, the new one, when it takes effect, and the email that
    -- tells the owner. While that email is pending, the change does not take effect.
    old_email    text,
    new_email    text,
    effective_at timestamptz,
    notice_id    uuid,
    ended_at     timestamptz,
    -- The operator who cancelled it, or who used the approved ticket. NULL: the service, or the owner.
    ended_by     text,
    -- The rule of two, also for a program with a defect: nothing is approved by the one who asked, or by nobody.
    CONSTRAINT operator_request_two_operators CHECK (lower(approved_by) <> lower(asked_by)),
    CONSTRAINT operator_request_approved CHECK (
        state NOT IN ('approved', 'done', 'stopped', 'failed') OR (approved_by IS NOT NULL AND approved_at IS NOT NULL)
    ),
    CONSTRAINT operator_request_address CHECK ((kind = 'address') = (old_email IS NOT NULL AND new_email IS NOT NULL)),
    CONSTRAINT operator_request_effect CHECK (
        kind <> 'address' OR state <> 'approved' OR (effective_at IS NOT NULL AND notice_id IS NOT NULL)
    )
);

-- An account has one open request of each kind.
CREATE UNIQUE INDEX operator_request_open_idx ON operator_request (account_id, kind) WHERE state IN ('asked', 'approved');

-- Finds the changes that are due: every replica looks every few seconds.
CREATE INDEX operator_request_due_idx ON operator_request (effective_at) WHERE kind = 'address' AND state = 'approved';

-- What has ended stays ended, also for a role that may write the state: a stopped change cannot be approved again.
CREATE FUNCTION operator_request_has_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'this request has ended' USING ERRCODE = 'check_violation';
END
$$;

CREATE TRIGGER operator_request_has_ended BEFORE UPDATE ON operator_request FOR EACH ROW
    WHEN (OLD.state NOT IN ('asked', 'approved')) EXECUTE FUNCTION operator_request_has_ended();

-- Owned by src/outbox/. Two kinds of notices about an address change: to the stored address, when it is approved, and to the
-- new one, when it takes effect. NOT VALID, so that no row is read under the lock; migration 0029 validates the constraint.
ALTER TABLE outbox
    -- The new address, shown in part.
    ADD COLUMN other_address text,
    -- When the change takes effect, at the earliest.
    ADD COLUMN effective_at  timestamptz,
    DROP CONSTRAINT outbox_kind_check,
    ADD CONSTRAINT outbox_kind_check CHECK (
        kind IN ('recovery_code', 'password_changed', 'ticket_given', 'email_changed', 'address_change', 'new_address')
    ) NOT VALID;
