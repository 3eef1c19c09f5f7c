-- Commits every start of one batch: rate limit, session and pending email, in one statement and one flush.
--
-- bucket: one upsert for each rate-limit key; it always updates and returns, so that a refusal knows when to retry.
-- decided: each start with its bucket's answer and the session it continues, if any.
-- opened, enqueued: a new session and its email. The session is new, so neither INSERT can conflict.
-- resent: the email of a continued session.
--
-- $1, $2    rate-limit keys, ordered, and starts wanted of each
-- $3 – $12  one array element for each start
-- $13, $14  short bucket: capacity, time to refill one
-- $15, $16  long bucket: capacity, time to refill one
-- $17       now
-- $18       a continued session must live at least until then
-- $19       expiry of a new session
-- $20       id of the secret that codes are derived from
WITH bucket AS (
    INSERT INTO throttle AS t (key, short_at, long_at, admitted)
    SELECT key, $17::timestamptz + n * $14::interval, $17 + n * $16::interval, n
    FROM unnest($1::bytea[], $2::int[]) AS asked (key, wanted)
        CROSS JOIN LATERAL (SELECT least(wanted, $13::bigint, $15::bigint)::int AS n) AS free
    ON CONFLICT (key) DO UPDATE SET (short_at, long_at, admitted) = (
        SELECT greatest(t.short_at, $17) + n * $14::interval, greatest(t.long_at, $17) + n * $16::interval, n
        FROM (
            SELECT greatest(0, least(
                excluded.admitted,
                $13 - ceil(extract(epoch FROM t.short_at - $17) / extract(epoch FROM $14::interval)),
                $15 - ceil(extract(epoch FROM t.long_at - $17) / extract(epoch FROM $16::interval))
            ))::int AS n
        ) AS free
    )
    RETURNING key, admitted, greatest(short_at - ($13 - 1) * $14::interval, long_at - ($15 - 1) * $16::interval)
        AS retry_at
),
decided AS MATERIALIZED (
    SELECT i.*, i.rank <= b.admitted AS admitted, b.retry_at,
        k.id AS kept_id, coalesce(k.expires_at, $19) AS expires_at, k.is_unsent
    FROM bucket b JOIN unnest($3::uuid[], $4::uuid[], $5::bytea[], $6::bytea[], $7::text[], $8::bytea[], $9::int[],
            $10::text[], $11::inet[], $12::text[])
        WITH ORDINALITY AS i (session_id, outbox_id, token_hash, presented, email, bucket_key, rank, locale,
            client_ip, user_agent, place) ON i.bucket_key = b.key
    LEFT JOIN LATERAL (
        SELECT id, expires_at, (SELECT true FROM outbox o WHERE o.recovery_session_id = s.id LIMIT 1) AS is_unsent
        FROM recovery_session s
        WHERE s.token_hash = i.presented AND s.email = i.email AND s.state IN ('code_sent', 'revoked')
            AND s.attempts_left > 0 AND s.expires_at >= $18::timestamptz
        LIMIT 1
    ) AS k ON true
),
opened AS (
    INSERT INTO recovery_session (id, token_hash, email, key_id, created_at, expires_at, locale, client_ip,
        user_agent)
    SELECT session_id, token_hash, email, $20, $17, expires_at, locale, client_ip, user_agent
    FROM decided WHERE admitted AND kept_id IS NULL
),
enqueued AS (
    INSERT INTO outbox (id, kind, recovery_session_id, next_attempt_at, expires_at, created_at)
    SELECT outbox_id, 'recovery_code', session_id, $17, expires_at, $17
    FROM decided WHERE admitted AND kept_id IS NULL
),
resent AS (
    -- A resend while the previous email is unsent enqueues no second one. It inserts a row of a session that does not
    -- exist instead, which the courier discards: otherwise time would tell that an account exists. Concurrent resends
    -- of one session enqueue one email: they draw on one bucket, whose row lock they wait for first.
    INSERT INTO outbox (id, kind, recovery_session_id, next_attempt_at, expires_at, created_at)
    SELECT outbox_id, 'recovery_code', CASE WHEN is_unsent THEN session_id ELSE kept_id END, $17, expires_at, $17
    FROM decided WHERE admitted AND kept_id IS NOT NULL
    ON CONFLICT (recovery_session_id) DO NOTHING
)
SELECT place AS "place!", admitted AS "admitted!", kept_id AS "kept_id?",
    expires_at AS "expires_at!", retry_at AS "retry_at!"
FROM decided
