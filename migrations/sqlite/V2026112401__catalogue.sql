-- Plans, tenants, subscriptions, overrides, grants and keys: what requests are checked against.
--
-- Everywhere: an id is the 16 bytes of a UUID (shown as `ten_…`, `key_…`); an instant is a number of µs since
-- 1970 in UTC; a quantity is a whole number of the feature's unit, within ±(2^53 − 1).

CREATE TABLE audit_log (                            -- who changed what; written in the transaction of the change
    audit_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, -- grows with time
    at       INTEGER NOT NULL,                      -- µs; when
    actor    TEXT    NOT NULL,                      -- 'cli', 'setup', 'stripe', or an administrator's name
    address  TEXT,                                  -- the peer's, if the change came over the network
    action   TEXT    NOT NULL,                      -- such as 'plan.update'
    target   TEXT    NOT NULL,                      -- a plan's code, a tenant's slug, else an id
    before   TEXT,                                  -- JSON, null if it was not there; never a secret
    after    TEXT                                   -- JSON, null if it is gone; never a secret
) STRICT;

CREATE TABLE plans (
    plan_code      TEXT    NOT NULL PRIMARY KEY,
    name           TEXT    NOT NULL,                -- shown to people
    allowed_models TEXT    NOT NULL,                -- JSON array of patterns of model names; []: every model
    version        INTEGER NOT NULL                 -- grows by one with every change, for If-Match
) STRICT, WITHOUT ROWID;

CREATE TABLE plan_features (
    plan_code        TEXT    NOT NULL REFERENCES plans (plan_code) ON DELETE CASCADE,
    feature_key      TEXT    NOT NULL,
    display_name     TEXT    NOT NULL,
    unit             TEXT    NOT NULL,              -- 'requests', 'tokens', 'usd_micros', …
    is_metered       INTEGER NOT NULL CHECK (is_metered IN (0, 1)), -- 0: an entitlement, only carried and shown
    alert_thresholds TEXT,                          -- JSON array of percentages; null: those of the settings
    stripe_meter     TEXT,                          -- Stripe's event_name; null: not pushed
    PRIMARY KEY (plan_code, feature_key)
) STRICT, WITHOUT ROWID;

