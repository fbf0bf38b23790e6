-- A lane gives out its oldest entry alone, so those behind it, of which there may be very many, are not looked at by
-- when they are due.

DROP INDEX outbox_due;
CREATE INDEX outbox_due ON outbox (kind, next_attempt_at) WHERE lane IS NULL AND next_attempt_at IS NOT NULL;
