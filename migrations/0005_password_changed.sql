-- What the mail about a changed password says of the change: from which device, and in which language the request asked
-- for it. A code's mail has both in its recovery session; a change made while signed in has no such session.
ALTER TABLE outbox
    ADD COLUMN locale     text CHECK (locale IN ('vi', 'en')),
    ADD COLUMN user_agent text CHECK (char_length(user_agent) <= 200);
