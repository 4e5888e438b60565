"""The checks of an audit: one statement per rule, which finds the rows that violate the rule.

An `AuditCheck` does not rely on posd's own constraints, indexes or triggers, because an administrator may
have dropped them: it recomputes the rule from the rows. Its statement returns one row per examined row:
a text that identifies the row, and a description of the violation, or NULL if there is none. The checks are
in the modules `audit_…`, one module per part of the data model.

These texts contain no secrets. They identify rows by ids, positions, order ids and device ids, never by a
card number, a telephone number or a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from posd.database.reconnecting import Querier
from posd.store import schema
from posd.values import Tenant

# The subquery determines the order of the rows. A window over all rows does not change it.
_LOOK: Final = """
    SELECT f.thing, f.wrong, count(*) OVER () FROM ({sql}) AS f (thing, wrong)
     WHERE f.wrong IS NOT NULL LIMIT %(most)s
"""
_OF_ALL_TENANTS: Final = (
    *("pos_events", "pos_unsequenced", "pos_nacks", "pos_orders", "pos_order_terminals"),
)


@frozen
class AuditCheck:
    """The name of a rule, and the statement that finds violations of it.

    The statement may use the parameter `%(tenant)s` (the tenant's id) and the placeholders `{schema}`,
    `{pos_events}`, `{pos_unsequenced}`, `{pos_nacks}`, `{pos_orders}` and `{pos_order_terminals}`. The
    last five stand for the tenant's rows of these shared tables. If `warns` is true, findings are
    warnings and not errors.
    """

    name: str
    sql: str
    warns: bool = False


@frozen
class BrokenRow:
    """A text that identifies a row, and a description of the violation."""

    row: str
    what: str


@frozen
class CheckOutcome:
    """The number of rows that violate a rule, and the first of these rows."""

    total: int = 0
    rows: Sequence[BrokenRow] = ()


async def run_check(
    executor: Querier, check: AuditCheck, tenant: Tenant | None, most: int
) -> CheckOutcome:
    """Run a check and return at most `most` violating rows.

    `tenant` is None for a check of the tables in `dinedesk_main` as a whole.
    """
    sql, values = _LOOK.replace("{sql}", check.sql), {"most": most, "tenant": None}
    if tenant is not None:
        sql, values["tenant"] = sql.replace("{schema}", schema(tenant)), tenant.id
        for table in _OF_ALL_TENANTS:
            rows_of = f"(SELECT * FROM dinedesk_main.{table} WHERE tenant_id = %(tenant)s)"
            sql = sql.replace(f"{{{table}}}", rows_of)
    rows = await executor.query(sql, values)
    return CheckOutcome(rows[0][2] if rows else 0, [BrokenRow(row, what) for row, what, _ in rows])
