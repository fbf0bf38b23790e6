-- The audit log knows administrators by name: no two in use at a time may share one.
CREATE UNIQUE INDEX admin_tokens_name ON admin_tokens (name) WHERE revoked_at IS NULL;
