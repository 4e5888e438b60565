-- The first answer to each mutating call with an idempotency key, stored in the transaction of its effect.
CREATE TABLE dinedesk_main.idempotency_keys (
    -- NULL: the call belongs to no existing tenant.
    tenant_id integer REFERENCES dinedesk_main.tenants ON DELETE CASCADE,
    -- The caller: 'platform' or 'device <id>', and not the key, so that rotating a key changes nothing.
    principal text NOT NULL,
    -- The method and path: 'POST /api/kitchen/events'.
    operation text NOT NULL,
    key text NOT NULL CHECK (key ~ '^[\x21-\x7e]{1,255}$'),
    -- SHA-256 of the content of the call.
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32),
    status smallint NOT NULL,
    answer json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
-- Tenant ids begin at 1, so 0 can stand for NULL.
CREATE UNIQUE INDEX idempotency_keys_unique
    ON dinedesk_main.idempotency_keys (coalesce(tenant_id, 0), principal, operation, key);
-- For the foreign key: without this index, deleting a tenant would read the whole table.
CREATE INDEX idempotency_keys_of_tenant ON dinedesk_main.idempotency_keys (tenant_id);
CREATE INDEX idempotency_keys_by_age ON dinedesk_main.idempotency_keys (created_at);
GRANT SELECT, INSERT ON dinedesk_main.idempotency_keys TO posd;
