-- Rows of these tables live for minutes. PostgreSQL vacuums a table that has only grown, once a minute under load, to mark its pages
-- for index-only scans and freeze them, and samples it for the planner: a second of CPU and tens of MB of pages written again, beside
-- the starts, for rows that are gone before it can matter and plans that go by index whatever the statistics say (docs/decisions/1).
-- What was deleted is vacuumed as before, and so is what wraparound asks for.
ALTER TABLE recovery_session SET (
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2147483647
);
ALTER TABLE throttle SET (
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2147483647
);
ALTER TABLE outbox SET (
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2147483647
);
