"""Apply the migrations of `sql/` to a database, and check whether this posd supports a schema's version.

Blocking code, used by `posctl` and the tests. The daemon never migrates: it only compares
`schema_versions` with `expected_files()`.

Each file is applied in one transaction together with its row in `schema_versions`. A file whose first line
is `-- no-transaction` runs outside a transaction, statement by statement, so that it can use
`CREATE INDEX CONCURRENTLY`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, Final, Literal

import psycopg2
from attrs import frozen
from psycopg2 import sql as compose
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import make_dsn, parse_dsn

from posd.database import resources, session_settings
from posd.errors import SchemaBusy, SchemaError

MAIN: Final = "dinedesk_main"
HOOKS: Final = "hooks.sql"
"""The file name in `schema_versions` of the hooks on a shop's own tables."""
OWNER: Final = "posd_owner"
Kind = Literal["main", "tenant"]

_LOCK_SECONDS: Final = 2.0
_REPLAY_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.05
# A table lock, not an advisory lock: every role that can connect can take an advisory lock.
_LOCK: Final = f"BEGIN; LOCK TABLE {MAIN}.schema_changes IN EXCLUSIVE MODE NOWAIT"
_NO_SCHEMA: Final = "the database has no schema dinedesk_main: run `posctl bootstrap`"
# Migrations from before the first release, which were rewritten. They identify such a database.
_BEFORE_RELEASE: Final = ("main/002_stream.sql", "tenant/005_reports.sql")
_KEEP_FILE: Final = f"""
    INSERT INTO {MAIN}.pos_tenant_files (position, file, checksum, content) VALUES (%s, %s, %s, %s)
"""
_RECORD: Final = f"""
    INSERT INTO {MAIN}.schema_versions (schema_name, file, checksum) VALUES (%s, %s, %s)
    ON CONFLICT (schema_name, file)
    DO UPDATE SET checksum = excluded.checksum, applied_at = clock_timestamp()
"""


@frozen
class Migration:
    """One file of `sql/main` or `sql/tenant`; `checksum` is the SHA-256 of its text in hex."""

    file: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def transactional(self) -> bool:
        return not self.text.startswith("-- no-transaction")


OLDEST: Final = 140000
"""The oldest supported server, in the form of `server_version_num`."""


def migrations(kind: Kind) -> tuple[Migration, ...]:
    """Return the migrations of a kind of schema, in the order in which they are applied."""
    folder = resources.sql() / kind
    files = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return tuple(Migration(f"{kind}/{name}", (folder / name).read_text("utf-8")) for name in files)


def expected_files() -> dict[Kind, tuple[str, ...]]:
    """Return the files that must have been applied to a main schema and to a tenant's schema."""
    return {
        "main": tuple(migration.file for migration in migrations("main")),
        "tenant": tuple(migration.file for migration in migrations("tenant")),
    }


def connect(dsn: str) -> Connection:
    """Connect for administration, in autocommit mode, with a short lock timeout.

    The search path contains only `pg_catalog`, so that a superuser's statements cannot call functions that
    another role created in `public` or in a shop's schema.
    """
    return session_settings.connect(dsn, lock_timeout=_LOCK_SECONDS)


def connect_like(connection: Connection) -> Connection:
    """Open another connection with the parameters of this connection."""
    info = connection.info
    return connect(str(make_dsn(**{**info.dsn_parameters, "password": info.password})))


def bootstrap(dsn: str) -> bool:
    """Create the database named in `dsn` if it is missing, the roles, and the main schema.

    Return whether the database was created. Raises `SchemaError` if the user is not a superuser, if the
    server is too old, or if the encoding of the database is not UTF8.
    """
    try:
        created = _create_database(dsn)
        with closing(connect(dsn)) as connection, transaction(connection) as cursor:
            _check_server(connection)
            cursor.execute((resources.sql() / "bootstrap.sql").read_text("utf-8"))
    except psycopg2.errors.InsufficientPrivilege as error:
        raise SchemaError(
            f"bootstrap needs a superuser of the cluster: {first_line(error)}"
        ) from error
    return created


def check_main(connection: Connection) -> None:
    """Raise `SchemaError` unless this posd supports the version of the main schema."""
    check_bootstrapped(connection)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT file FROM {MAIN}.schema_versions WHERE schema_name = %s ORDER BY file", (MAIN,)
        )
        verdict = version_mismatch([row[0] for row in cursor], expected_files()["main"])
    if verdict is not None:
        raise SchemaError(verdict)


