-- Owned by src/outbox/. Checks the rows that were there before migration 0028. It blocks no statement on the table.
ALTER TABLE outbox VALIDATE CONSTRAINT outbox_kind_check;
