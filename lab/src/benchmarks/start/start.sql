-- pgbench: the single-row form of the statement in src/recovery.rs, with every address once.
\set n random(1, 9000000000000000)
WITH request AS (
    SELECT (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7' || lpad(to_hex(n), 19, '0'))::uuid AS id,
        sha256(('token' || n)::bytea) AS token_hash,
        sha256(('recovery|' || n || '@example.org')::bytea) AS bucket_key,
        n || '@example.org' AS email,
        now() AS at
    FROM (SELECT :n::bigint AS n) AS random
),
bucket AS (
    INSERT INTO throttle AS t (key, short_at, long_at, admitted)
    SELECT bucket_key, at + interval '300 s', at + interval '8640 s', 1 FROM request
    ON CONFLICT (key) DO UPDATE SET (short_at, long_at, admitted) = (
        SELECT greatest(t.short_at, now()) + n * interval '300 s', greatest(t.long_at, now()) + n * interval '8640 s', n
        FROM (
            SELECT greatest(0, least(
                1,
                3 - ceil(extract(epoch FROM t.short_at - now()) / 300),
                10 - ceil(extract(epoch FROM t.long_at - now()) / 8640)
            ))::int AS n
        ) AS free
    )
    RETURNING admitted, greatest(short_at - 2 * interval '300 s', long_at - 9 * interval '8640 s') AS retry_at
),
opened AS (
    INSERT INTO recovery_session (id, token_hash, email, key_id, created_at, expires_at, locale, client_ip, user_agent)
    SELECT id, token_hash, email, '1', at, at + interval '10 min', NULL, '127.0.0.1', ''
    FROM request, bucket WHERE admitted = 1
),
enqueued AS (
    INSERT INTO outbox (id, kind, recovery_session_id, next_attempt_at, expires_at, created_at)
    SELECT id, 'recovery_code', id, at, at + interval '10 min', at FROM request, bucket WHERE admitted = 1
    ON CONFLICT (recovery_session_id) DO NOTHING
)
SELECT admitted, retry_at FROM bucket;
