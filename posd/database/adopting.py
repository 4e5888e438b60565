"""`posctl adopt`: examine a shop's existing tables, and install the hooks on them.

Blocking code. posd_owner reads the system catalog. A separate session reads the orders, because the shop's
code may run there. That session has the rights of the tenant's reader, so the shop's code gains no rights.
The session is read-only, and it is terminated if the code does not end.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from threading import Event, Timer
from typing import Any, Final

import psycopg2
from attrs import evolve, frozen
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extras import Json

from posd.database import adoption_rules as adoption
from posd.database import provisioning as provision
from posd.database import shop_tables
from posd.database.adoption_rules import (
    NOTHING_CHOSEN,
    AdoptionOptions,
    AdoptionRefused,
    StatusSample,
    TableFinding,
)
from posd.database.migrations import administer, check_main, connect_like, first_line, transaction
from posd.database.shop_tables import ShopTable
from posd.errors import SchemaError
from posd.values import Tenant

_LOOK: Final = "BEGIN READ ONLY; SET LOCAL statement_timeout = '5s'"
_OVERTIME_SECONDS: Final = 7.0
"""The time after which a session is terminated, if the shop's code ignores the statement timeout."""
_KEEP: Final = """
    INSERT INTO dinedesk_main.pos_adoptions (tenant_id, condition, timestamps, unique_ids, tables)
    VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (tenant_id) DO UPDATE
       SET adopted_at = clock_timestamp(), condition = excluded.condition, timestamps = excluded.timestamps,
           unique_ids = excluded.unique_ids, tables = excluded.tables
"""
_MAX_MESSAGE_LENGTH: Final = 200
"""Characters of PostgreSQL's message about a condition. The message may quote the whole condition."""
_NEWEST: Final = 10_000
"""The number of newest orders whose statuses are read."""


class _SessionTerminated(Exception):
    """The shop's code ignored the statement timeout, and its session was terminated."""


@frozen
class ShopTablesSurvey:
    """The result of an examination of a shop's tables, before the hooks are installed.

    `sample` is None if the orders cannot be read yet. While there are `refusals`, the tables cannot be
    hooked. `doubts` are warnings.
    """

    tenant: Tenant
    tables: Mapping[str, ShopTable]
    choices: AdoptionOptions
    sample: StatusSample | None
    refusals: tuple[TableFinding, ...]
    doubts: tuple[TableFinding, ...]


def adopt(connection: Connection, slug: str, choices: AdoptionOptions = NOTHING_CHOSEN) -> None:
    """Examine the shop's tables and install the hooks. Raises the errors of `survey` and `install_hooks`."""
    install_hooks(connection, survey(connection, slug, choices))


def survey(connection: Connection, slug: str, choices: AdoptionOptions) -> ShopTablesSurvey:
    """Examine a shop's `orders` and `order_items`. Changes nothing.

    Raises `SchemaError` if there is no such tenant, and `AdoptionRefused` if a table or a required column
    is missing.
    """
    with administer(connection):
        check_main(connection)
        with transaction(connection) as cursor:
            tenant = provision.find_tenant(connection, slug)
            tables = provision.shop_tables_of(cursor, tenant)
            adoption.check_columns(tenant, tables)
            chosen = choices.over(provision.stored_options(cursor, tenant))
    role = provision.reader_role(tenant)
    sample, unread = _sample_orders(connection, tenant, tables, chosen.condition)
    refusals = adoption.refusals(tenant, tables, chosen, role)
    return ShopTablesSurvey(
        tenant,
        tables,
        chosen,
        sample,
        (*refusals, *unread),
        tuple(adoption.warnings(tenant, tables, chosen, sample)),
    )


def install_hooks(connection: Connection, found: ShopTablesSurvey) -> None:
    """Install the hooks on the tables, and store the options.

    Raises `AdoptionRefused` with the refusals and the statements that help. Raises `SchemaError` if the
    tables are in use, or if a statement fails.
    """
    tenant, choices = found.tenant, found.choices
    if found.refusals:
        raise AdoptionRefused(tenant, found.refusals)
    with administer(connection), transaction(connection) as cursor:
        try:
            provision.install_hooks(cursor, tenant, choices)
            cursor.execute(
                _KEEP,
                (
                    tenant.id,
                    choices.condition,
                    choices.timestamps,
                    bool(choices.unique_ids),
                    Json(shop_tables.column_types(found.tables)),
                ),
            )
        except psycopg2.errors.LockNotAvailable as error:
            raise SchemaError(
                f"the tables of {tenant.schema} are in use ({first_line(error)}); try again"
            ) from error
        except psycopg2.Error as error:
            raise SchemaError(f"{tenant.schema}: {first_line(error)}") from error


