-- A row for each kind of hash, and one for accounts without any. Of a hash its head stays: scheme, version and cost. In what
-- follows every digit becomes the one that is 0 in the alphabet of its scheme, so that the kind is a hash that can be computed.
-- What follows the scheme of a SHA-crypt without `rounds` is its salt, though it may be a number.
WITH stored AS (
    SELECT password_hash AS hash, bouncing_since IS NOT NULL AS bouncing,
        coalesce(length(substring(password_hash FROM
            '^\$[^$]*\$(?:v=\d+\$)?(?:(?:[a-z]+=\d+(?:,[a-z]+=\d+)*|(?<!^\$(?:5|6|sha256-crypt|sha512-crypt)\$)\d+)\$)?')), 0) AS head
    FROM account
    WHERE ctid >= $1::text::tid AND ctid < $2::text::tid
        AND (password_hash IS NOT NULL OR bouncing_since IS NOT NULL)
), kinds AS (
    SELECT left(hash, head) || translate(
            substr(hash, head + 1),
            'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/.',
            repeat(CASE WHEN hash ~ '^\$(2[aby]|5|6|sha256-crypt|sha512-crypt)\$' THEN '.' ELSE 'A' END, 65)
        ) AS kind, bouncing
    FROM stored
)
SELECT kind AS "kind", count(kinds) AS "count!", count(*) FILTER (WHERE bouncing) AS "bouncing!",
    (SELECT pg_relation_size('account') / current_setting('block_size')::bigint) AS "pages!"
FROM (SELECT 1) AS one LEFT JOIN kinds ON true
GROUP BY kind
