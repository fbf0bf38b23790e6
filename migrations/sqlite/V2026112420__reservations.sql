-- Reservations of the reservation API: what an application may still use that calls a model itself.

CREATE TABLE reservations (                         -- kept as long as usage events, so that a repeat finds its first
    reservation_id BLOB    NOT NULL PRIMARY KEY CHECK (length(reservation_id) = 16),
    tenant_id      BLOB    NOT NULL CHECK (length(tenant_id) = 16), -- the only one who can see it
    key_id         BLOB,                            -- the key that it was made with; null: without a key
    end_user       TEXT    NOT NULL,                -- '' if it names none
    model          TEXT,                            -- null: it names none
    request_id     TEXT    NOT NULL,                -- the X-Request-Id of the request that made it
    node           TEXT    NOT NULL,                -- the name of the node that made it
    quantities     TEXT    NOT NULL,                -- JSON object feature_key → quantity: what it holds
    admitted_at    INTEGER NOT NULL,                -- µs; decides the windows that it is held and counted in
    expires_at     INTEGER NOT NULL,                -- µs; holds nothing from here on
    released_at    INTEGER,                         -- µs; given back unused; it may be settled all the same: that happened
    settled_at     INTEGER,                         -- µs; written before its event, so that one key alone can settle it
    settle_key     TEXT,                            -- the idempotency key that settled it; '' if none was named
    settled        TEXT,                            -- JSON object feature_key → quantity: what was used
    event_id       BLOB,                            -- UUIDv5 of tenant + reservation: the event that records it
    is_recorded    INTEGER NOT NULL DEFAULT 0 CHECK (is_recorded IN (0, 1)) -- 1: that event is in usage_events
) STRICT, WITHOUT ROWID;
CREATE INDEX reservations_open ON reservations (expires_at) WHERE settled_at IS NULL AND released_at IS NULL;
CREATE INDEX reservations_unrecorded ON reservations (event_id) WHERE settled_at IS NOT NULL AND is_recorded = 0;
CREATE INDEX reservations_expiry ON reservations (expires_at); -- pruning
