"""Read the description of a shop's own `orders` and `order_items` from the system catalog.

Reading the catalog runs no code of the shop: no view, policy, type or expression of its tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import frozen

from posd.database.reconnecting import Querier
from posd.events.orders import ADDON_COLUMNS, ITEM_COLUMNS, ORDER_COLUMNS
from posd.values import Tenant

REQUIRED_COLUMNS: Final = {
    "orders": ("id", "status", "total_amount", "created_at"),
    "order_items": ("id", "order_id", "name", "price", "quantity"),
}
"""The columns that a shop's own tables must have to be hooked."""

USED_COLUMNS: Final = {
    "orders": frozenset(ORDER_COLUMNS),
    "order_items": frozenset((*ITEM_COLUMNS, *ADDON_COLUMNS, "id", "order_id")),
}
"""The columns that are read, if they exist."""

TIMES: Final = ("created_at", "scheduled_for", "scheduled_time")
"""The columns of `orders` that hold points in time."""

# Uses pg_catalog, because information_schema omits objects on which the user has no rights. Types have no
# length. `base` is the base type of a domain; a domain may be based on a domain. Row security hides no rows
# if the reader has a permissive policy with `USING (true)` and no restrictive policy.
READ: Final = """
    WITH RECURSIVE family AS (
        SELECT c.oid AS root, c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE n.nspname = %(schema)s AND c.relname IN ('orders', 'order_items')
         UNION SELECT f.root, i.inhrelid FROM family AS f JOIN pg_inherits AS i ON i.inhparent = f.oid
    ), below AS (
        SELECT t.oid AS type, t.oid, t.typbasetype
          FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
         WHERE a.attrelid IN (SELECT root FROM family) AND a.attnum > 0
         UNION SELECT b.type, t.oid, t.typbasetype FROM below AS b JOIN pg_type AS t ON t.oid = b.typbasetype
    ), base AS (
        SELECT b.type, b.oid FROM below AS b WHERE b.typbasetype = 0
    )
    SELECT c.relname::text, c.relkind::text, pg_get_userbyid(c.relowner)::text,
           NOT EXISTS (SELECT FROM family AS f WHERE f.root = c.oid AND NOT EXISTS (
               SELECT FROM pg_trigger AS t JOIN pg_proc AS note ON note.oid = t.tgfoid
                WHERE t.tgrelid = f.oid AND t.tgname ~ '^pos_.*_inserted$'
                  AND note.pronamespace = 'posd_hooks'::regnamespace)),
           ARRAY(SELECT a.attname::text FROM pg_attribute AS a
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
           ARRAY(SELECT format_type(b.oid, -1) FROM pg_attribute AS a JOIN base AS b ON b.type = a.atttypid
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
           ARRAY(SELECT a.attname::text
                   FROM pg_attribute AS a JOIN base AS b ON b.type = a.atttypid
                   JOIN pg_type AS t ON t.oid = b.oid
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                    AND NOT (SELECT o.rolsuper FROM pg_roles AS o WHERE o.oid = t.typowner)),
           ARRAY(SELECT has_column_privilege(r.oid, c.oid, a.attnum, 'SELECT') FROM pg_attribute AS a
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
           ARRAY(SELECT format('"%%s".%%I', replace(n.nspname, '"', '""'), p.relname)
                   FROM family AS f JOIN pg_class AS p ON p.oid = f.oid
                   JOIN pg_namespace AS n ON n.oid = p.relnamespace
                  WHERE f.root = c.oid AND NOT has_table_privilege('posd_owner', p.oid, 'TRIGGER')
                  ORDER BY p.oid <> f.root, 1),
           ARRAY(SELECT format('"%%s".%%I', replace(n.nspname, '"', '""'), p.relname)
                   FROM family AS f JOIN pg_class AS p ON p.oid = f.oid
                   JOIN pg_namespace AS n ON n.oid = p.relnamespace
                  WHERE f.root = c.oid AND f.oid <> c.oid AND NOT EXISTS (
                        SELECT FROM pg_trigger AS t WHERE t.tgrelid = f.oid AND t.tgname ~ '^pos_.*_inserted$'
                           AND t.tgenabled IN ('O', 'A'))
                  ORDER BY 1),
           EXISTS (SELECT FROM pg_index AS i
                     JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'id'
                    WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
                      AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum),
           EXISTS (SELECT FROM pg_index AS i
                     JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'order_id'
                    WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL
                      AND i.indkey[0] = a.attnum),
           ARRAY(SELECT a.attname::text
                   FROM pg_index AS i
                  CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(attnum, place)
                   JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = k.attnum
                  WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts ORDER BY k.place),
           ARRAY(SELECT k.conname::text FROM pg_constraint AS k
                  WHERE k.contype = 'f' AND k.conrelid = c.oid AND k.confrelid IN (SELECT root FROM family)
                  ORDER BY 1),
           c.relrowsecurity AND NOT coalesce(r.rolbypassrls OR r.rolsuper, false)
             AND (c.relforcerowsecurity OR c.relowner IS DISTINCT FROM r.oid)
             AND (NOT EXISTS (SELECT FROM pg_policy AS p
                               WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('r', '*')
                                 AND (0 = ANY (p.polroles) OR r.oid = ANY (p.polroles))
                                 AND pg_get_expr(p.polqual, p.polrelid) = 'true')
                  OR EXISTS (SELECT FROM pg_policy AS p
                              WHERE p.polrelid = c.oid AND NOT p.polpermissive AND p.polcmd IN ('r', '*')
                                AND (0 = ANY (p.polroles) OR r.oid = ANY (p.polroles))
                                AND pg_get_expr(p.polqual, p.polrelid) <> 'true')),
           c.relrowsecurity, pg_get_partkeydef(c.oid),
           (SELECT count(*)::integer FROM family AS f WHERE f.root = c.oid AND f.oid <> c.oid),
           c.relispartition
      FROM pg_class AS c LEFT JOIN pg_roles AS r ON r.rolname = %(role)s
     WHERE c.oid IN (SELECT root FROM family)
     ORDER BY c.relname DESC
"""


