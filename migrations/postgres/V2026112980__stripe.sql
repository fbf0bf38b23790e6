-- What Stripe is to be told of usage, what it was told, and what it tells. Twin of migrations/sqlite.

ALTER TABLE outbox ADD COLUMN doubt_since BIGINT;   -- µs; when the first attempt was made of which it is not known whether it arrived; null: none
ALTER TABLE outbox ADD COLUMN about_at BIGINT;      -- µs; when what is told of was used; null: does not matter
ALTER TABLE outbox ADD COLUMN about_period BIGINT;  -- µs; start of the billing period that it counts in; null: in none
CREATE INDEX outbox_about ON outbox (tenant_id, feature_key, about_at) WHERE about_at IS NOT NULL;
CREATE INDEX outbox_about_lane ON outbox (lane, about_at) WHERE about_at IS NOT NULL;
CREATE INDEX outbox_unconfirmed ON outbox (lane, about_at) WHERE about_at IS NOT NULL AND status = 'sent';

CREATE TABLE stripe_waiting (                       -- usage that comes together until it is handed to the outbox as one meter event
    tenant_id    UUID   NOT NULL,
    feature_key  TEXT   COLLATE "C" NOT NULL,
    meter        TEXT   COLLATE "C" NOT NULL,       -- Stripe's event_name
    slot         BIGINT NOT NULL,                   -- µs; start of the interval that it was used in, never before its period's
    period_start BIGINT NOT NULL,                   -- µs; of the billing period that it counts in
    due_at       BIGINT NOT NULL,                   -- µs; to be handed on from here on
    customer_id  TEXT   COLLATE "C",                -- Stripe's customer when it was recorded; null: none was known
    quantity     BIGINT NOT NULL,                   -- corrections may make it negative
    PRIMARY KEY (tenant_id, feature_key, meter, slot, period_start)
);
CREATE INDEX stripe_waiting_due ON stripe_waiting (due_at);

CREATE TABLE stripe_told (                          -- what Stripe has been told, for statements; entries of the outbox go after some days
    tenant_id   UUID   NOT NULL,
    feature_key TEXT   COLLATE "C" NOT NULL,
    at          BIGINT NOT NULL,                    -- µs; start of the hour, or of the billing period if that begins within it
    quantity    BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, feature_key, at)
);

CREATE TABLE stripe_webhooks (                      -- Stripe's events as they came, each once
    event_id        TEXT   COLLATE "C" NOT NULL PRIMARY KEY, -- Stripe's evt_…
    event_type      TEXT   COLLATE "C" NOT NULL,
    object_id       TEXT   COLLATE "C" NOT NULL,    -- of the object that it is about, such as sub_…; '' if it has none
    happened_at     BIGINT NOT NULL,                -- µs; when Stripe made it
    received_at     BIGINT NOT NULL,                -- µs; first
    tenant_id       UUID,                           -- whom it was found to be about; null: nobody yet
    status          TEXT   COLLATE "C" NOT NULL CHECK (status IN ('pending', 'applied', 'ignored', 'unmatched', 'dead')),
    attempts        BIGINT NOT NULL DEFAULT 0,
    last_error      TEXT,
    next_attempt_at BIGINT,                         -- µs; null: none planned
    payload         TEXT   NOT NULL                 -- the event's JSON; '' if it is ignored
);
CREATE INDEX stripe_webhooks_due ON stripe_webhooks (next_attempt_at, happened_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX stripe_webhooks_received ON stripe_webhooks (received_at, event_id);

CREATE TABLE stripe_subscriptions (                 -- the newest that is known of each of Stripe's subscriptions, whatever order it came in
    subscription_id TEXT   COLLATE "C" NOT NULL PRIMARY KEY, -- Stripe's sub_…
    tenant_id       UUID,                           -- null: not known yet
    customer_id     TEXT   COLLATE "C",             -- Stripe's cus_…
    state           TEXT,                           -- JSON; null: only its payments are known
    state_order     TEXT   COLLATE "C" NOT NULL DEFAULT '', -- of what `state` was taken from; grows with time, an older one changes nothing
    payment         TEXT   COLLATE "C" CHECK (payment IN ('paid', 'failed')), -- of its last invoice; null: none is known
    payment_order   TEXT   COLLATE "C" NOT NULL DEFAULT '' -- as state_order
);
CREATE INDEX stripe_subscriptions_tenant ON stripe_subscriptions (tenant_id);
CREATE INDEX stripe_subscriptions_customer ON stripe_subscriptions (customer_id);
