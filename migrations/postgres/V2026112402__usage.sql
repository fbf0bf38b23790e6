-- Usage events, their rollups, and how far each journal has been written here.

-- Partitions by month, so that what is too old goes with its whole month. The month is that of the time inside the
-- event's id: so it follows from the id, and the primary key keeps ids unique across all partitions. Partitions are
-- made as months come (src/store/postgres/partitions.rs).
CREATE TABLE usage_events (                         -- one settled request; inserted and pruned, never updated
    -- No foreign keys: events come in large batches, and one that names a tenant or key which is not here (a store
    -- restored from an older backup) would keep its whole batch from ever being written.
    event_id      UUID NOT NULL,                                    -- UUIDv7, or UUIDv5 of tenant + key (source + id); a second insert adds nothing
    id_time       BIGINT NOT NULL,                                  -- ms since 1970 that a UUIDv7 begins with; -1: the id is of another version
    tenant_id     UUID NOT NULL,
    admitted_at   BIGINT NOT NULL,                                  -- µs; decides the windows that it counts in
    recorded_at   BIGINT NOT NULL,                                  -- µs; decides how long the event is kept
    source        TEXT COLLATE "C" NOT NULL,                        -- 'chat', 'reservation', 'cloudevent', 'manual', 'correction'
    request_id    TEXT COLLATE "C" NOT NULL,                        -- the X-Request-Id of the request that caused it
    key_id        UUID,                                             -- null: without a key
    end_user      TEXT COLLATE "C" NOT NULL,                        -- '' if the request named none
    model         TEXT COLLATE "C",                                 -- null: without a model
    messages      BIGINT NOT NULL,                                  -- requests
    input_tokens  BIGINT NOT NULL,                                  -- tokens
    output_tokens BIGINT NOT NULL,                                  -- tokens
    cost          BIGINT NOT NULL,                                  -- micro-dollars
    extra         TEXT,                                             -- JSON object feature_key → quantity of all other features; null: none
    estimated     BOOLEAN NOT NULL,                                 -- true: counted with the tokenizer, false: as the provider reported
    reason        TEXT COLLATE "C",                                 -- of a correction or a manual record
    price_id      TEXT COLLATE "C",                                 -- the price entry that cost was taken from
    PRIMARY KEY (event_id, id_time)
) PARTITION BY RANGE (id_time);
CREATE TABLE usage_events_timeless PARTITION OF usage_events FOR VALUES FROM (MINVALUE) TO (0);
CREATE INDEX usage_events_tenant_time ON usage_events (tenant_id, admitted_at); -- cut hours, lists
CREATE INDEX usage_events_recorded ON usage_events (recorded_at);               -- pruning; grows at its end only
CREATE INDEX usage_events_admitted ON usage_events USING brin (admitted_at); -- may a month go?

CREATE TABLE usage_rollups (                        -- sums of events by UTC hour; they stay when the events are pruned
    tenant_id   UUID NOT NULL,
    feature_key TEXT COLLATE "C" NOT NULL,
    dimension   TEXT COLLATE "C" NOT NULL CHECK (dimension = 'all' OR dimension = 'key' OR dimension = 'user' OR dimension = 'model'),
    value       TEXT COLLATE "C" NOT NULL,                          -- all: ''; key: 'key_…'; user: '' for requests that name none; model: its name.
                                                                    --   Usage without a key or a model has no row of that dimension
    hour        BIGINT NOT NULL,                                    -- µs; the start of the hour in which the events were admitted
    quantity    BIGINT NOT NULL,                                    -- corrections subtract
    PRIMARY KEY (tenant_id, feature_key, dimension, value, hour)
) WITH (fillfactor = 80);                           -- room to add to an hour without touching the index

CREATE TABLE usage_horizon (                        -- one row
    only_row     BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    pruned_until BIGINT NOT NULL                                    -- µs; every event admitted at or after this is still here
);
INSERT INTO usage_horizon (only_row, pruned_until) VALUES (1, -9223372036854775808);

CREATE TABLE journal_positions (
    journal UUID NOT NULL PRIMARY KEY,                              -- UUID, made with the journal's file
    seq     BIGINT NOT NULL                                         -- events up to this place are in usage_events; only grows
);
