-- One round of the courier, for `outbox::round`, which documents it: deletes what relays have accepted and records it, claims
-- mails, and deletes what needs none. One statement is one flush for all of that; parts that have nothing to do cost next to nothing.
WITH delivered AS (
    DELETE FROM outbox
    USING unnest($9::uuid[], $10::int[], $11::uuid[], $12::text[], $13::uuid[], $14::timestamptz[], $15::inet[], $16::text[])
        AS claim (id, attempts, event_id, what, account_id, delivered_at, client_ip, user_agent)
    WHERE outbox.id = claim.id AND outbox.attempts = claim.attempts
    RETURNING claim.event_id, claim.what, claim.account_id, claim.delivered_at, claim.client_ip, claim.user_agent
),
recorded AS (
    INSERT INTO audit_event (id, what, account_id, created_at, client_ip, user_agent) SELECT * FROM delivered
),
due AS MATERIALIZED (
    SELECT id, ctid AS place, kind, recovery_session_id, account_id AS owner_id, address, created_at, expires_at, locale, user_agent,
        other_address, effective_at
    FROM outbox
    -- A row that is deleted above must not be claimed by the same statement, which sees it as it was.
    WHERE id >= $1 AND id < $7
        AND next_attempt_at <= $2 AND (lease_until IS NULL OR lease_until <= $2) AND id <> ALL ($9)
    ORDER BY id DESC
    LIMIT $3
),
addressed AS MATERIALIZED (
    SELECT due.id, place, due.kind, due.other_address, due.effective_at, due.recovery_session_id, due.created_at, due.expires_at, due.expires_at < $4 AS expired,
        s.key_id, s.created_at AS asked_at, s.client_ip, coalesce(s.user_agent, due.user_agent) AS user_agent,
        coalesce(s.locale, due.locale) AS request_locale, coalesce(a.id, o.id) AS account_id,
        coalesce(due.address, a.email, o.email) AS account_email, coalesce(a.locale, o.locale) AS account_locale
    FROM due
    LEFT JOIN LATERAL (
        SELECT * FROM recovery_session
        WHERE id = due.recovery_session_id AND state = 'code_sent' AND attempts_left > 0 LIMIT 1
    ) AS s ON true
    LEFT JOIN LATERAL (
        SELECT id, email, locale FROM account
        WHERE email = s.email AND state = 'active' AND recoveries_ended < s.number LIMIT 1
    ) AS a ON true
    LEFT JOIN LATERAL (SELECT id, email, locale FROM account WHERE id = due.owner_id LIMIT 1) AS o ON true
),
finished AS (
    DELETE FROM outbox WHERE ctid = ANY(ARRAY(
        SELECT o.ctid FROM (
            SELECT place FROM addressed WHERE expired OR account_id IS NULL
        ) AS d CROSS JOIN LATERAL (
            SELECT ctid FROM outbox WHERE ctid = d.place AND (lease_until IS NULL OR lease_until <= $2)
            FOR UPDATE SKIP LOCKED
        ) AS o
    ))
    -- A notice that was given up is due again only to be deleted (`outbox::give_up`), and was counted then.
    RETURNING expires_at < $4 AS expired, next_attempt_at >= expires_at AS given_up
),
claimed AS (
    UPDATE outbox SET attempts = attempts + 1, lease_until = $5, holder = $8
    WHERE ctid = ANY(ARRAY(
        SELECT o.ctid FROM (
            SELECT place FROM addressed WHERE NOT expired AND account_id IS NOT NULL ORDER BY id DESC
        ) AS d CROSS JOIN LATERAL (
            SELECT ctid FROM outbox WHERE ctid = d.place AND (lease_until IS NULL OR lease_until <= $2)
            FOR UPDATE SKIP LOCKED
        ) AS o
        LIMIT $6
    ))
    RETURNING id, attempts
),
counted AS (
    SELECT (SELECT count(*) FROM due) AS due,
        count(*) FILTER (WHERE expired AND NOT given_up) AS expired,
        count(*) FILTER (WHERE expired AND given_up) AS given_up,
        count(*) FILTER (WHERE NOT expired) AS no_recipient
    FROM finished
)
SELECT n.due AS "due!", n.expired AS "expired!", n.given_up AS "given_up!", n.no_recipient AS "no_recipient!",
    d.id AS "id?", c.attempts AS "attempts?", d.created_at AS "created_at?", d.expires_at AS "expires_at?",
    d.kind AS "kind?: MailKind", d.recovery_session_id AS "recovery_session_id?", d.key_id AS "key_id?", d.asked_at AS "asked_at?",
    d.client_ip AS "client_ip?: std::net::IpAddr",
    d.user_agent AS "user_agent?", d.account_id AS "account_id?", d.account_email AS "account_email?",
    d.account_locale AS "account_locale?", d.request_locale AS "request_locale?", d.other_address AS "other_address?",
    d.effective_at AS "effective_at?"
FROM counted n LEFT JOIN (claimed c JOIN addressed d USING (id)) ON true
