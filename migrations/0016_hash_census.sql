-- The kinds of stored hashes as they were last counted, and as many of each as there were after the last import: one row. Addresses
-- without a hash are verified against a decoy, which must not go from one foreign kind to another when a replica starts again or
-- owners sign in; no hash does (docs/decisions/32). Every replica reads it, and the one that counts something else writes it.
CREATE TABLE hash_census (
    id boolean PRIMARY KEY DEFAULT true CHECK (id),
    counts jsonb NOT NULL,
    most jsonb NOT NULL
);
