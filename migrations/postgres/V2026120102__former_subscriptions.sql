-- What a tenant was subscribed to when it was deleted: what its last requests used is known only later.

CREATE TABLE former_subscriptions (                 -- of deleted tenants, each its last
    tenant_id             UUID NOT NULL PRIMARY KEY REFERENCES tenants (tenant_id),
    plan_code             TEXT COLLATE "C" NOT NULL,                -- the plan may be gone
    status                TEXT COLLATE "C" NOT NULL,                -- this and the rest as in subscriptions
    status_since          BIGINT NOT NULL,
    period_start          BIGINT NOT NULL,
    period_end            BIGINT NOT NULL,
    processor_customer_id TEXT COLLATE "C"
);
