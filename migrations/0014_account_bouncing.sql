-- Since when mails to the account's address bounce: a relay took one, and an hour later a mail server said that it cannot be
-- delivered (RFC 3464). Without it nobody sees why an owner waits for a code in vain. It is for operators alone: it stops and
-- delays no mail, since anyone who has seen a Return-Path can set it. NULL: as far as is known, they arrive.
ALTER TABLE account ADD COLUMN bouncing_since timestamptz;