def check_bootstrapped(connection: Connection) -> None:
    """Raise `SchemaError` if the database was not bootstrapped, or if posd does not support the server."""
    _check_server(connection)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT to_regclass('dinedesk_main.schema_versions') IS NOT NULL,"
            " to_regnamespace('posd_hooks') IS NOT NULL"
        )
        main, current = cursor.fetchone()
        if not main:
            raise SchemaError(_NO_SCHEMA)
        if not current:
            raise SchemaError("the database has no schema posd_hooks: run `posctl bootstrap` again")


def _check_server(connection: Connection) -> None:
    """Raise `SchemaError` if the server is too old, or if the encoding of the database is not UTF8."""
    _check_version(connection)
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        name = connection.info.dbname
        raise SchemaError(
            f"the encoding of the database {name} is {encoding}, which cannot store all characters of"
            " orders: name a database with encoding UTF8; `posctl bootstrap` creates a missing database"
        )


def _check_version(connection: Connection) -> None:
    if connection.server_version < OLDEST:
        version = connection.info.parameter_status("server_version")
        raise SchemaError(
            f"PostgreSQL {version} is too old: posd needs {OLDEST // 10000} or newer; upgrade the server"
        )


def version_mismatch(applied: Sequence[str], wanted: tuple[str, ...]) -> str | None:
    """Return why posd does not support a schema with the `applied` files, or None if it does.

    Reads no file, because every request of a tenant calls this function.
    """
    missing = [file for file in wanted if file not in applied]
    unknown = [file for file in applied if file not in wanted and file != HOOKS]
    for file in _BEFORE_RELEASE:
        if file in unknown:
            return f"the schema {_too_old(file)}"
    if unknown:
        return f"the schema is newer than this posd: it has {unknown[0]}; upgrade posd"
    if missing:
        return f"the schema is older than this posd: it lacks {missing[0]}; run `posctl migrate`"
    return None


def _too_old(file: str) -> str:
    return (
        f"is from before the release of posd 0.1: it has {file}; it cannot be migrated,"
        " so create a new database"
    )


def _create_database(dsn: str) -> bool:
    """Create the database if it is missing. Return whether it was created.

    If a connection to the database succeeds, no right on another database is needed.
    """
    try:
        psycopg2.connect(dsn).close()
    except psycopg2.OperationalError as error:
        name = parse_dsn(dsn).get("dbname")
        if name is None:
            raise
        # psycopg2 gives no SQLSTATE for a failed connection, and the message depends on the locale.
        try:
            connection = connect(str(make_dsn(dsn, dbname="postgres")))
        except psycopg2.OperationalError:
            raise error from None
    else:
        return False
    try:
        _check_version(connection)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone() is not None:
                # Either it was created meanwhile, or the first connection failed for another reason.
                # In that case the next connection fails for the same reason.
                return False
            cursor.execute(
                compose.SQL("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0").format(
                    compose.Identifier(name)
                )
            )
    except (psycopg2.errors.DuplicateDatabase, psycopg2.errors.UniqueViolation):
        # Two concurrent CREATE DATABASE: the slower one fails with UniqueViolation.
        return False
    finally:
        connection.close()
    _wait_until_replayed(dsn)
    return True


def _wait_until_replayed(dsn: str) -> None:
    """Wait until a connection to the new database succeeds. In a cluster this takes a moment.

    libpq tries the hosts of a connection string in order. If a standby comes before the primary and has not
    replayed CREATE DATABASE yet, the connection fails: libpq does not try the next host.
    """
    deadline = time.monotonic() + _REPLAY_SECONDS
    while time.monotonic() < deadline:
        with suppress(psycopg2.OperationalError):
            psycopg2.connect(dsn).close()
            return
        time.sleep(_LOOK_SECONDS)


@contextmanager
def administer(connection: Connection) -> Iterator[None]:
    """Become posd_owner and hold the migration lock.

    A second connection holds the lock, because the lock must outlast the transactions of a migration.
    Raises `SchemaBusy` if another process holds the lock, and `SchemaError` if the database was not
    bootstrapped or the user may not become posd_owner.
    """
    with closing(connect_like(connection)) as guard, connection.cursor() as cursor:
        with guard.cursor() as guarding:
            _become_owner(guarding)
            try:
                guarding.execute(_LOCK)
            except psycopg2.errors.LockNotAvailable as error:
                what = "another posctl is changing the schemas of this database"
                raise SchemaBusy(what) from error
            except psycopg2.errors.InvalidSchemaName as error:
                raise SchemaError(_NO_SCHEMA) from error
            except psycopg2.errors.UndefinedTable as error:
                what = "the database lacks schema_changes: run `posctl bootstrap` again"
                raise SchemaError(what) from error
        try:
            _become_owner(cursor)
            yield
        finally:
            if not connection.closed:
                cursor.execute("RESET ROLE")
            # Release the lock explicitly: the server notices a closed connection later.
            with suppress(psycopg2.Error), guard.cursor() as guarding:
                guarding.execute("ROLLBACK")


