-- Reservations of the reservation API: what an application may still use that calls a model itself.

CREATE TABLE reservations (                         -- kept as long as usage events, so that a repeat finds its first
    reservation_id UUID NOT NULL PRIMARY KEY,
    tenant_id      UUID NOT NULL,                                   -- the only one who can see it
    key_id         UUID,                                            -- the key that it was made with; null: without a key
    end_user       TEXT COLLATE "C" NOT NULL,                       -- '' if it names none
    model          TEXT COLLATE "C",                                -- null: it names none
    request_id     TEXT COLLATE "C" NOT NULL,                       -- the X-Request-Id of the request that made it
    node           TEXT COLLATE "C" NOT NULL,                       -- the name of the node that made it
    quantities     TEXT NOT NULL,                                   -- JSON object feature_key → quantity: what it holds
    admitted_at    BIGINT NOT NULL,                                 -- µs; decides the windows that it is held and counted in
    expires_at     BIGINT NOT NULL,                                 -- µs; holds nothing from here on
    released_at    BIGINT,                                          -- µs; given back unused; it may be settled all the same: that happened
    settled_at     BIGINT,                                          -- µs; written before its event, so that one key alone can settle it
    settle_key     TEXT COLLATE "C",                                -- the idempotency key that settled it; '' if none was named
    settled        TEXT,                                            -- JSON object feature_key → quantity: what was used
    event_id       UUID,                                            -- UUIDv5 of tenant + reservation: the event that records it
    is_recorded    BOOLEAN NOT NULL DEFAULT FALSE                   -- true: that event is in usage_events
);
CREATE INDEX reservations_open ON reservations (expires_at) WHERE settled_at IS NULL AND released_at IS NULL;
CREATE INDEX reservations_unrecorded ON reservations (event_id) WHERE settled_at IS NOT NULL AND NOT is_recorded;
CREATE INDEX reservations_expiry ON reservations (expires_at); -- pruning
