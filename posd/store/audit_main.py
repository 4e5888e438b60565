"""Audit checks of the tables in `dinedesk_main`: tenants, keys, stored answers, the outbox, roles."""

from __future__ import annotations

from typing import Final

from posd.store.audit import AuditCheck

_TENANTS: Final = """
    SELECT concat('tenants id ', t.id), CASE
               WHEN t.schema_name IS DISTINCT FROM 'dinedesk_' || replace(t.slug, '-', '_')
                   THEN 'its schema is not the one of its slug'
               WHEN count(*) OVER (PARTITION BY t.slug) > 1 THEN 'another tenant has its slug'
               WHEN NOT EXISTS (SELECT FROM pg_namespace AS n WHERE n.nspname = t.schema_name)
                   THEN 'its schema is not there'
               WHEN t.pos_api_key <> '' AND position('…' IN t.pos_api_key) = 0
                   THEN 'pos_api_key has a whole key in it, and not a preview'
           END
      FROM dinedesk_main.tenants AS t ORDER BY t.id
"""
_KEYS: Final = """
    SELECT concat('pos_api_keys id ', k.id), CASE
               WHEN k.tenant_id IS NOT NULL AND t.id IS NULL THEN 'there is no such tenant'
               WHEN k.kind NOT IN ('tenant', 'device', 'platform', 'admin') THEN 'is of no known kind'
               WHEN k.kind IN ('tenant', 'device') AND k.tenant_id IS NULL THEN 'is of no tenant'
               WHEN (k.kind = 'device') <> (k.device_id IS NOT NULL)
                   THEN concat('is a ', k.kind, '''s key, and names ',
                               CASE WHEN k.device_id IS NULL THEN 'no' ELSE 'a' END, ' terminal')
               WHEN octet_length(k.key_sha256) IS DISTINCT FROM 32 THEN 'its hash is none'
               WHEN k.kind = 'device' AND d.device_id IS NULL THEN 'there is no such terminal'
               WHEN k.kind = 'device' AND NOT d.has_key
                   THEN concat('terminal ', k.device_id, ' is said to have no key')
               WHEN count(*) OVER (PARTITION BY k.key_sha256, k.tenant_id) > 1 THEN 'is there twice'
               WHEN k.from_column AND k.revoked_at IS NULL
                    AND count(*) FILTER (WHERE k.from_column AND k.revoked_at IS NULL)
                        OVER (PARTITION BY k.tenant_id) > 1
                   THEN 'another key from tenants.pos_api_key is in force too'
           END
      FROM dinedesk_main.pos_api_keys AS k
      LEFT JOIN dinedesk_main.tenants AS t ON t.id = k.tenant_id
      LEFT JOIN dinedesk_main.pos_devices AS d
        ON d.tenant_id = k.tenant_id AND d.device_id = k.device_id
     ORDER BY k.id
"""
# A row has no id, and the path in `operation` may contain a telephone number: so the row is identified by
# its ctid.
_ANSWERS: Final = """
    SELECT concat('idempotency_keys ctid ', i.ctid), CASE
               WHEN i.tenant_id IS NOT NULL AND t.id IS NULL THEN 'there is no such tenant'
               WHEN octet_length(i.fingerprint) IS DISTINCT FROM 32 THEN 'its fingerprint is none'
               WHEN i.status IS NULL OR i.status NOT BETWEEN 200 AND 599
                   THEN concat('status ', i.status, ' answers nothing')
               WHEN i.answer IS NULL OR json_typeof(i.answer) <> 'object' THEN 'its answer is no object'
               WHEN count(*) OVER (PARTITION BY i.tenant_id, i.principal, i.operation, i.key) > 1
                   THEN 'the same call has another answer too'
           END
      FROM dinedesk_main.idempotency_keys AS i
      LEFT JOIN dinedesk_main.tenants AS t ON t.id = i.tenant_id
     ORDER BY i.created_at, i.ctid
"""
_OUTBOX: Final = """
    SELECT concat('pos_outbox id ', o.id), CASE
               WHEN (o.key IS NULL) = (o.data IS NULL) THEN 'is neither an event nor a touched row'
               WHEN NOT EXISTS (SELECT FROM dinedesk_main.pos_outbox_transactions AS t
                                 WHERE t.tenant_id = o.tenant_id AND t.xact = o.xact AND t.kind = o.kind)
                   THEN 'is of a transaction that pos_outbox_transactions does not have'
           END
      FROM dinedesk_main.pos_outbox AS o ORDER BY o.id
"""
# Rows wait while no daemon runs. A daemon also leaves out a shop whose tables cannot be read for up to five
# minutes. So this check only warns.
_WAITING: Final = """
    SELECT concat('pos_outbox id ', o.id, ' of tenant ', o.tenant_id),
           concat('waits since ', date_trunc('second', o.created_at), ', and a daemon runs')
      FROM dinedesk_main.pos_outbox AS o
     WHERE o.created_at < now() - interval '1 minute'
       AND EXISTS (SELECT FROM dinedesk_main.pos_nodes AS n WHERE n.lease_until > now())
     ORDER BY o.id
"""
# Role attributes and memberships belong to the cluster. A copy of the database does not contain them.
_ROLES: Final = """
    SELECT concat('role ', r.rolname), CASE
               WHEN r.rolsuper THEN 'is a superuser'
               WHEN r.rolcreaterole THEN 'may make roles'
               WHEN r.rolcreatedb THEN 'may make databases'
               WHEN r.rolreplication THEN 'may copy the whole cluster'
               WHEN r.rolbypassrls THEN 'bypasses row security'
               WHEN r.rolcanlogin AND r.rolname ~ '^posd_(hook|note)' THEN 'may log in'
               WHEN m.names IS NOT NULL THEN concat('is a member of ', m.names)
           END
      FROM pg_roles AS r CROSS JOIN LATERAL (
            SELECT string_agg(o.rolname, ', ' ORDER BY o.rolname) AS names FROM pg_roles AS o
             WHERE o.oid <> r.oid AND pg_has_role(r.oid, o.oid, 'MEMBER')
               AND (o.rolsuper OR (o.rolname ~ '^posd_(owner$|hook|note_)' AND r.rolname <> 'posd_owner')
                    OR o.rolname IN ('pg_read_all_data', 'pg_write_all_data', 'pg_execute_server_program',
                                     'pg_read_server_files', 'pg_write_server_files'))) AS m
     WHERE r.rolname ~ '^posd(_owner|_publisher|_reader|_(hook|note).*)?$' ORDER BY r.rolname
"""

ROLES: Final = AuditCheck("roles", _ROLES)
CHECKS: Final = (
    AuditCheck("tenants", _TENANTS),
    AuditCheck("keys", _KEYS),
    AuditCheck("answers", _ANSWERS),
    AuditCheck("outbox", _OUTBOX),
    AuditCheck("waiting", _WAITING, warns=True),
    ROLES,
)
