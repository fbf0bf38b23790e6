-- Conversations, administrators, and what is to be sent to others.

CREATE TABLE conversations (
    conversation_id BLOB    NOT NULL PRIMARY KEY CHECK (length(conversation_id) = 16),
    tenant_id       BLOB    NOT NULL REFERENCES tenants (tenant_id), -- the only one who can see it
    expires_at      INTEGER NOT NULL                -- µs; gone from here on
) STRICT, WITHOUT ROWID;
CREATE INDEX conversations_expiry ON conversations (expires_at);

CREATE TABLE conversation_turns (                   -- with row ids, since texts are long
    conversation_id BLOB    NOT NULL REFERENCES conversations (conversation_id) ON DELETE CASCADE,
    position        INTEGER NOT NULL,               -- 0, 1, 2, …
    speaker         TEXT    NOT NULL CHECK (speaker IN ('user', 'assistant')),
    text            TEXT    NOT NULL,
    PRIMARY KEY (conversation_id, position)
) STRICT;

CREATE TABLE admin_tokens (                         -- administrators; revoked, never deleted
    admin_token_id BLOB    NOT NULL PRIMARY KEY CHECK (length(admin_token_id) = 16),
    name           TEXT    NOT NULL,                -- the name that the audit log shows
    role           TEXT    NOT NULL CHECK (role IN ('viewer', 'operator', 'owner')),
    secret_hash    BLOB    NOT NULL UNIQUE CHECK (length(secret_hash) = 32), -- SHA-256 of the secret, all that is kept of it
    created_at     INTEGER NOT NULL,                -- µs
    revoked_at     INTEGER                          -- µs; null: in use
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (                               -- what is to be sent (meter events, notices), until the other side has it
    identifier      TEXT    NOT NULL PRIMARY KEY,   -- deterministic, so that making it again makes nothing
    kind            TEXT    NOT NULL,               -- what sends it, such as 'stripe.meter_event'
    tenant_id       BLOB,                           -- whom it is about; null: nobody
    feature_key     TEXT,                           -- what it is about; null: nothing
    payload         TEXT    NOT NULL,               -- JSON, as `kind` defines it
    status          TEXT    NOT NULL CHECK (status IN ('pending', 'sent', 'confirmed', 'uncertain', 'dead')),
    attempts        INTEGER NOT NULL DEFAULT 0,
    last_error      TEXT,
    next_attempt_at INTEGER,                        -- µs; null: none planned
    created_at      INTEGER NOT NULL                -- µs
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_due ON outbox (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX outbox_tenant ON outbox (tenant_id, created_at);
