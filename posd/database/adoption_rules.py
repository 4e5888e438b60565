"""The rules of `posctl adopt`: whether a shop's tables can be hooked, and what has changed since.

Pure functions of `shop_tables.ShopTable`. A `TableFinding` has a description and the statements that help.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from attrs import frozen

from posd.database.shop_tables import REQUIRED_COLUMNS, TIMES, ShopTable
from posd.errors import SchemaError
from posd.values import Tenant

_NUMBERS: Final = frozenset(
    ("smallint", "integer", "bigint", "numeric", "real", "double precision", "money")
)
_TEXTS: Final = frozenset(("text", "character varying", "character"))
_MOMENTS: Final = frozenset(
    ("timestamp with time zone", "timestamp without time zone", "date", "bigint", *_TEXTS)
)
_AMOUNTS: Final = (
    "total_amount",
    "subtotal",
    "delivery_fee",
    "discount_amount",
    "tax",
    "amount_paid",
)


_KEYS: Final = (("orders", "id"), ("order_items", "order_id"))
"""The columns by which posd finds orders and their items."""

_UNPLACED_STATUSES: Final = frozenset(
    (
        *("cart", "basket", "draft", "quote", "incomplete", "new_cart", "checkout"),
        *("awaiting_payment", "pending_payment", "payment_pending", "unpaid", "initiated"),
    )
)
"""Statuses of other ordering software that mean that the customer has not placed the order yet."""


class FindingSubject(enum.Enum):
    """The subject of a finding."""

    RIGHTS = "rights"
    TABLES = "tables"


@frozen
class TableFinding:
    """A problem of a shop's tables, and the statements that help. The tables' owner runs them."""

    what: str
    statements: tuple[str, ...] = ()
    about: FindingSubject = FindingSubject.TABLES

    def __str__(self) -> str:
        return "\n".join((self.what, *self.statements))


class AdoptionRefused(SchemaError):
    """The tables cannot be hooked. The text contains all findings with their statements."""

    def __init__(self, tenant: Tenant, findings: Sequence[TableFinding]) -> None:
        lines = "\n".join(map(str, findings))
        space = "\n" if "\n" in lines else " "
        super().__init__(f"the tables of {tenant.slug} are not hooked:{space}{lines}")
        self.findings = tuple(findings)

    @property
    def only_lacks_rights(self) -> bool:
        return all(each.about is FindingSubject.RIGHTS for each in self.findings)


@frozen
class AdoptionOptions:
    """The options of `posctl adopt`. None keeps the value of the previous adoption.

    `condition` is an SQL expression that is true for placed orders. `timestamps` is `local` or `utc`.
    `unique_ids`: the operator guarantees that `orders.id` is unique.
    """

    condition: str | None = None
    timestamps: str | None = None
    unique_ids: bool | None = None

    def over(self, earlier: AdoptionOptions) -> AdoptionOptions:
        """Return these options, with missing values from `earlier`. A blank condition becomes None."""
        condition = earlier.condition if self.condition is None else self.condition
        return AdoptionOptions(
            (condition or "").strip() or None,
            earlier.timestamps if self.timestamps is None else self.timestamps,
            earlier.unique_ids if self.unique_ids is None else self.unique_ids,
        )


NOTHING_CHOSEN: Final = AdoptionOptions()

_ALTERNATIVE: Final = "the shop may publish by pos_publish() or REST instead"


@frozen
class StatusSample:
    """A summary of the newest orders of a shop.

    `statuses` is the number of orders by status, `met` the number of orders for which the condition is true
    (None if it cannot be evaluated), and `newest` the newest `created_at` as text.
    """

    statuses: Mapping[str | None, int]
    met: int | None
    newest: str | None

    @property
    def orders(self) -> int:
        return sum(self.statuses.values())


def check_columns(tenant: Tenant, tables: Mapping[str, ShopTable]) -> None:
    """Raise `AdoptionRefused` unless both tables exist, are tables, and have the required columns."""
    findings = [
        TableFinding(f"{tenant.schema} has no table {name}: {_ALTERNATIVE}")
        for name in REQUIRED_COLUMNS
        if name not in tables
    ]
    findings += [
        TableFinding(
            f"{tenant.schema}.{table.name} is not a table, so it cannot be hooked: {_ALTERNATIVE}"
        )
        for table in tables.values()
        if table.kind not in ("r", "p")
    ]
    missing = [
        f"{name}.{column}"
        for name, columns in REQUIRED_COLUMNS.items()
        if name in tables
        for column in columns
        if column not in tables[name].columns
    ]
    if missing:
        findings.append(
            TableFinding(
                f"{tenant.schema} lacks the columns {', '.join(missing)}. If another column has the values,"
                f" rename it as the owner of the tables; or {_ALTERNATIVE}:",
                tuple(_rename_statement(tenant, each) for each in missing),
            )
        )
    if findings:
        raise AdoptionRefused(tenant, findings)


def refusals(
    tenant: Tenant, tables: Mapping[str, ShopTable], choices: AdoptionOptions, role: str
) -> list[TableFinding]:
    """Return the reasons why tables with the required columns cannot be hooked.

    `role` is the tenant's reader.
    """
    return [
        *_missing_rights(tenant, tables, role),
        *_hidden_rows(tenant, tables, role),
        *_key_types(tenant, tables),
        *_non_unique_ids(tenant, tables["orders"], choices),
        *_missing_time_zones(tenant, tables["orders"], choices),
    ]


def warnings(
    tenant: Tenant,
    tables: Mapping[str, ShopTable],
    choices: AdoptionOptions,
    sample: StatusSample | None,
) -> list[TableFinding]:
    """Return warnings: posd can read the tables, but perhaps with another meaning or slowly."""
    return [
        *_unsuitable_types(tables),
        *_missing_index(tenant, tables["order_items"]),
        *_unplaced_orders(tenant, choices, sample),
    ]


def changes_since_adoption(
    tenant: Tenant,
    kept: Mapping[str, Mapping[str, str]],
    tables: Mapping[str, ShopTable],
    role: str,
) -> list[TableFinding]:
    """Return the changes since the tables were adopted. `kept` are the types of the columns at that time."""
    findings = []
    for name, columns in kept.items():
        if name not in tables:
            findings.append(TableFinding(f"{tenant.schema} has no table {name} any more"))
            continue
        now = tables[name].columns
        gone = [f"{name}.{column}" for column in columns if column not in now]
        needed = [each for each in gone if each.partition(".")[2] in REQUIRED_COLUMNS[name]]
        if needed:
            was = "were" if len(needed) > 1 else "was"
            what = f"{', '.join(needed)} {was} dropped or renamed, so no order is read. As the table's owner:"
            findings.append(
                TableFinding(what, tuple(_rename_statement(tenant, each) for each in needed))
            )
        if others := [each for each in gone if each not in needed]:
            was = "were" if len(others) > 1 else "was"
            findings.append(TableFinding(f"{', '.join(others)} {was} dropped or renamed"))
        findings += [
            TableFinding(
                f"{part} has no hooks, or they are disabled, so posd does not see its changes:"
                f" posctl adopt {tenant.slug}, or ALTER TABLE … ENABLE TRIGGER"
            )
            for part in tables[name].unhooked
        ]
        findings += [
            TableFinding(f"{name}.{column} was {kind} and is {now[column]}")
            for column, kind in columns.items()
            if now.get(column, kind) != kind
        ]
    return [
        *findings,
        *_unreadable_tables(tenant, tables, role),
        *_hidden_rows(tenant, tables, role),
    ]


def _missing_rights(
    tenant: Tenant, tables: Mapping[str, ShopTable], role: str
) -> Iterator[TableFinding]:
    grants: list[str] = []
    for table in tables.values():
        grants += [f"GRANT TRIGGER ON {closed} TO posd_owner;" for closed in table.closed]
        if table.unreadable:
            grants.append(_grant(tenant, table, role))
    if grants:
        what = "posd lacks rights on the tables. As their owner:"
        yield TableFinding(what, tuple(grants), FindingSubject.RIGHTS)


def _unreadable_tables(
    tenant: Tenant, tables: Mapping[str, ShopTable], role: str
) -> Iterator[TableFinding]:
    for table in tables.values():
        if table.unreadable:
            what = f"posd may not read {table.name}. As the owner of the table:"
            yield TableFinding(what, (_grant(tenant, table, role),), FindingSubject.RIGHTS)


def _grant(tenant: Tenant, table: ShopTable, role: str) -> str:
    return f"GRANT SELECT ON {_named(tenant, table.name)} TO {_quoted(role)};"


def _hidden_rows(
    tenant: Tenant, tables: Mapping[str, ShopTable], role: str
) -> Iterator[TableFinding]:
    for table in tables.values():
        if table.hides_rows:
            name = _named(tenant, table.name)
            yield TableFinding(
                f"row security on {table.name} can hide rows from posd, which reads as {role}. As the owner"
                " of the table; a restrictive policy must let the role pass too:",
                (
                    f"CREATE POLICY posd_reads ON {name} FOR SELECT TO {_quoted(role)} USING (true);",
                ),
            )


def _key_types(tenant: Tenant, tables: Mapping[str, ShopTable]) -> Iterator[TableFinding]:
    """Refuse keys of the shop's own types: a hook casts a key to text, which could run the shop's code."""
    keys = [each for each in _KEYS if each[1] in tables[each[0]].foreign]
    if keys:
        words = " and ".join(f"{name}.{column}" for name, column in keys)
        yield TableFinding(
            f"{words} {'have' if len(keys) > 1 else 'has'} a type that the shop has created. As the"
            " owner of the tables:",
            _retype_statements(tenant, tables, dict.fromkeys(_KEYS, "text")),
        )


def key_type_mismatch(tenant: Tenant, tables: Mapping[str, ShopTable]) -> TableFinding | None:
    """Return a finding if `orders.id` and `order_items.order_id` have different types, else None."""
    kinds = {each: tables[each[0]].columns[each[1]] for each in _KEYS}
    wanted, found = kinds.values()
    if wanted == found or any(column in tables[name].foreign for name, column in _KEYS):
        return None
    return TableFinding(
        f"orders.id is {wanted} and order_items.order_id is {found}, and PostgreSQL cannot compare them. As"
        " the owner of the tables:",
        _retype_statements(tenant, tables, {_KEYS[1]: wanted}),
    )


def _retype_statements(
    tenant: Tenant, tables: Mapping[str, ShopTable], kinds: Mapping[tuple[str, str], str]
) -> tuple[str, ...]:
    """Return the statements that change the types of columns. `kinds` is the new type by column.

    A foreign key between the columns is dropped and created again, because their types must match.
    """
    items = _named(tenant, "order_items")
    references = tables["order_items"].references
    drops = [f"ALTER TABLE {items} DROP CONSTRAINT {_quoted(each)};" for each in references]
    alters = [
        f"ALTER TABLE {_named(tenant, name)} ALTER COLUMN {column} TYPE {kind} USING {column}::{kind};"
        for (name, column), kind in kinds.items()
    ]
    adds = [
        f"ALTER TABLE {items} ADD FOREIGN KEY (order_id) REFERENCES {_named(tenant, 'orders')} (id);"
    ]
    return *drops, *alters, *(adds if references else ())


def _non_unique_ids(
    tenant: Tenant, orders: ShopTable, choices: AdoptionOptions
) -> Iterator[TableFinding]:
    if orders.has_unique_id or choices.unique_ids:
        return
    key = f"its primary key is ({', '.join(orders.key)})" if orders.key else "it has no primary key"
    vouch = f"confirm that no two orders have the same id: posctl adopt {tenant.slug} --unique-ids"
    if orders.partition_key is not None and orders.partition_key.partition("(")[2] != "id)":
        yield TableFinding(
            f"no constraint makes orders.id unique ({key}), and a table that is partitioned by"
            f" {orders.partition_key} can have none. posd treats two orders with one id as one order. If ids"
            f" are unique, {vouch}"
        )
        return
    yield TableFinding(
        f"no constraint makes orders.id unique ({key}). posd treats two orders with one id as one order. Add"
        f" a constraint as the owner of the table, or {vouch}",
        (f"ALTER TABLE {_named(tenant, 'orders')} ADD UNIQUE (id);",),
    )


def _missing_time_zones(
    tenant: Tenant, orders: ShopTable, choices: AdoptionOptions
) -> Iterator[TableFinding]:
    if orders.without_zone and choices.timestamps is None:
        names = " and ".join(f"orders.{name}" for name in orders.without_zone)
        have = "have" if len(orders.without_zone) > 1 else "has"
        yield TableFinding(
            f"{names} {have} no time zone. Say whether the values are in the shop's time zone"
            f" ({tenant.timezone}) or in UTC:",
            (
                f"posctl adopt {tenant.slug} --timestamps local",
                f"posctl adopt {tenant.slug} --timestamps utc",
            ),
        )


def _unsuitable_types(tables: Mapping[str, ShopTable]) -> Iterator[TableFinding]:
    """Warn of columns whose type does not suit their values."""
    wanted: list[tuple[str, str, frozenset[str]]] = [
        *(("orders", name, _NUMBERS | _TEXTS) for name in _AMOUNTS),
        *(("orders", name, _MOMENTS) for name in TIMES if name != "scheduled_time"),
        ("order_items", "price", _NUMBERS | _TEXTS),
        ("order_items", "quantity", _NUMBERS | _TEXTS),
    ]
    for table, column, kinds in wanted:
        kind = tables[table].columns.get(column)
        if kind is not None and kind not in kinds:
            yield TableFinding(
                f"{table}.{column} has the type {kind}: posd omits values that it cannot read"
            )
    kind = tables["orders"].columns["status"]
    if kind in _NUMBERS or kind in ("boolean", "bytea", "json", "jsonb"):
        yield TableFinding(
            f"orders.status has the type {kind}, but a status is a word: posd treats every order as confirmed"
        )


def _unplaced_orders(
    tenant: Tenant, choices: AdoptionOptions, sample: StatusSample | None
) -> Iterator[TableFinding]:
    """Warn of statuses of orders that are not placed yet."""
    if choices.condition is not None or sample is None:
        return
    found = [
        each for each in sample.statuses if each is not None and each.lower() in _UNPLACED_STATUSES
    ]
    if found:
        words = ", ".join(f"'{each}'" for each in sorted(found))
        yield TableFinding(
            f"posd publishes orders of the status {words} as soon as they are written. To publish only"
            " placed orders:",
            (f'posctl adopt {tenant.slug} --where "status NOT IN ({words})"',),
        )


def _missing_index(tenant: Tenant, items: ShopTable) -> Iterator[TableFinding]:
    if not items.has_order_index:
        yield TableFinding(
            "no index finds the items of an order, so posd reads all of order_items for each order. As the"
            " owner of the table:",
            (f"CREATE INDEX CONCURRENTLY ON {_named(tenant, 'order_items')} (order_id);",),
        )


def _rename_statement(tenant: Tenant, column: str) -> str:
    """Return the statement that renames another column to `column`, which has the form `table.column`."""
    table, _, name = column.partition(".")
    return f"ALTER TABLE {_named(tenant, table)} RENAME COLUMN … TO {name};"


def _named(tenant: Tenant, table: str) -> str:
    return f"{_quoted(tenant.schema)}.{table}"


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
