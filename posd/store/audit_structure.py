"""The objects of a schema, read from the system catalogs. An audit compares them with the migrations.

An object has a kind, a name and a definition. The names of the tenant's schema, roles and functions are
replaced, so that the definition is the same for all tenants. A tenant's functions in `posd_hooks` count as
part of its schema. Privileges are compared for posd's own roles and for PUBLIC only; operators may grant
privileges to other roles.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

from posd.database.reconnecting import Querier

_OBJECTS: Final = r"""
    WITH space AS (
        SELECT n.oid, n.nspname, n.nspowner, n.nspacl,
               CASE WHEN %(shop)s <> '' THEN '$' || %(shop)s END AS suffix
          FROM pg_namespace AS n WHERE n.nspname = %(schema)s
    ), role AS (
        SELECT r.oid, CASE r.rolname WHEN 'posd_hook_' || %(shop)s THEN ':hook_role'
                                     WHEN 'posd_note_' || %(shop)s THEN ':note_role'
                                     ELSE CASE WHEN r.rolsuper THEN 'a superuser' ELSE r.rolname END
               END AS name,
               r.rolname IN ('posd', 'posd_publisher', 'posd_hook', 'posd_note', 'posd_reader',
                             'posd_hook_' || %(shop)s, 'posd_note_' || %(shop)s) AS watched
          FROM pg_roles AS r
    ), watched AS (
        SELECT r.oid, r.name FROM role AS r WHERE r.watched
        UNION ALL SELECT 0, 'PUBLIC'
    ), routine AS (
        SELECT p.*, p.proname::text AS name FROM pg_proc AS p JOIN space AS s ON s.oid = p.pronamespace
        UNION ALL
        SELECT p.*, concat('posd_hooks.', split_part(p.proname, '$', 1))
          FROM pg_proc AS p JOIN space AS s ON p.proname LIKE '%%' || replace(s.suffix, '_', '\_')
         WHERE p.pronamespace = to_regnamespace('posd_hooks')
    ), relation AS (
        SELECT c.*, c.relname IN ('orders', 'order_items') AS shops
          FROM pg_class AS c JOIN space AS s ON s.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'v')
    ), thing (kind, name, made) AS (
        SELECT 'schema', ''::text, concat('owner ', s.nspowner::regrole, ', ', (
                   SELECT string_agg(concat(w.name, ' ', a.privilege_type), ', '
                                     ORDER BY w.name, a.privilege_type)
                     FROM aclexplode(coalesce(s.nspacl, acldefault('n', s.nspowner))) AS a
                     JOIN watched AS w ON w.oid = a.grantee))
          FROM space AS s
        UNION ALL
        SELECT 'schema', 'posd_hooks', concat('owner ', n.nspowner::regrole, ', ', (
                   SELECT string_agg(concat(w.name, ' ', a.privilege_type), ', '
                                     ORDER BY w.name, a.privilege_type)
                     FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS a
                     JOIN watched AS w ON w.oid = a.grantee))
          FROM pg_namespace AS n JOIN space AS s ON s.suffix IS NULL WHERE n.nspname = 'posd_hooks'
        UNION ALL
        SELECT 'table', c.relname, concat(
                   CASE c.relkind WHEN 'v' THEN 'view' WHEN 'p' THEN 'parted'
                                  ELSE CASE c.relpersistence WHEN 'u' THEN 'unlogged' ELSE 'table' END END,
                   ', owner ', c.relowner::regrole,
                   CASE WHEN c.relrowsecurity OR c.relforcerowsecurity THEN ', row security' END)
          FROM relation AS c
        UNION ALL
        SELECT 'rights', c.relname, string_agg(r.given, ', ' ORDER BY r.given)
          FROM relation AS c CROSS JOIN LATERAL (
                SELECT concat(w.name, ' ', a.privilege_type) AS given
                  FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS a
                  JOIN watched AS w ON w.oid = a.grantee
                 UNION ALL
                SELECT concat(w.name, ' ', a.privilege_type, ' (',
                              string_agg(t.attname, ', ' ORDER BY t.attnum), ')')
                  FROM pg_attribute AS t CROSS JOIN LATERAL aclexplode(t.attacl) AS a
                  JOIN watched AS w ON w.oid = a.grantee
                 WHERE t.attrelid = c.oid AND NOT t.attisdropped GROUP BY w.name, a.privilege_type
               ) AS r
         GROUP BY c.relname
        UNION ALL
        SELECT 'column', concat(c.relname, '.', a.attname), concat(
                   format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN ' not null' END,
                   CASE WHEN a.attidentity <> '' THEN ' identity ' || a.attidentity::text END,
                   CASE WHEN a.attgenerated <> '' THEN ' generated' END,
                   ' ' || pg_get_expr(d.adbin, d.adrelid))
          FROM relation AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
          LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
         WHERE c.relkind <> 'v' AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT 'constraint', concat(c.relname, '.', o.conname), concat(
                   pg_get_constraintdef(o.oid), CASE WHEN NOT o.convalidated THEN ' never validated' END,
                   CASE WHEN EXISTS (SELECT FROM pg_trigger AS t
                                      WHERE t.tgconstraint = o.oid AND t.tgenabled IN ('D', 'R'))
                        THEN ' disabled' END)
          FROM relation AS c JOIN pg_constraint AS o ON o.conrelid = c.oid
         WHERE o.contype IN ('c', 'f', 'p', 'u', 'x')
        UNION ALL
        SELECT 'index', concat(c.relname, '.', x.relname), concat(
                   pg_get_indexdef(i.indexrelid), CASE WHEN NOT i.indisvalid THEN ' invalid' END)
          FROM relation AS c JOIN pg_index AS i ON i.indrelid = c.oid
          JOIN pg_class AS x ON x.oid = i.indexrelid
         WHERE NOT EXISTS (SELECT FROM pg_constraint AS o WHERE o.conindid = i.indexrelid
                              AND o.contype IN ('p', 'u', 'x'))
        UNION ALL
        -- Hooks on a plain table and on a partitioned table have different definitions: compare the function.
        SELECT 'trigger', concat(c.relname, '.', t.tgname), concat(
                   CASE WHEN c.shops THEN concat(p.pronamespace::regnamespace, '.', p.proname, '()')
                        ELSE pg_get_triggerdef(t.oid) END,
                   CASE WHEN t.tgenabled IN ('D', 'R') THEN ' disabled' END)
          FROM relation AS c JOIN pg_trigger AS t ON t.tgrelid = c.oid JOIN pg_proc AS p ON p.oid = t.tgfoid
         WHERE NOT t.tgisinternal
        UNION ALL
        SELECT 'function', concat(p.name, '(', pg_get_function_identity_arguments(p.oid), ')'), concat(
                   'owner ', (SELECT r.name FROM role AS r WHERE r.oid = p.proowner),
                   CASE WHEN p.prosecdef THEN ', with its rights' END,
                   ', set ' || array_to_string(p.proconfig, ', '), (
                   SELECT string_agg(concat(', for ', w.name), '' ORDER BY w.name)
                     FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
                     JOIN watched AS w ON w.oid = a.grantee AND a.grantee <> p.proowner))
          FROM routine AS p
        UNION ALL
        SELECT 'source', concat(p.name, '(', pg_get_function_identity_arguments(p.oid), ')'), p.prosrc
          FROM routine AS p
    )
    SELECT t.kind, replace(t.name, %(schema)s || '.', ''),
           CASE WHEN t.kind = 'source' THEN t.made
                ELSE regexp_replace(regexp_replace(
                         replace(t.made, %(schema)s || '.', ''),
                         '"?(\w+)\$' || %(shop)s || '"?\(', '\1(', 'g'),
                     '\s+', ' ', 'g') END
      FROM thing AS t ORDER BY t.kind, t.name
"""
_APPLIED: Final = """
    SELECT v.file, v.checksum FROM dinedesk_main.schema_versions AS v
     WHERE v.schema_name = %(schema)s ORDER BY v.file
"""


@frozen
class SchemaObject:
    """An object of a schema: a table, a column, a constraint, privileges, a function or its source."""

    kind: str
    name: str
    made: str


async def schema_objects(executor: Querier, schema_name: str, shop: str = "") -> list[SchemaObject]:
    """Return the objects of a schema. `shop` is the suffix of the tenant's roles and functions."""
    rows = await executor.query(_OBJECTS, {"schema": schema_name, "shop": shop})
    return [SchemaObject(*row) for row in rows]


async def applied_migrations(executor: Querier, schema_name: str) -> dict[str, str]:
    """Return the migrations applied to a schema, mapped to the checksum of each file when it was applied."""
    return dict(await executor.query(_APPLIED, {"schema": schema_name}))
