-- Owned by src/event_hook/: webhooks of audit events, and their deliveries that are pending or failed for good.
--
-- A trigger writes the deliveries, so no path that appends an event can forget them: not a command, not a statement that appends
-- along with other work, not a replica of the previous release (docs/decisions/0038). With no hook nothing is written.

-- The hooks of EVENT_HOOKS: `serve` writes them when it starts. Their URLs and secrets are only in the setting.
CREATE TABLE event_hook (
    name  text PRIMARY KEY,
    -- Kinds of events, as in audit_event.what. NULL: all.
    kinds text[]
);

-- Numbers the deliveries. A number is taken by a transaction that has its id already, which the reader relies on.
CREATE SEQUENCE event_number;

-- No foreign keys: a hook that is removed from the setting keeps its dead letters, and a lookup in audit_event would lock its row.
CREATE TABLE event_delivery (
    seq             bigint PRIMARY KEY DEFAULT nextval('event_number'),
    hook            text NOT NULL,
    -- The account, within which order is kept. An event of many accounts has the Max UUID (RFC 9562).
    subject         uuid NOT NULL,
    -- The row of audit_event from which the request is built.
    event_id        uuid NOT NULL,
    -- When the event happened, or when an operator replayed it. It is retried for a day after that.
    enqueued_at     timestamptz NOT NULL,
    next_attempt_at timestamptz NOT NULL,
    -- How often it was claimed. A replica may finish only the claim that it made.
    attempts        integer NOT NULL DEFAULT 0,
    lease_until     timestamptz,
    -- Why the last attempt failed. It quotes no answer.
    last_error      text,
    -- Since when it is a dead letter. NULL: it is pending.
    died_at         timestamptz,
    -- Whether a later event of the account was delivered with the marker of this gap.
    gap_told        boolean NOT NULL DEFAULT false
) WITH (
    fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2147483647
);

ALTER SEQUENCE event_number OWNED BY event_delivery.seq;

-- Finds the oldest pending delivery of each account.
CREATE INDEX event_delivery_pending_idx ON event_delivery (hook, subject, seq) WHERE died_at IS NULL;
CREATE INDEX event_delivery_dead_idx ON event_delivery (hook, subject) WHERE died_at IS NOT NULL;

-- It runs as the owner: the roles that append events need no rights on these tables, also between this migration and
-- deploy/grants.sql. AFTER, so that the transaction has its id before it takes a number.
CREATE FUNCTION enqueue_event_deliveries() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM event_hook) THEN
        INSERT INTO event_delivery (hook, subject, event_id, enqueued_at, next_attempt_at)
        SELECT hook.name, coalesce(event.account_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'), event.id,
            event.created_at, event.created_at
        FROM appended AS event JOIN event_hook AS hook ON hook.kinds IS NULL OR event.what = ANY (hook.kinds)
        ORDER BY event.id;
    END IF;
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION enqueue_event_deliveries() FROM PUBLIC;

CREATE TRIGGER enqueue_event_deliveries AFTER INSERT ON audit_event
    REFERENCING NEW TABLE AS appended FOR EACH STATEMENT EXECUTE FUNCTION enqueue_event_deliveries();
