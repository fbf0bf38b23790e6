-- What a tenant was subscribed to when it was deleted: what its last requests used is known only later.

CREATE TABLE former_subscriptions (                 -- of deleted tenants, each its last
    tenant_id             BLOB    NOT NULL PRIMARY KEY REFERENCES tenants (tenant_id),
    plan_code             TEXT    NOT NULL,         -- the plan may be gone
    status                TEXT    NOT NULL,         -- this and the rest as in subscriptions
    status_since          INTEGER NOT NULL,
    period_start          INTEGER NOT NULL,
    period_end            INTEGER NOT NULL,
    processor_customer_id TEXT
) STRICT, WITHOUT ROWID;
