-- Conversations, administrators, and what is to be sent to others.

CREATE TABLE conversations (
    conversation_id UUID NOT NULL PRIMARY KEY,
    tenant_id       UUID NOT NULL REFERENCES tenants (tenant_id),   -- the only one who can see it
    expires_at      BIGINT NOT NULL                                 -- µs; gone from here on
);
CREATE INDEX conversations_expiry ON conversations (expires_at);

CREATE TABLE conversation_turns (                   -- with row ids, since texts are long
    conversation_id UUID NOT NULL REFERENCES conversations (conversation_id) ON DELETE CASCADE,
    position        BIGINT NOT NULL,                                -- 0, 1, 2, …
    speaker         TEXT COLLATE "C" NOT NULL CHECK (speaker IN ('user', 'assistant')),
    text            TEXT NOT NULL,
    PRIMARY KEY (conversation_id, position)
);

CREATE TABLE admin_tokens (                         -- administrators; revoked, never deleted
    admin_token_id UUID NOT NULL PRIMARY KEY,
    name           TEXT COLLATE "C" NOT NULL,                       -- the name that the audit log shows
    role           TEXT COLLATE "C" NOT NULL CHECK (role IN ('viewer', 'operator', 'owner')),
    secret_hash    BYTEA NOT NULL UNIQUE CHECK (length(secret_hash) = 32), -- SHA-256 of the secret, all that is kept of it
    created_at     BIGINT NOT NULL,                                 -- µs
    revoked_at     BIGINT                                           -- µs; null: in use
);

CREATE TABLE outbox (                               -- what is to be sent (meter events, notices), until the other side has it
    identifier      TEXT COLLATE "C" NOT NULL PRIMARY KEY,          -- deterministic, so that making it again makes nothing
    kind            TEXT COLLATE "C" NOT NULL,                      -- what sends it, such as 'stripe.meter_event'
    tenant_id       UUID,                                           -- whom it is about; null: nobody
    feature_key     TEXT COLLATE "C",                               -- what it is about; null: nothing
    payload         TEXT NOT NULL,                                  -- JSON, as `kind` defines it
    status          TEXT COLLATE "C" NOT NULL CHECK (status IN ('pending', 'sent', 'confirmed', 'uncertain', 'dead')),
    attempts        BIGINT NOT NULL DEFAULT 0,
    last_error      TEXT,
    next_attempt_at BIGINT,                                         -- µs; null: none planned
    created_at      BIGINT NOT NULL                                 -- µs
);
CREATE INDEX outbox_due ON outbox (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX outbox_tenant ON outbox (tenant_id, created_at);
