-- Claims deliveries of one hook, for `event_hook::queue`, which documents it: walks through the accounts in order of their ids,
-- looks at the oldest pending delivery of each, and claims it if it is due. $1 hook, $2 the account after which the walk begins,
-- $3 accounts to look at, $4 the last settled number, $5 now, $6 the end of the lease, $7 the most to claim.
WITH RECURSIVE head AS (
    (
        SELECT subject, seq FROM event_delivery
        WHERE hook = $1 AND died_at IS NULL AND subject > $2 ORDER BY subject, seq LIMIT 1
    )
    UNION ALL
    SELECT next.subject, next.seq FROM head CROSS JOIN LATERAL (
        SELECT subject, seq FROM event_delivery
        WHERE hook = $1 AND died_at IS NULL AND subject > head.subject ORDER BY subject, seq LIMIT 1
    ) AS next
),
walked AS MATERIALIZED (SELECT subject, seq FROM head LIMIT $3),
claimed AS (
    UPDATE event_delivery SET attempts = attempts + 1, lease_until = $6
    WHERE seq = ANY(ARRAY(
        SELECT due.seq FROM walked CROSS JOIN LATERAL (
            SELECT seq FROM event_delivery
            WHERE seq = walked.seq AND seq <= $4 AND died_at IS NULL AND next_attempt_at <= $5
                AND (lease_until IS NULL OR lease_until <= $5)
            FOR UPDATE SKIP LOCKED
        ) AS due
        LIMIT $7
    ))
    RETURNING seq, subject, event_id, attempts, enqueued_at
),
told AS (
    SELECT claimed.*, (
        SELECT count(*) FROM event_delivery AS dead
        WHERE dead.hook = $1 AND dead.subject = claimed.subject AND dead.died_at IS NOT NULL AND NOT dead.gap_told
            AND dead.seq < claimed.seq
    ) AS gap
    FROM claimed
)
SELECT (SELECT count(*) FROM walked) AS "walked!",
    (SELECT subject FROM walked ORDER BY subject DESC LIMIT 1) AS "last?",
    told.seq AS "seq?", told.subject AS "subject?", told.event_id AS "event_id?", told.attempts AS "attempts?",
    told.enqueued_at AS "enqueued_at?", told.gap AS "gap?", event.what AS "what?", event.account_id AS "account_id?",
    event.created_at AS "created_at?"
FROM (VALUES (1)) AS one (one)
LEFT JOIN (told LEFT JOIN audit_event AS event ON event.id = told.event_id) ON true
