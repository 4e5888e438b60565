"""A synchronous standby with a given round-trip time, for `bench/bell.py`."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
from psycopg2.extensions import parse_dsn

from posd.testing.server import PostgresServer

_SOCKET = ".s.PGSQL.5432"
_PATIENCE_SECONDS = 30.0


@contextmanager
def far_standby(server: PostgresServer, milliseconds: float) -> Iterator[None]:
    """Make each COMMIT on `server` wait for a standby with a round-trip time.

    The standby connects through a relay that delays data by half of that time in each direction.
    """
    parts = parse_dsn(server.dsn())
    with server.standby() as standby, tempfile.TemporaryDirectory() as folder:
        target = Path(parts["host"]) / f".s.PGSQL.{parts.get('port', 5432)}"
        _relay(str(target), Path(folder), milliseconds / 2000)
        _set(standby, "primary_conninfo", f"host={folder} user=postgres application_name=far")
        _wait(server, "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'far'")
        _set(server, "synchronous_standby_names", "far")
        _wait(server, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
        try:
            yield
        finally:
            _set(server, "synchronous_standby_names", "")


def _set(server: PostgresServer, name: str, value: str) -> None:
    with closing(psycopg2.connect(server.dsn())) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(f"ALTER SYSTEM SET {name} = %s", (value,))
        cursor.execute("SELECT pg_reload_conf()")


def _wait(server: PostgresServer, question: str) -> None:
    ends = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < ends:
        with closing(psycopg2.connect(server.dsn())) as connection, connection.cursor() as cursor:
            cursor.execute(question)
            ((count,),) = cursor.fetchall()
        if count:
            return
        time.sleep(0.1)
    raise SystemExit(f"not run: the standby did not connect\n{server.log()[-1000:]}")


def _relay(target: str, folder: Path, seconds: float) -> None:
    """Listen on a socket in `folder`, for all users, and forward data to `target` with a delay."""
    loop = asyncio.new_event_loop()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def pass_on() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    writer.close()
                    return
                writer.write(data)

        passing = loop.create_task(pass_on())
        data = b"."
        while data:
            try:
                data = await reader.read(65536)
            except OSError:
                data = b""
            waiting.put_nowait((loop.time() + seconds, data))
        await passing

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_unix_connection(target)
        await asyncio.gather(pipe(reader, requests), pipe(answers, writer))

    loop.run_until_complete(asyncio.start_unix_server(serve, folder / _SOCKET))
    folder.chmod(0o755)
    (folder / _SOCKET).chmod(0o777)
    threading.Thread(target=loop.run_forever, daemon=True).start()
