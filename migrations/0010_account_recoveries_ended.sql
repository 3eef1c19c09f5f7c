-- The number of the last recovery that does not count for this account any more: a new password, a new address and
-- disabling it end all that have begun.
ALTER TABLE account ADD COLUMN recoveries_ended bigint NOT NULL DEFAULT 0;
