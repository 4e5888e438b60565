"""Facts about the database server and the login role, for `posctl doctor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from attrs import frozen

from posd.database.reconnecting import Querier

_SERVER: Final = """
    SELECT current_setting('server_version_num')::integer, current_setting('server_version'),
           current_setting('server_encoding'), pg_is_in_recovery(), session_user::text,
           (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = session_user),
           (SELECT pg_has_role(session_user, p.oid, 'MEMBER') FROM pg_roles AS p WHERE p.rolname = 'posd'),
           (SELECT pg_has_role(session_user, o.oid, 'MEMBER')
              FROM pg_roles AS o WHERE o.rolname = 'posd_owner'),
           clock_timestamp(), inet_server_addr() IS NULL
"""
# Settings of the role and of the database apply to this session as to the daemon's sessions.
_SETTINGS: Final = """
    SELECT s.name, s.setting FROM pg_settings AS s WHERE s.name = ANY (%s)
"""
# pg_stat_activity hides the queries of other roles from posd, but not their rows.
_ROOM: Final = """
    SELECT current_setting('max_connections')::integer
               - current_setting('superuser_reserved_connections')::integer,
           (SELECT count(*)::integer FROM pg_stat_activity AS a
             WHERE a.datid IS NOT NULL AND NOT starts_with(coalesce(a.application_name, ''), 'posd ')
               AND a.pid <> pg_backend_pid()),
           (SELECT nullif(r.rolconnlimit, -1) FROM pg_roles AS r WHERE r.rolname = session_user),
           (SELECT nullif(d.datconnlimit, -1) FROM pg_database AS d WHERE d.datname = current_database())
"""
_WAITING: Final = """
    SELECT (SELECT count(*)::integer FROM dinedesk_main.pos_nodes AS n WHERE n.lease_until > now()),
           (SELECT count(*)::integer FROM dinedesk_main.pos_outbox AS o
             WHERE o.created_at < now() - interval '1 minute')
"""

SETTINGS: Final = (
    *("fsync", "full_page_writes", "synchronous_commit", "autovacuum", "idle_session_timeout"),
    *("default_transaction_isolation", "default_transaction_read_only", "data_directory"),
    *("log_min_messages", "log_min_error_statement", "log_statement", "log_min_duration_statement"),
)


@frozen
class DatabaseServer:
    """The server and the login role.

    `may_be_posd` and `may_own` say whether the login is a member of the roles `posd` and `posd_owner`. They
    are None if that role does not exist.
    """

    version: int
    version_text: str
    encoding: str
    is_standby: bool
    user: str
    is_superuser: bool
    may_be_posd: bool | None
    may_own: bool | None
    now: datetime
    is_local: bool


@frozen
class ConnectionCapacity:
    """The server's limit of connections, those of other programs, the limits of role and database."""

    most: int
    others: int
    of_role: int | None
    of_database: int | None


async def server_facts(executor: Querier) -> DatabaseServer:
    """Return facts about the server and the login role."""
    return DatabaseServer(*(await executor.query(_SERVER))[0])


async def session_settings(executor: Querier, names: Sequence[str] = SETTINGS) -> Mapping[str, str]:
    """Return settings as they apply to this session. Settings that the role may not read are left out."""
    return dict(await executor.query(_SETTINGS, (list(names),)))


async def connection_capacity(executor: Querier) -> ConnectionCapacity:
    """Return the limits and the present use of connections."""
    return ConnectionCapacity(*(await executor.query(_ROOM))[0])


async def outbox_backlog(executor: Querier) -> tuple[int, int]:
    """Return the number of live nodes, and the number of outbox rows older than a minute."""
    ((nodes, rows),) = await executor.query(_WAITING)
    return nodes, rows
