-- The first answer to each mutating call that names a key, stored in the transaction of its effect.
CREATE TABLE dinedesk_main.idempotency_keys (
    -- NULL: the call is about no tenant that was there before it.
    tenant_id integer REFERENCES dinedesk_main.tenants ON DELETE CASCADE,
    -- Who: 'platform' or 'device <id>', not the key, so that rotating a credential changes nothing.
    principal text NOT NULL,
    -- What was called: 'POST /api/kitchen/events'.
    operation text NOT NULL,
    key text NOT NULL CHECK (key ~ '^[\x21-\x7e]{1,255}$'),
    -- SHA-256 of what the call moves.
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32),
    status smallint NOT NULL,
    answer json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
-- No tenant's number is 0.
CREATE UNIQUE INDEX idempotency_keys_unique
    ON dinedesk_main.idempotency_keys (coalesce(tenant_id, 0), principal, operation, key);
-- For the foreign key: deleting a tenant would read the whole table.
CREATE INDEX idempotency_keys_of_tenant ON dinedesk_main.idempotency_keys (tenant_id);
CREATE INDEX idempotency_keys_by_age ON dinedesk_main.idempotency_keys (created_at);
GRANT SELECT, INSERT ON dinedesk_main.idempotency_keys TO posd;
