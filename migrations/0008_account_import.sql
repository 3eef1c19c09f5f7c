-- When an account came from another system's export, or was last brought up to date from one. While it equals
-- `updated_at` nobody has signed in to the account or changed it here, and a later export may still change it; after that
-- the account is ours, and an import leaves it as it is: it must never bring an old password back.
ALTER TABLE account ADD COLUMN imported_at timestamptz;