def _become_owner(cursor: Any) -> None:
    try:
        cursor.execute("SET ROLE posd_owner")
    except psycopg2.errors.InvalidParameterValue as error:
        raise SchemaError("there is no role posd_owner: run `posctl bootstrap`") from error
    except psycopg2.errors.InsufficientPrivilege as error:
        raise SchemaError(
            f"this needs a superuser or a member of posd_owner: {first_line(error)}"
        ) from error


@contextmanager
def transaction(connection: Connection) -> Iterator[Any]:
    """Run the body in a transaction: commit at the end, roll back on an exception. Yields a cursor."""
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        try:
            yield cursor
        except BaseException:
            if not connection.closed:
                cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT")


def _pending(cursor: Any, schema: str, kind: Kind) -> Iterator[Migration]:
    """Yield the migrations to apply. Raises `SchemaError` for a changed or unknown applied file."""
    cursor.execute(
        f"SELECT file, checksum FROM {MAIN}.schema_versions WHERE schema_name = %s", (schema,)
    )
    applied = dict(cursor.fetchall())
    known = migrations(kind)
    unknown = applied.keys() - {m.file for m in known} - {HOOKS}
    for file in _BEFORE_RELEASE:
        if file in unknown:
            raise SchemaError(f"{schema} {_too_old(file)}")
    for file in sorted(unknown):
        raise SchemaError(f"{schema} is newer than this posd: it has {file}")
    for migration in known:
        if migration.file not in applied:
            yield migration
        elif applied[migration.file] != migration.checksum:
            raise SchemaError(f"{migration.file} was changed after it was applied to {schema}")


def apply_pending(
    connection: Connection,
    schema: str,
    kind: Kind,
    prepare: Callable[[str], str],
) -> bool:
    """Apply the pending migrations and record each of them. Return whether there were any.

    `prepare` replaces the placeholders in the text of a file.
    """
    with connection.cursor() as cursor:
        pending = list(_pending(cursor, schema, kind))
        for migration in pending:
            text = prepare(migration.text)
            if migration.transactional:
                with transaction(connection) as inside:
                    inside.execute(text)
                    record_migration(inside, schema, migration)
            else:
                with _without_lock_timeout(connection):
                    for statement in filter(str.strip, text.split(";\n")):
                        cursor.execute(statement)
                record_migration(cursor, schema, migration)
    return bool(pending)


@contextmanager
def _without_lock_timeout(connection: Connection) -> Iterator[None]:
    """Disable the lock timeout: CREATE INDEX CONCURRENTLY waits for all older transactions.

    That wait blocks no other session.
    """
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = 0")
        try:
            yield
        finally:
            if not connection.closed:
                cursor.execute(f"SET lock_timeout = {int(_LOCK_SECONDS * 1000)}")


def store_tenant_files(connection: Connection) -> None:
    """Store the migrations of a tenant's schema in the database, for pos_create_tenant()."""
    files = (*migrations("tenant"), hooks_migration())
    with transaction(connection) as cursor:
        cursor.execute(f"SELECT file, checksum FROM {MAIN}.pos_tenant_files ORDER BY position")
        if cursor.fetchall() == [(each.file, each.checksum) for each in files]:
            return
        cursor.execute(f"DELETE FROM {MAIN}.pos_tenant_files")
        for position, each in enumerate(files, 1):
            # pos_create_tenant() runs in a transaction, in which CONCURRENTLY is not allowed. It is not
            # needed there either: no session uses the new tables.
            content = each.text if each.transactional else each.text.replace(" CONCURRENTLY", "")
            cursor.execute(_KEEP_FILE, (position, each.file, each.checksum, content))


def first_line(error: BaseException) -> str:
    """Return the first line of PostgreSQL's message, without the lines that mark a position."""
    return str(error).strip().split("\n", 1)[0]


def record_migration(cursor: Any, schema: str, migration: Migration) -> None:
    """Record in `schema_versions` that the current text of a file was applied to a schema."""
    cursor.execute(_RECORD, (schema, migration.file, migration.checksum))


def hooks_migration() -> Migration:
    """Return the hooks on a shop's own tables. A changed file is applied again to hooked tenants."""
    return Migration(HOOKS, (resources.sql() / HOOKS).read_text("utf-8"))
