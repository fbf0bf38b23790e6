-- One outbox for all that is to be told to others, and what notices were sent. No version before this one ever wrote
-- to the old table.

DROP TABLE outbox;
CREATE TABLE outbox (                               -- what is to be sent, until the other side has it
    identifier      TEXT    NOT NULL PRIMARY KEY,   -- deterministic, so that making it again makes nothing
    kind            TEXT    NOT NULL,               -- what sends it: 'analytics.batch', 'notice', 'notice.check'
    topic           TEXT,                           -- what of its kind it is, such as a notice's type; null: all are alike
    tenant_id       BLOB,                           -- whom it is about; null: nobody
    feature_key     TEXT,                           -- what it is about; null: nothing
    value           INTEGER,                        -- how much, as `kind` defines it; null: nothing to count
    lane            TEXT,                           -- entries of one kind and lane go one at a time, the oldest first; null: any time
    status          TEXT    NOT NULL CHECK (status IN ('pending', 'sent', 'confirmed', 'uncertain', 'dead')),
    attempts        INTEGER NOT NULL DEFAULT 0,
    last_error      TEXT,
    next_attempt_at INTEGER,                        -- µs; not to be tried before, be it that an attempt is running; null: none planned
    created_at      INTEGER NOT NULL,               -- µs
    finished_at     INTEGER                         -- µs; when it was sent or given up; null: neither
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_due ON outbox (kind, next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX outbox_lanes ON outbox (kind, lane, created_at, identifier) WHERE lane IS NOT NULL AND status = 'pending';
CREATE INDEX outbox_counts ON outbox (kind, status);
CREATE INDEX outbox_created ON outbox (created_at, identifier);
CREATE INDEX outbox_sent ON outbox (finished_at) WHERE status IN ('sent', 'confirmed');

CREATE TABLE outbox_payloads (                      -- apart, with row ids: long texts that lists and counts must not wade through
    identifier TEXT NOT NULL PRIMARY KEY REFERENCES outbox (identifier) ON DELETE CASCADE,
    payload    TEXT NOT NULL                        -- as `kind` defines it; gone once it is sent
) STRICT;

CREATE TABLE notices (                              -- what was told of a limit in a window, so that it is told once
    tenant_id    BLOB    NOT NULL,
    scope        TEXT    NOT NULL CHECK (scope IN ('tenant', 'key', 'user')),
    subject      TEXT    NOT NULL,                  -- tenant: ''; key: 'key_…'; user: its name
    feature_key  TEXT    NOT NULL,                  -- '' where it is about no feature
    window       TEXT    NOT NULL,                  -- the window's kind
    window_start INTEGER NOT NULL,                  -- µs
    mark         TEXT    NOT NULL,                  -- 'threshold:80', 'soft_limit', 'limit', 'overshoot', 'window_reset', 'subscription:STATUS'
    window_end   INTEGER NOT NULL,                  -- µs
    limit_value  INTEGER NOT NULL,                  -- the limit that it was told of: a raised one may be told of anew
    used         INTEGER NOT NULL,                  -- what was used then
    told_at      INTEGER NOT NULL,                  -- µs
    PRIMARY KEY (tenant_id, scope, subject, feature_key, window, window_start, mark)
) STRICT, WITHOUT ROWID;
CREATE INDEX notices_ended ON notices (window_end);