def _sample_orders(
    connection: Connection,
    tenant: Tenant,
    tables: Mapping[str, ShopTable],
    condition: str | None,
    most: int = _NEWEST,
) -> tuple[StatusSample | None, tuple[TableFinding, ...]]:
    """Summarise the newest orders. Return the summary, or None and the reasons why they cannot be read.

    A missing right is not among the reasons, because `adoption_rules.refusals` reports it. If the orders
    cannot be counted in time, a second attempt with no orders checks only that they can be read.
    """
    try:
        return _read_sample(connection, tenant, condition, most), ()
    except _SessionTerminated:
        what = f"the orders cannot be read: code in the tables does not end in {_OVERTIME_SECONDS:.0f} s"
        return None, (TableFinding(what),)
    except psycopg2.errors.QueryCanceled:
        return None, _sample_orders(connection, tenant, tables, condition, 0)[1] if most else ()
    except psycopg2.errors.LockNotAvailable as error:
        what = f"the tables of {tenant.schema} are in use ({first_line(error)}); try again"
        raise SchemaError(what) from error
    except psycopg2.Error as error:
        if connection.closed:
            raise
        if condition is None:
            if isinstance(error, psycopg2.errors.InsufficientPrivilege):
                return None, ()
            if isinstance(error, psycopg2.errors.UndefinedFunction):
                unlike = adoption.key_type_mismatch(tenant, tables)
                if unlike is not None:
                    return None, (unlike,)
            return None, (TableFinding(f"the orders cannot be read: {first_line(error)}"),)
        sample, unread = _sample_orders(connection, tenant, tables, None, most)
        if unread or sample is None:
            return sample, unread
        what = f"the condition of --where cannot be evaluated: {first_line(error)[:_MAX_MESSAGE_LENGTH]}"
        return evolve(sample, met=None), (TableFinding(what),)


def _read_sample(
    connection: Connection, tenant: Tenant, condition: str | None, most: int
) -> StatusSample:
    """Call the function that reads the newest orders, in a separate session.

    Raises `_SessionTerminated` and psycopg2's errors.
    """
    name = _quoted(f"look_at_orders${provision.name_suffix(tenant)}")
    look = f"SELECT * FROM posd_hooks.{name}(%s, %s)"
    with closing(connect_like(connection)) as reader, reader.cursor() as cursor:
        overdue = Event()

        def give_up() -> None:
            # Set the event before the session ends: the main thread reads it when the session ends.
            overdue.set()
            _terminate(connection, reader.info.backend_pid)

        end = Timer(_OVERTIME_SECONDS, give_up)
        end.start()
        try:
            _become_reader(cursor, tenant)
            cursor.execute(_LOOK)
            cursor.execute(look, (most, condition))
            rows = cursor.fetchall()
        except psycopg2.OperationalError as error:
            if reader.closed and overdue.is_set():
                raise _SessionTerminated from error
            raise
        finally:
            end.cancel()
            end.join()
    return StatusSample(
        {status: orders for status, orders, _, _ in rows},
        sum(row[2] for row in rows),
        max((row[3] for row in rows if row[3] is not None), default=None),
    )


def _become_reader(cursor: Any, tenant: Tenant) -> None:
    """Take the rights of the tenant's reader for the rest of the session.

    Only a superuser can use SET SESSION AUTHORIZATION. Another user becomes posd_owner. The function that
    reads the orders has the reader's rights in both cases, and no code in it can use SET ROLE.
    """
    cursor.execute("SHOW is_superuser")
    if cursor.fetchone() == ("on",):
        cursor.execute(f"SET SESSION AUTHORIZATION {_quoted(provision.reader_role(tenant))}")
    else:
        cursor.execute("SET ROLE posd_owner")


def _terminate(connection: Connection, pid: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
