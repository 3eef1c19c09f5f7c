-- A changed password revokes every pending recovery of its account, and `account` must stay unknown to `start`: so they
-- are found by address (promise 5). The index costs every start one more entry (docs/decisions).
CREATE INDEX recovery_session_email_idx ON recovery_session (email);
