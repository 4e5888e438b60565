"""What an audit asks of the database: a statement for each rule, which finds the rows that break it.

A `AuditCheck` believes no constraint, index or trigger of posd's own, since somebody may have taken it
off: it
recomputes the rule from the rows. Its statement has a row for each row that may be at fault, with the words
that name it and what is wrong with it, NULL where nothing is. The checks themselves are in the modules
`audit_…`, each about one part of the data model.

Nobody's secrets are in those words: rows are named by numbers, positions and the ids of orders and devices,
never by a card, a telephone number or a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from posd.database.reconnecting import Querier
from posd.store import schema
from posd.values import Tenant

# The rows come in the order of the check, which a window over all of them leaves as it is.
_LOOK: Final = """
    SELECT f.thing, f.wrong, count(*) OVER () FROM ({sql}) AS f (thing, wrong)
     WHERE f.wrong IS NOT NULL LIMIT %(most)s
"""
_OF_ALL_TENANTS: Final = (
    *("pos_events", "pos_unsequenced", "pos_nacks", "pos_orders", "pos_order_terminals"),
)


@frozen
class AuditCheck:
    """A rule by its name, and the statement that finds what breaks it.

    The statement is given `%(tenant)s`, the tenant's number, `{schema}`, and the tenant's rows of the
    tables of all tenants: `{pos_events}`, `{pos_unsequenced}`, `{pos_nacks}`, `{pos_orders}` and
    `{pos_order_terminals}`. Where `warns` is true, what it finds is worth looking at and breaks no rule.
    """

    name: str
    sql: str
    warns: bool = False


@frozen
class BrokenRow:
    """A row that is at fault, and why."""

    row: str
    what: str


@frozen
class CheckOutcome:
    """What breaks a rule: how many rows, and the first of them."""

    total: int = 0
    rows: Sequence[BrokenRow] = ()


async def run_check(
    executor: Querier, check: AuditCheck, tenant: Tenant | None, most: int
) -> CheckOutcome:
    """Find what breaks a rule, `most` rows of it; `tenant` is None for what concerns them all."""
    sql, values = _LOOK.replace("{sql}", check.sql), {"most": most, "tenant": None}
    if tenant is not None:
        sql, values["tenant"] = sql.replace("{schema}", schema(tenant)), tenant.id
        for table in _OF_ALL_TENANTS:
            rows_of = f"(SELECT * FROM dinedesk_main.{table} WHERE tenant_id = %(tenant)s)"
            sql = sql.replace(f"{{{table}}}", rows_of)
    rows = await executor.query(sql, values)
    return CheckOutcome(rows[0][2] if rows else 0, [BrokenRow(row, what) for row, what, _ in rows])
