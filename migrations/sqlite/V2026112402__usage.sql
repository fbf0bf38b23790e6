-- Usage events, their rollups, and how far each journal has been written here.

CREATE TABLE usage_events (                         -- one settled request; inserted and pruned, never updated
    -- No foreign keys: events come in large batches, and one that names a tenant or key which is not here (a store
    -- restored from an older backup) would keep its whole batch from ever being written.
    event_id      BLOB    NOT NULL PRIMARY KEY,     -- UUIDv7, or UUIDv5 of tenant + key (source + id); a second insert adds nothing
    tenant_id     BLOB    NOT NULL,
    admitted_at   INTEGER NOT NULL,                 -- µs; decides the windows that it counts in
    recorded_at   INTEGER NOT NULL,                 -- µs; decides how long the event is kept
    source        TEXT    NOT NULL,                 -- 'chat', 'reservation', 'cloudevent', 'manual', 'correction'
    request_id    TEXT    NOT NULL,                 -- the X-Request-Id of the request that caused it
    key_id        BLOB,                             -- null: without a key
    end_user      TEXT    NOT NULL,                 -- '' if the request named none
    model         TEXT,                             -- null: without a model
    messages      INTEGER NOT NULL,                 -- requests
    input_tokens  INTEGER NOT NULL,                 -- tokens
    output_tokens INTEGER NOT NULL,                 -- tokens
    cost          INTEGER NOT NULL,                 -- micro-dollars
    extra         TEXT,                             -- JSON object feature_key → quantity of all other features; null: none
    estimated     INTEGER NOT NULL,                 -- 1: counted with the tokenizer, 0: as the provider reported
    reason        TEXT,                             -- of a correction or a manual record
    price_id      TEXT                              -- the price entry that cost was taken from
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_events_tenant_time ON usage_events (tenant_id, admitted_at); -- cut hours, lists
CREATE INDEX usage_events_recorded ON usage_events (recorded_at);               -- pruning; grows at its end only

CREATE TABLE usage_rollups (                        -- sums of events by UTC hour; they stay when the events are pruned
    tenant_id   BLOB    NOT NULL,
    feature_key TEXT    NOT NULL,
    dimension   TEXT    NOT NULL CHECK (dimension = 'all' OR dimension = 'key' OR dimension = 'user' OR dimension = 'model'),
    value       TEXT    NOT NULL,                   -- all: ''; key: 'key_…'; user: '' for requests that name none; model: its name.
                                                    --   Usage without a key or a model has no row of that dimension
    hour        INTEGER NOT NULL,                   -- µs; the start of the hour in which the events were admitted
    quantity    INTEGER NOT NULL,                   -- corrections subtract
    PRIMARY KEY (tenant_id, feature_key, dimension, value, hour)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_horizon (                        -- one row
    only_row     INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),
    pruned_until INTEGER NOT NULL                   -- µs; every event admitted at or after this is still here
) STRICT;
INSERT INTO usage_horizon (only_row, pruned_until) VALUES (1, -9223372036854775808);

CREATE TABLE journal_positions (
    journal BLOB    NOT NULL PRIMARY KEY,           -- UUID, made with the journal's file
    seq     INTEGER NOT NULL                        -- events up to this place are in usage_events; only grows
) STRICT, WITHOUT ROWID;
