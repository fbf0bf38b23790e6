-- Corrections, resets, and finding what became of a request.

CREATE INDEX usage_events_request ON usage_events (request_id);  -- what became of a request?
CREATE INDEX usage_events_corrections ON usage_events (tenant_id, admitted_at) WHERE source = 'correction'; -- statements

CREATE TABLE resets (                               -- limits of a feature count from here on, until their window ends; usage stays
    tenant_id   BLOB    NOT NULL REFERENCES tenants (tenant_id),
    feature_key TEXT    NOT NULL,
    at          INTEGER NOT NULL,                   -- µs
    reason      TEXT    NOT NULL,
    PRIMARY KEY (tenant_id, feature_key, at)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER resets_inserted AFTER INSERT ON resets BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', NEW.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER resets_updated AFTER UPDATE ON resets BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', OLD.tenant_id, at FROM change_in_progress
    UNION SELECT 'tenant', NEW.tenant_id, at FROM change_in_progress;
END;
CREATE TRIGGER resets_deleted AFTER DELETE ON resets BEGIN
    INSERT INTO catalogue_changes (kind, id, changed_at)
    SELECT 'tenant', OLD.tenant_id, at FROM change_in_progress;
END;
