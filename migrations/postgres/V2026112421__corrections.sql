-- Corrections, resets, and finding what became of a request.

CREATE INDEX usage_events_request ON usage_events (request_id);  -- what became of a request?
CREATE INDEX usage_events_corrections ON usage_events (tenant_id, admitted_at) WHERE source = 'correction'; -- statements

CREATE TABLE resets (                               -- limits of a feature count from here on, until their window ends; usage stays
    tenant_id   UUID NOT NULL REFERENCES tenants (tenant_id),
    feature_key TEXT COLLATE "C" NOT NULL,
    at          BIGINT NOT NULL,                                    -- µs
    reason      TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, feature_key, at)
);

CREATE TRIGGER resets_changed AFTER INSERT OR UPDATE OR DELETE ON resets
    FOR EACH ROW EXECUTE FUNCTION note_catalogue_change('tenant', 'tenant_id');
