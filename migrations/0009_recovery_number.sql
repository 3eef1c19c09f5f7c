-- Recoveries are numbered as they begin, so that an account can say up to which one they have ended, and nobody has to find
-- them: an index on their address is a random page more that every start writes (docs/decisions/7). A number and not a time:
-- the clocks of two replicas may be a second apart. Those that are there already come before all others.
CREATE SEQUENCE recovery_number START 2;
ALTER TABLE recovery_session ADD COLUMN number bigint NOT NULL DEFAULT 1;
ALTER TABLE recovery_session ALTER COLUMN number SET DEFAULT nextval('recovery_number');
ALTER SEQUENCE recovery_number OWNED BY recovery_session.number;
