"""Clients that disconnect before they have their answer."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

from tests.integration.harness import Daemon, Shop
from tests.integration.wire import WAIT
from tests.integration.wire_case import until

_WAITING = """
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'posd' AND wait_event_type = 'Lock'
"""


@contextmanager
def held(shop: Shop, table: str) -> Iterator[None]:
    """Block writes into a table."""
    with closing(shop.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"BEGIN; LOCK TABLE {table} IN EXCLUSIVE MODE")
        yield
        cursor.execute("COMMIT")


def leave(shop: Shop, daemon: Daemon, table: str, path: str, body: object, key: str) -> None:
    """POST a request that writes into a table, and disconnect while the write is blocked."""
    content = json.dumps(body).encode()
    with held(shop, table):
        plain = socket.create_connection(("127.0.0.1", daemon.port), WAIT)
        with daemon.tls().wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
                + content
            )
            until(lambda: shop.query(_WAITING)[0][0] > 0, "posd waits for the table")
