"""`posctl adopt`: look at a shop's existing tables, and put the hooks on them.

Plain blocking code, like `provisioning`. The system catalog is read by posd_owner. The orders are read in a
session apart, since the shop's code may run there. It is the session of the tenant's reader: what the shop's
code can become there has no more rights. It is read-only, and is terminated if the code does not end.
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

from posd.database import adoption, shop_tables
from posd.database import provisioning as provision
from posd.database.adoption import NOTHING_CHOSEN, Choices, Finding, Looked, Refused
from posd.database.migrations import administration, another, check_main, line, transaction
from posd.database.shop_tables import ShopTable
from posd.errors import SchemaError
from posd.values import Tenant

_LOOK: Final = "BEGIN READ ONLY; SET LOCAL statement_timeout = '5s'"
_OVERTIME_SECONDS: Final = 7.0
"""After which a session is terminated whose code goes on after its cancellation."""
_KEEP: Final = """
    INSERT INTO dinedesk_main.pos_adoptions (tenant_id, condition, timestamps, unique_ids, tables)
    VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (tenant_id) DO UPDATE
       SET adopted_at = clock_timestamp(), condition = excluded.condition, timestamps = excluded.timestamps,
           unique_ids = excluded.unique_ids, tables = excluded.tables
"""
_LONGEST: Final = 200
"""Characters of a message about a condition, which may quote all of it."""
_NEWEST: Final = 10_000
"""How many orders are looked at for their statuses."""


class _Endless(Exception):
    """The shop's code went on after its cancellation, and its session was terminated."""


@frozen
class Survey:
    """A shop's tables as they were found, before they are hooked.

    `looked` is None if the orders cannot be read yet. `refusals` have to be settled first.
    """

    tenant: Tenant
    tables: Mapping[str, ShopTable]
    choices: Choices
    looked: Looked | None
    refusals: tuple[Finding, ...]
    doubts: tuple[Finding, ...]


def adopt(connection: Connection, slug: str, choices: Choices = NOTHING_CHOSEN) -> None:
    """Look at the shop's tables, and put the hooks on them. Raises as `survey` and `put_hooks_on`."""
    put_hooks_on(connection, survey(connection, slug, choices))


def survey(connection: Connection, slug: str, choices: Choices) -> Survey:
    """Look at a shop's `orders` and `order_items`; nothing is changed.

    Raises `SchemaError` if there is no such tenant, and `Refused` if there are no such tables or
    columns.
    """
    with administration(connection):
        check_main(connection)
        with transaction(connection) as cursor:
            tenant = provision.tenant_of(connection, slug)
            tables = provision.tables_of(cursor, tenant)
            adoption.check_shape(tenant, tables)
            chosen = choices.over(provision.kept_choices(cursor, tenant))
    role = provision.hook_role(tenant)
    looked, unread = _look(connection, tenant, tables, chosen.condition)
    refusals = adoption.refusals(tenant, tables, chosen, role)
    return Survey(
        tenant,
        tables,
        chosen,
        looked,
        (*refusals, *unread),
        tuple(adoption.doubts(tenant, tables, chosen, looked)),
    )


def put_hooks_on(connection: Connection, found: Survey) -> None:
    """Put the hooks on the tables, and keep what was chosen.

    Raises `Refused` with what is in the way and the statements that help, and `SchemaError`.
    """
    tenant, choices = found.tenant, found.choices
    if found.refusals:
        raise Refused(tenant, found.refusals)
    with administration(connection), transaction(connection) as cursor:
        try:
            provision.hook(cursor, tenant, choices)
            cursor.execute(
                _KEEP,
                (
                    tenant.id,
                    choices.condition,
                    choices.timestamps,
                    bool(choices.unique_ids),
                    Json(shop_tables.described(found.tables)),
                ),
            )
        except psycopg2.errors.LockNotAvailable as error:
            raise SchemaError(
                f"the tables of {tenant.schema} are in use ({line(error)}); try again"
            ) from error
        except psycopg2.Error as error:
            raise SchemaError(f"{tenant.schema}: {line(error)}") from error


def _look(
    connection: Connection,
    tenant: Tenant,
    tables: Mapping[str, ShopTable],
    condition: str | None,
    most: int = _NEWEST,
) -> tuple[Looked | None, tuple[Finding, ...]]:
    """What the newest orders are like, and why they cannot be read, if it is not for want of a right.

    If they cannot be counted in time, it is still found out whether they can be read.
    """
    try:
        return _read(connection, tenant, condition, most), ()
    except _Endless:
        what = f"the orders cannot be read: code in the tables does not end in {_OVERTIME_SECONDS:.0f} s"
        return None, (Finding(what),)
    except psycopg2.errors.QueryCanceled:
        return None, _look(connection, tenant, tables, condition, 0)[1] if most else ()
    except psycopg2.errors.LockNotAvailable as error:
        what = f"the tables of {tenant.schema} are in use ({line(error)}); try again"
        raise SchemaError(what) from error
    except psycopg2.Error as error:
        if connection.closed:
            raise
        if condition is None:
            if isinstance(error, psycopg2.errors.InsufficientPrivilege):
                return None, ()
            if isinstance(error, psycopg2.errors.UndefinedFunction):
                unlike = adoption.unlike_keys(tenant, tables)
                if unlike is not None:
                    return None, (unlike,)
            return None, (Finding(f"the orders cannot be read: {line(error)}"),)
        looked, unread = _look(connection, tenant, tables, None, most)
        if unread or looked is None:
            return looked, unread
        what = f"the condition of --where cannot be evaluated: {line(error)[:_LONGEST]}"
        return evolve(looked, met=None), (Finding(what),)


def _read(connection: Connection, tenant: Tenant, condition: str | None, most: int) -> Looked:
    """Call the function that reads the newest orders, in a session apart."""
    name = _quoted(f"look_at_orders${provision.shop_of(tenant)}")
    look = f"SELECT * FROM posd_hooks.{name}(%s, %s)"
    with closing(another(connection)) as apart, apart.cursor() as cursor:
        overdue = Event()

        def give_up() -> None:
            # Before the session ends, since that is what the other thread looks at then.
            overdue.set()
            _terminate(connection, apart.info.backend_pid)

        end = Timer(_OVERTIME_SECONDS, give_up)
        end.start()
        try:
            _become_reader(cursor, tenant)
            cursor.execute(_LOOK)
            cursor.execute(look, (most, condition))
            rows = cursor.fetchall()
        except psycopg2.OperationalError as error:
            if apart.closed and overdue.is_set():
                raise _Endless from error
            raise
        finally:
            end.cancel()
            end.join()
    return Looked(
        {status: orders for status, orders, _, _ in rows},
        sum(row[2] for row in rows),
        max((row[3] for row in rows if row[3] is not None), default=None),
    )


def _become_reader(cursor: Any, tenant: Tenant) -> None:
    """Have the rights of the tenant's reader for the rest of the session.

    Only a superuser can become another user. An owner of posd's tables that is none keeps its login; the
    function that reads has the reader's rights all the same, and no code in it can set the role.
    """
    cursor.execute("SHOW is_superuser")
    if cursor.fetchone() == ("on",):
        cursor.execute(f"SET SESSION AUTHORIZATION {_quoted(provision.hook_role(tenant))}")
    else:
        cursor.execute("SET ROLE posd_owner")


def _terminate(connection: Connection, pid: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
