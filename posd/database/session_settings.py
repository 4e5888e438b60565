"""The settings of posd's database sessions, for the daemon and for `posctl`.

PostgreSQL takes the first value of a setting from its configuration, the database (ALTER DATABASE … SET),
the role (ALTER ROLE … SET) and libpq's environment (PGCLIENTENCODING, PGTZ, PGOPTIONS, …). posd relies on
certain values, so each session sets them. `client_encoding` goes with the connection, because psycopg2 reads
it only there. The rest are statements and not libpq's `options`, which PgBouncer refuses.
"""

from __future__ import annotations

import os
from typing import Final

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import make_dsn, parse_dsn

RELIED_ON: Final = {
    # First, so that names below refer to the system catalog.
    "quote_all_identifiers": "off",
    "search_path": "pg_catalog, pg_temp",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "row_security": "on",
    # How SQL functions and psycopg2 write values as text.
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    # How transactions behave.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    # How statements are planned. Each statement reads a few rows by an index, and recent rows are in memory.
    # With the default of 4, which is meant for disks, PostgreSQL reads all of pos_heads, pos_devices and
    # pos_cursors instead, as long as there are fewer than some thousand tenants.
    "random_page_cost": "1.1",
    # Compiling a plan takes longer than executing it: of a read of an outbox with 500,000 rows 3.0 s of
    # 3.1 s. With enable_seqscan off, as in some of posd's functions, PostgreSQL compiles for a small
    # table, too.
    "jit": "off",
    # posd's functions are written for the default settings of PL/pgSQL.
    "plpgsql.extra_errors": "none",
    "check_function_bodies": "on",
    "client_min_messages": "warning",
    # A connection of posd may be idle without a limit.
    "idle_session_timeout": "0",
}
"""Settings that any role may change, with the value that posd needs."""

_ON_TOP: Final = (
    # With `replica` no trigger runs, the hooks included. Only a superuser may change it, so it is changed
    # only where it is wrong; the connection fails where that is not allowed.
    (
        "SELECT set_config('session_replication_role', 'origin', false)"
        " WHERE current_setting('session_replication_role') <> 'origin'"
    ),
    # PostgreSQL 17 and later.
    (
        "SELECT set_config('transaction_timeout', '0', false)"
        " WHERE current_setting('transaction_timeout', true) IS NOT NULL"
    ),
)


def connection_string(dsn: str) -> str:
    """Return a connection string with the encoding UTF-8, which psycopg2 reads only when it connects."""
    return str(make_dsn(dsn, client_encoding="UTF8"))


def with_standard_strings(dsn: str) -> str:
    """As `connection_string`, for a server whose `standard_conforming_strings` is off.

    psycopg2 chooses its way of quoting when it connects. After a later SET it would not double backslashes
    in an `E''` literal, so that a value could end the literal.
    """
    options = parse_dsn(dsn).get("options", os.environ.get("PGOPTIONS", ""))
    return str(make_dsn(dsn, options=f"{options} -c standard_conforming_strings=on".strip()))


_STRINGS: Final = "standard_conforming_strings"
UNQUOTABLE: Final = (
    "standard_conforming_strings is off and the connection does not pass libpq's options on: run"
    " ALTER ROLE … SET standard_conforming_strings = on for the role that posd connects as"
)
"""The error if `with_standard_strings` has no effect, because a pooler dropped the options."""


def connect(dsn: str, *, lock_timeout: float) -> Connection:
    """Return a blocking connection in autocommit mode for `posctl`, without a statement timeout.

    Raises psycopg2's errors.
    """
    given = str(make_dsn(connection_string(dsn), application_name="posctl"))
    connection = psycopg2.connect(given)
    try:
        if connection.get_parameter_status(_STRINGS) == "off":
            connection.close()
            connection = psycopg2.connect(with_standard_strings(given))
            if connection.get_parameter_status(_STRINGS) == "off":
                raise psycopg2.OperationalError(UNQUOTABLE)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(
                startup_statements(
                    application_name="posctl",
                    statement_timeout=0,
                    lock_timeout=lock_timeout,
                    idle_in_transaction=0,
                )
            )
    except BaseException:
        connection.close()
        raise
    return connection


def startup_statements(
    *,
    application_name: str,
    statement_timeout: float,
    lock_timeout: float,
    idle_in_transaction: float,
    role: str | None = None,
) -> str:
    """Return the SQL that a session begins with. Times are in seconds; 0 is no limit.

    SET ROLE comes last and drops the privileges of a more powerful login. It is a statement, so that a
    refused role has an SQLSTATE.
    """
    own = {
        "application_name": application_name,
        "statement_timeout": f"{int(statement_timeout * 1000)}",
        # statement_timeout does not act during COMMIT, lock_timeout does.
        "lock_timeout": f"{int(lock_timeout * 1000)}",
        "idle_in_transaction_session_timeout": f"{int(idle_in_transaction * 1000)}",
    }
    settings = [
        f"SET {name} = {_quoted(name, value)}" for name, value in {**RELIED_ON, **own}.items()
    ]
    return "; ".join([*settings, *_ON_TOP, *([f"SET ROLE {role}"] if role else [])])


def _quoted(name: str, value: str) -> str:
    # A quoted list would be a single name.
    return value if name == "search_path" else f"'{value}'"