CREATE TABLE plan_feature_limits (                  -- several a feature: one per scope and window
    plan_code   TEXT    NOT NULL,
    feature_key TEXT    NOT NULL,
    scope       TEXT    NOT NULL CHECK (scope IN ('tenant', 'key', 'user')),
    window_kind TEXT    NOT NULL CHECK (window_kind IN ('minute', 'hour', 'day', 'week', 'month', 'period', 'lifetime')),
    soft_limit  INTEGER,                            -- null: no soft limit
    hard_limit  INTEGER,                            -- null: no hard limit
    position    INTEGER NOT NULL,                   -- the order given; the first is the one shown flat
    PRIMARY KEY (plan_code, feature_key, scope, window_kind),
    FOREIGN KEY (plan_code, feature_key) REFERENCES plan_features (plan_code, feature_key) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE tenants (
    tenant_id  BLOB    NOT NULL PRIMARY KEY CHECK (length(tenant_id) = 16),
    slug       TEXT    NOT NULL UNIQUE,             -- for ever: a deleted tenant keeps its row, so its slug is not reused
    name       TEXT    NOT NULL,                    -- shown to people
    created_at INTEGER NOT NULL,                    -- µs; where lifetime windows begin
    deleted_at INTEGER                              -- µs; set: hidden, its history kept
) STRICT, WITHOUT ROWID;

CREATE TABLE subscriptions (                        -- one current one a tenant
    tenant_id             BLOB    NOT NULL PRIMARY KEY REFERENCES tenants (tenant_id),
    plan_code             TEXT    NOT NULL REFERENCES plans (plan_code),
    status                TEXT    NOT NULL CHECK (status IN ('active', 'trialing', 'past_due', 'canceled', 'unpaid',
                                      'incomplete', 'incomplete_expired', 'paused')),
    status_since          INTEGER NOT NULL,         -- µs; when status last changed: past due has a grace from here
    period_start          INTEGER NOT NULL,         -- µs; of the first period. Later ones follow from it and are
    period_end            INTEGER NOT NULL,         --   never stored, so no job can be late (view subscription_periods)
    period_months         INTEGER CHECK (period_months > 0), -- the first period's length if whole months; null: rolls on by its length
    processor_customer_id TEXT,                     -- the payment processor's customer, such as 'cus_…'
    CHECK (period_start < period_end)
) STRICT, WITHOUT ROWID;
CREATE INDEX subscriptions_plan ON subscriptions (plan_code);                   -- may a plan be deleted?
CREATE INDEX subscriptions_customer ON subscriptions (processor_customer_id);   -- whose webhook is it?

CREATE TABLE tenant_overrides (                     -- a tenant's own limits, in place of its plan's of the same scope and window
    tenant_id   BLOB    NOT NULL REFERENCES tenants (tenant_id),
    feature_key TEXT    NOT NULL,
    until       INTEGER,                            -- µs; from here on the plan holds again; null: no end
    PRIMARY KEY (tenant_id, feature_key)
) STRICT, WITHOUT ROWID;

CREATE TABLE tenant_override_limits (
    tenant_id   BLOB    NOT NULL,
    feature_key TEXT    NOT NULL,
    scope       TEXT    NOT NULL CHECK (scope IN ('tenant', 'key', 'user')),
    window_kind TEXT    NOT NULL CHECK (window_kind IN ('minute', 'hour', 'day', 'week', 'month', 'period', 'lifetime')),
    soft_limit  INTEGER,                            -- null: no soft limit
    hard_limit  INTEGER,                            -- null: no hard limit
    position    INTEGER NOT NULL,                   -- the order given
    PRIMARY KEY (tenant_id, feature_key, scope, window_kind),
    FOREIGN KEY (tenant_id, feature_key) REFERENCES tenant_overrides (tenant_id, feature_key) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE grants (                               -- extra allowances; revoked, never deleted
    grant_id    BLOB    NOT NULL PRIMARY KEY CHECK (length(grant_id) = 16),
    tenant_id   BLOB    NOT NULL REFERENCES tenants (tenant_id),
    feature_key TEXT    NOT NULL,
    quantity    INTEGER NOT NULL,
    reason      TEXT    NOT NULL,                   -- free text, shown to people
    created_at  INTEGER NOT NULL,                   -- µs; counts from here …
    expires_at  INTEGER NOT NULL,                   -- µs; … to here, excluded
    revoked_at  INTEGER                             -- µs; ended early
) STRICT, WITHOUT ROWID;
CREATE INDEX grants_tenant ON grants (tenant_id, created_at);

CREATE TABLE keys (                                 -- API keys of tenants; revoked, never deleted
    key_id               BLOB    NOT NULL PRIMARY KEY CHECK (length(key_id) = 16),
    tenant_id            BLOB    NOT NULL REFERENCES tenants (tenant_id),
    name                 TEXT    NOT NULL,          -- shown to people
    end_user             TEXT,                      -- fixes the end user of every request made with the key
    secret_hash          BLOB    NOT NULL UNIQUE CHECK (length(secret_hash) = 32), -- SHA-256 of the secret, all that is kept of it
    previous_secret_hash BLOB    UNIQUE,            -- of the secret before the last rotation, which serves …
    previous_until       INTEGER,                   -- … until here (µs), excluded
    created_at           INTEGER NOT NULL,          -- µs
    expires_at           INTEGER,                   -- µs; null: never
    revoked_at           INTEGER                    -- µs; null: in use
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_tenant ON keys (tenant_id, created_at);

-- The change feed. Triggers fill it, so that no writer, a hand at the sqlite3 prompt included, can forget it;
-- servers poll it and drop what changed from their caches.
CREATE TABLE catalogue_changes (
    version    INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, -- never given twice, after pruning too
    kind       TEXT    NOT NULL CHECK (kind IN ('plan', 'tenant', 'key')),
    id         ANY     NOT NULL,                    -- plan_code, tenant_id or key_id
    changed_at INTEGER NOT NULL                     -- µs; decides only how long the row is kept
) STRICT;

-- The instant of the change that is being made: every change writes its audit row first. Taken from there because
-- time comes from the program, never from the database; a change by hand gets the time of the last audited one.
CREATE VIEW change_in_progress (at) AS
    SELECT coalesce((SELECT at FROM audit_log ORDER BY audit_id DESC LIMIT 1), 0);

CREATE TRIGGER plans_inserted AFTER INSERT ON plans BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'plan', NEW.plan_code, at FROM change_in_progress;
END;
CREATE TRIGGER plans_updated AFTER UPDATE ON plans BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'plan', OLD.plan_code, at FROM change_in_progress
    UNION SELECT 'plan', NEW.plan_code, at FROM change_in_progress;
END;
CREATE TRIGGER plans_deleted AFTER DELETE ON plans BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'plan', OLD.plan_code, at FROM change_in_progress;
END;
CREATE TRIGGER plan_features_inserted AFTER INSERT ON plan_features BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'plan', NEW.plan_code, at FROM change_in_progress;
END;
CREATE TRIGGER plan_features_updated AFTER UPDATE ON plan_features BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'plan', OLD.plan_code, at FROM change_in_progress
    UNION SELECT 'plan', NEW.plan_code, at FROM change_in_progress;
END;
CREATE TRIGGER plan_features_deleted AFTER DELETE ON plan_features BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'plan', OLD.plan_code, at FROM change_in_progress;
END;
CREATE TRIGGER plan_feature_limits_inserted AFTER INSERT ON plan_feature_limits BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'plan', NEW.plan_code, at FROM change_in_progress;
END;
CREATE TRIGGER plan_feature_limits_updated AFTER UPDATE ON plan_feature_limits BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'plan', OLD.plan_code, at FROM change_in_progress
    UNION SELECT 'plan', NEW.plan_code, at FROM change_in_progress;
END;
CREATE TRIGGER plan_feature_limits_deleted AFTER DELETE ON plan_feature_limits BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'plan', OLD.plan_code, at FROM change_in_progress;
END;
CREATE TRIGGER tenants_inserted AFTER INSERT ON tenants BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', NEW.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER tenants_updated AFTER UPDATE ON tenants BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', OLD.tenant_id, at FROM change_in_progress
    UNION SELECT 'tenant', NEW.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER tenants_deleted AFTER DELETE ON tenants BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', OLD.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER subscriptions_inserted AFTER INSERT ON subscriptions BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', NEW.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER subscriptions_updated AFTER UPDATE ON subscriptions BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', OLD.tenant_id, at FROM change_in_progress
    UNION SELECT 'tenant', NEW.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER subscriptions_deleted AFTER DELETE ON subscriptions BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', OLD.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER tenant_overrides_inserted AFTER INSERT ON tenant_overrides BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', NEW.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER tenant_overrides_updated AFTER UPDATE ON tenant_overrides BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', OLD.tenant_id, at FROM change_in_progress
    UNION SELECT 'tenant', NEW.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER tenant_overrides_deleted AFTER DELETE ON tenant_overrides BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', OLD.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER tenant_override_limits_inserted AFTER INSERT ON tenant_override_limits BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', NEW.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER tenant_override_limits_updated AFTER UPDATE ON tenant_override_limits BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', OLD.tenant_id, at FROM change_in_progress
    UNION SELECT 'tenant', NEW.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER tenant_override_limits_deleted AFTER DELETE ON tenant_override_limits BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', OLD.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER grants_inserted AFTER INSERT ON grants BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', NEW.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER grants_updated AFTER UPDATE ON grants BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', OLD.tenant_id, at FROM change_in_progress
    UNION SELECT 'tenant', NEW.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER grants_deleted AFTER DELETE ON grants BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', OLD.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER keys_inserted AFTER INSERT ON keys BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'key', NEW.key_id, at FROM change_in_progress;
END;
CREATE TRIGGER keys_updated AFTER UPDATE ON keys BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'key', OLD.key_id, at FROM change_in_progress
    UNION SELECT 'key', NEW.key_id, at FROM change_in_progress;
END;
CREATE TRIGGER keys_deleted AFTER DELETE ON keys BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'key', OLD.key_id, at FROM change_in_progress;
END;
