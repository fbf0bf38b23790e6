-- Sessions of the admin page: who is signed in there.

CREATE TABLE sessions (                             -- deleted when they end
    session_id     UUID NOT NULL PRIMARY KEY,
    secret_hash    BYTEA NOT NULL UNIQUE CHECK (length(secret_hash) = 32), -- SHA-256 of what the cookie holds
    admin_token_id UUID NOT NULL,                                   -- the administrator; no foreign key: that of TOLLGATE_ADMIN_TOKEN is not stored
    created_at     BIGINT NOT NULL,                                 -- µs
    last_seen_at   BIGINT NOT NULL,                                 -- µs; to the minute
    expires_at     BIGINT NOT NULL,                                 -- µs; over from here on; moves on while the session is used
    address        TEXT COLLATE "C",                                -- the peer's at sign-in
    user_agent     TEXT COLLATE "C" NOT NULL                        -- as the browser called itself at sign-in, cut; '': not at all
);
CREATE INDEX sessions_expiry ON sessions (expires_at);
CREATE INDEX sessions_administrator ON sessions (admin_token_id);
