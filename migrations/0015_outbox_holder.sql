-- Which courier has claimed a mail: the id of the advisory lock that it holds for as long as it lives (docs/decisions/30). NULL: the
-- lease alone says how long the claim lasts, as behind a connection pooler. No index: every claim would write it.
ALTER TABLE outbox ADD COLUMN holder integer;
