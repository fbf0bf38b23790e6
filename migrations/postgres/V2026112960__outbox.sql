-- One outbox for all that is to be told to others, and what notices were sent. No version before this one ever wrote
-- to the old table.

DROP TABLE outbox;
CREATE TABLE outbox (                               -- what is to be sent, until the other side has it
    identifier      TEXT COLLATE "C" NOT NULL PRIMARY KEY,          -- deterministic, so that making it again makes nothing
    kind            TEXT COLLATE "C" NOT NULL,                      -- what sends it: 'analytics.batch', 'notice', 'notice.check'
    topic           TEXT COLLATE "C",                               -- what of its kind it is, such as a notice's type; null: all are alike
    tenant_id       UUID,                                           -- whom it is about; null: nobody
    feature_key     TEXT COLLATE "C",                               -- what it is about; null: nothing
    value           BIGINT,                                         -- how much, as `kind` defines it; null: nothing to count
    lane            TEXT COLLATE "C",                               -- entries of one kind and lane go one at a time, the oldest first; null: any time
    status          TEXT COLLATE "C" NOT NULL CHECK (status IN ('pending', 'sent', 'confirmed', 'uncertain', 'dead')),
    attempts        BIGINT NOT NULL DEFAULT 0,
    last_error      TEXT,
    next_attempt_at BIGINT,                                         -- µs; not to be tried before, be it that an attempt is running; null: none planned
    created_at      BIGINT NOT NULL,                                -- µs
    finished_at     BIGINT                                          -- µs; when it was sent or given up; null: neither
);
CREATE INDEX outbox_due ON outbox (kind, next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX outbox_lanes ON outbox (kind, lane, created_at, identifier) WHERE lane IS NOT NULL AND status = 'pending';
CREATE INDEX outbox_counts ON outbox (kind, status);
CREATE INDEX outbox_created ON outbox (created_at, identifier);
CREATE INDEX outbox_sent ON outbox (finished_at) WHERE status IN ('sent', 'confirmed');

CREATE TABLE outbox_payloads (                      -- apart: long texts that lists and counts must not wade through
    identifier TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES outbox (identifier) ON DELETE CASCADE,
    payload    TEXT NOT NULL                                        -- as `kind` defines it; gone once it is sent
);

CREATE TABLE notices (                              -- what was told of a limit in a window, so that it is told once
    tenant_id    UUID NOT NULL,
    scope        TEXT COLLATE "C" NOT NULL CHECK (scope IN ('tenant', 'key', 'user')),
    subject      TEXT COLLATE "C" NOT NULL,                         -- tenant: ''; key: 'key_…'; user: its name
    feature_key  TEXT COLLATE "C" NOT NULL,                         -- '' where it is about no feature
    "window"     TEXT COLLATE "C" NOT NULL,                         -- the window's kind
    window_start BIGINT NOT NULL,                                   -- µs
    mark         TEXT COLLATE "C" NOT NULL,                         -- 'threshold:80', 'soft_limit', 'limit', 'overshoot', 'window_reset', 'subscription:STATUS'
    window_end   BIGINT NOT NULL,                                   -- µs
    limit_value  BIGINT NOT NULL,                                   -- the limit that it was told of: a raised one may be told of anew
    used         BIGINT NOT NULL,                                   -- what was used then
    told_at      BIGINT NOT NULL,                                   -- µs
    PRIMARY KEY (tenant_id, scope, subject, feature_key, "window", window_start, mark)
);
CREATE INDEX notices_ended ON notices (window_end);
