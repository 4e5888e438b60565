"""The PostgreSQL server, tenants, keys, certificate and requests that all subjects of a benchmark share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg2
from attrs import define
from psycopg2.extensions import parse_dsn

from bench import filling
from bench.loader import COUNTER, STAMP
from posd.testing.server import PostgresServer
from tests.integration.harness import Shop

TENANTS: Final = 201
CROWDED: Final = 201
"""The tenant of the fan-out. Its 1,000 devices are the maximum, so no other row uses it."""
TILL_KEY: Final = "pos_" + "1" * 64
PLATFORM_KEY: Final = "pos_" + "2" * 64
"""One key for all tenants and all subjects, because the creation of keys is not measured."""
TEXT_BYTES: Final = 820
"""The length of the text in an event. The message to the till then has about 1,000 bytes."""


@define(eq=False)
class World:
    """The databases of posd and of its peers (peers/shop.sql)."""

    server: PostgresServer
    shop: Shop
    peers_dsn: str
    tenants: int

    @classmethod
    @contextmanager
    def make(cls, tenants: int = TENANTS) -> Iterator[World]:
        with PostgresServer.start(durable=True, settings={"shared_buffers": "128MB"}) as server:
            dsn = filling.create(server, "posd")
            filling.add_tenants(dsn, tenants, 0)
            shop = Shop.at(dsn, [], server=server)
            try:
                yield cls(server, shop, _peers(server, tenants), tenants)._with_keys()
            finally:
                shop.close()

    @property
    def certificate(self) -> Path:
        return self.shop.ca.with_name("fullchain.pem")

    @property
    def private_key(self) -> Path:
        return self.shop.ca.with_name("privkey.pem")

    def peers_connection(self) -> str:
        """Return the connection parameters of the peers' database, as JSON for `pg` of Node."""
        parts = parse_dsn(self.peers_dsn)
        names = {"host": "host", "port": "port", "dbname": "database", "user": "user"}
        return json.dumps({theirs: parts[ours] for ours, theirs in names.items()})

    def peers_query(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        return _query(self.peers_dsn, sql, parameters)

    def _with_keys(self) -> World:
        till, platform = (hashlib.sha256(key.encode()).digest() for key in (TILL_KEY, PLATFORM_KEY))
        self.shop.query(
            "INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, key_sha256, preview)"
            " SELECT id, 'tenant', %s, 'bench' FROM dinedesk_main.tenants"
            " UNION ALL SELECT NULL, 'platform', %s, 'bench'",
            (till, platform),
        )
        self.peers_query(
            "INSERT INTO api_keys (sha256, tenant, kind) SELECT %s, id, 'tenant' FROM tenants"
            " UNION ALL SELECT %s, NULL, 'platform'",
            (till, platform),
        )
        return self


def _peers(server: PostgresServer, tenants: int) -> str:
    _query(server.dsn(), "CREATE DATABASE peers")
    dsn = server.dsn("peers")
    _query(dsn, (Path(__file__).parent / "peers" / "shop.sql").read_text())
    _query(
        dsn,
        "INSERT INTO tenants (id, slug) SELECT n, 'shop-' || n FROM generate_series(1, %s) AS n",
        (tenants,),
    )
    return dsn


def _query(dsn: str, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(sql, parameters or None)
        return cursor.fetchall() if cursor.description else []


def opening(tenant: int, device: str | None = None, after: int | None = None) -> bytes:
    """Return the opening handshake of a till, which resumes after a position if it is given."""
    query = "" if after is None else f"?last_event_id={after}"
    name = "" if device is None else f"X-Device-ID: {device}\r\n"
    return (
        f"GET /ws/pos/shop-{tenant}{query} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {TILL_KEY}\r\n"
        f"{name}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def request(
    method: str, path: str, key: str, body: object = None, repeatable: bool = False
) -> bytes:
    """Return an HTTP request on a persistent connection, with an Idempotency-Key if `repeatable`."""
    content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    more = f"Idempotency-Key: bench-{COUNTER}\r\n" if repeatable else ""
    if body is not None:
        more += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n{more}\r\n"
    return head.encode() + content


def publishing(tenant: int, events: int | None = None, text_bytes: int = TEXT_BYTES) -> bytes:
    """Return a request that publishes one event, or a list of `events`, with the time of sending."""
    event = {"type": "notice", "data": {"t": STAMP, "text": "x" * text_bytes}}
    body = event if events is None else {"events": [event] * events}
    return request("POST", f"/api/shop-{tenant}/events", PLATFORM_KEY, body)
