"""Settings of a database, a role and an environment that posd must override."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

ODD: Final = {
    "search_path": "public",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "row_security": "off",
    "timezone": "Asia/Tokyo",
    "datestyle": "German, DMY",
    "intervalstyle": "iso_8601",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "random_page_cost": "100",
    "plpgsql.extra_errors": "all",
    "check_function_bodies": "off",
    "client_min_messages": "debug1",
    "jit": "on",
    "idle_session_timeout": "1500ms",
    "client_encoding": "LATIN1",
    "session_replication_role": "replica",
    "statement_timeout": "400ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "400ms",
}
ENVIRONMENT: Final = {
    "PGCLIENTENCODING": "LATIN1",
    "PGTZ": "Asia/Tokyo",
    "PGDATESTYLE": "German, DMY",
    "PGOPTIONS": "-c standard_conforming_strings=off -c array_nulls=off",
}


def set_all(run: Callable[[str], object], whose: str) -> None:
    """Set every setting to its odd value for new sessions of `whose`: `ROLE postgres`, `DATABASE posd`."""
    for name, value in ODD.items():
        run(f"ALTER {whose} SET {name} = {value if name == 'search_path' else repr(value)}")
