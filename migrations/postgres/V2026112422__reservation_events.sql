-- Which reservation an event records, for who asks what became of it.

CREATE INDEX reservations_event ON reservations (event_id) WHERE event_id IS NOT NULL;