@frozen
class ShopTable:
    """One of a shop's own tables. Names in `closed` and `unhooked` are quoted SQL identifiers."""

    name: str
    kind: str
    """`relkind` of pg_class."""
    owner: str
    is_hooked: bool
    """Whether the table, its partitions and its inheriting tables all have hooks."""
    columns: Mapping[str, str]
    """The types of all columns; for a domain, its base type."""
    foreign: tuple[str, ...]
    """The columns whose type no superuser owns: a cast of such a type may call a function of the shop."""
    unreadable: tuple[str, ...]
    """The columns of `USED_COLUMNS` that the tenant's reader has no right to read."""
    closed: tuple[str, ...]
    """The table, its partitions and inheriting tables, those on which posd_owner may not create triggers."""
    unhooked: tuple[str, ...]
    """The partitions and inheriting tables without enabled hooks."""
    has_unique_id: bool
    has_order_index: bool
    """Whether an index begins with `order_id`, so that the items of an order are found quickly."""
    key: tuple[str, ...]
    """The columns of the primary key."""
    references: tuple[str, ...]
    """The names of the foreign keys to `orders` and `order_items`."""
    hides_rows: bool
    """Whether row security may hide rows from the tenant's reader."""
    has_row_security: bool
    partition_key: str | None
    parts: int
    """The number of partitions and inheriting tables."""
    is_partition: bool

    @property
    def without_zone(self) -> tuple[str, ...]:
        """The columns of `TIMES` with type `timestamp without time zone`."""
        return tuple(
            name for name in TIMES if self.columns.get(name) == "timestamp without time zone"
        )


async def load_tables(executor: Querier, tenant: Tenant, role: str) -> dict[str, ShopTable]:
    """Return the shop's tables by name, as far as they exist. `role` is the tenant's reader."""
    return tables_from_rows(await executor.query(READ, {"schema": tenant.schema, "role": role}))


def tables_from_rows(rows: Iterable[tuple[Any, ...]]) -> dict[str, ShopTable]:
    """Convert the rows of `READ`. Return the tables by name."""
    return {row[0]: _table(*row) for row in rows}


def column_types(tables: Mapping[str, ShopTable]) -> dict[str, dict[str, str]]:
    """Return the types of the columns that posd reads, in the form of `pos_adoptions.tables`."""
    return {
        name: {
            column: kind for column, kind in table.columns.items() if column in USED_COLUMNS[name]
        }
        for name, table in tables.items()
    }


def _table(
    name: str,
    kind: str,
    owner: str,
    is_hooked: bool,
    columns: list[str],
    types: list[str],
    foreign: list[str],
    readable: list[bool],
    closed: list[str],
    unhooked: list[str],
    *rest: Any,
) -> ShopTable:
    unreadable = tuple(
        column
        for column, is_readable in zip(columns, readable, strict=True)
        if column in USED_COLUMNS[name] and not is_readable
    )
    unique, index, key, references, *others = rest
    return ShopTable(
        name,
        kind,
        owner,
        is_hooked,
        dict(zip(columns, types, strict=True)),
        tuple(foreign),
        unreadable,
        tuple(closed),
        tuple(unhooked),
        unique,
        index,
        tuple(key),
        tuple(references),
        *others,
    )
