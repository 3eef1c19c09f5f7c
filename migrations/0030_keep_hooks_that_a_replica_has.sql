-- Owned by src/event_hook/. Replicas are not restarted at once, and one may have other EVENT_HOOKS by mistake: it must not remove
-- the hooks of the others. So each replica writes every 15 seconds that it has a hook, and the sweeper removes a hook that none has
-- had for an hour.
--
-- A hook of before this migration counts as one that no replica has, until the first replica of this release starts.
ALTER TABLE event_hook ADD COLUMN registered_at timestamptz NOT NULL DEFAULT 'epoch';
