"""How fast orders reach tills, and what one till that stops reading costs.

    python bench/load.py                       # 500 tills of 100 tenants, 50 events/s for 60 s
    python bench/load.py --seconds 10 --json   # shorter; the figures as one JSON object

Sets up everything by itself: a PostgreSQL with fsync, a database, certificates, the daemon with TLS.
Half of the events are orders inserted by SQL, which the hooks find, half are published with
pos_publish(). The latency of an event is from when its COMMIT has returned to the publisher until a
till has read the message from its TLS connection; publisher and tills are in this process, on one
clock, and their own work is in the figure.

Meanwhile one further till of one tenant never reads. Its tenant is sent events until far more is
waiting than its outbox may hold; what the daemon's memory grew by is printed beside the bound, and
the latencies of the tenant's other tills beside everybody's.

Exits with 1 if an event did not arrive, came twice or out of order, or the bound was not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import ssl
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import psycopg2
import websockets
from attrs import define, field

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from posd.testing.postgres import Server
from tests.integration.harness import Daemon, Shop

OUTBOX_BYTES = 256 * 1024
# Beyond the outbox: one chunk in the transport, the TLS layer's copy of it, the kernel's buffers.
ALLOWANCE_BYTES = 1024 * 1024
DEAF_EVENTS = 400
DEAF_EVENT_BYTES = 20_000


@define
class Till:
    """A till that notes when which event came."""

    slug: str
    key: str
    last: int = 0
    came: dict[str, float] = field(factory=dict)
    disorder: list[str] = field(factory=list)

    async def run(self, url: str, tls: ssl.SSLContext, ready: asyncio.Semaphore) -> None:
        headers = {"X-API-Key": self.key}
        async with websockets.connect(
            f"{url}/ws/pos/{self.slug}", ssl=tls, additional_headers=headers, compression=None
        ) as line:
            self.last = json.loads(await line.recv())["lastEventId"]
            ready.release()
            async for message in line:
                now = time.perf_counter()
                event = json.loads(message)
                if event["id"] != self.last + 1:
                    self.disorder.append(f"{self.slug}: {event['id']} after {self.last}")
                self.last = event["id"]
                self.came[mark(event["data"])] = now


def mark(data: dict[str, object]) -> str:
    """What an event is recognised by: an order by its customer, others by their own mark."""
    return str(data.get("customerName") or data.get("mark"))


@define
class Publisher:
    """Publishes at a steady rate from a thread of its own, and notes when each COMMIT returned."""

    dsn: str
    slugs: Sequence[str]
    rate: float
    seconds: float
    committed: dict[str, tuple[str, float]] = field(factory=dict)

    def run(self) -> None:
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            began = time.perf_counter()
            for number in range(int(self.rate * self.seconds)):
                delay = began + number / self.rate - time.perf_counter()
                if delay > 0:
                    time.sleep(delay)
                slug = random.choice(self.slugs)
                name = f"load-{number}"
                if number % 2:
                    cursor.execute(order_sql(slug), (name,))
                else:
                    cursor.execute(
                        "SELECT dinedesk_main.pos_publish(%s, 'notice', %s)",
                        (slug, json.dumps({"mark": name, "text": "x" * 800})),
                    )
                self.committed[name] = slug, time.perf_counter()


def order_sql(slug: str) -> str:
    """An order with two items in one statement, so in one transaction."""
    return (
        f"WITH placed AS (INSERT INTO dinedesk_{slug}.orders (customer_name, total_amount)"
        " VALUES (%s, 27.40) RETURNING id)"
        f" INSERT INTO dinedesk_{slug}.order_items (order_id, name, price, quantity)"
        " SELECT id, line, 13.70, 1 FROM placed, (VALUES ('Thali'), ('Lassi')) AS lines(line)"
    )


async def measure(
    shop: Shop, posd: Daemon, options: argparse.Namespace, slugs: list[str]
) -> dict[str, object]:
    tls = posd.tls()
    url = posd.url.replace("https", "wss")
    keys = {slug: shop.key("tenant", slug) for slug in slugs}
    tills = [
        Till(slug, keys[slug]) for slug in slugs for _ in range(options.tills // options.tenants)
    ]
    ready = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(till.run(url, tls, ready)) for till in tills]
    began = time.perf_counter()
    for _ in tills:
        await asyncio.wait_for(ready.acquire(), 60)
    connected = time.perf_counter() - began

    publisher = Publisher(shop.dsn, slugs, options.rate, options.seconds)
    thread = threading.Thread(target=publisher.run)
    thread.start()
    deaf = await deaf_till(shop, posd, url, tls, keys[slugs[0]], slugs[0])
    await asyncio.to_thread(thread.join)

    expected = dict.fromkeys(slugs, 0)
    for slug, _ in publisher.committed.values():
        expected[slug] += 1
    missing = await arrived(tills, publisher)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    latencies = {
        slug: sorted(
            (till.came[name] - when) * 1000
            for till in tills
            if till.slug == slug
            for name, (where, when) in publisher.committed.items()
            if where == slug and name in till.came
        )
        for slug in slugs
    }
    everybody = sorted(each for some in latencies.values() for each in some)
    return {
        "tills": len(tills),
        "tenants": len(slugs),
        "connected_in_seconds": round(connected, 2),
        "events": len(publisher.committed),
        "events_per_second": round(len(publisher.committed) / options.seconds, 1),
        "deliveries": len(everybody),
        "missing": missing,
        "disorder": [each for till in tills for each in till.disorder],
        "latency_ms": figures(everybody),
        "latency_ms_beside_the_deaf_till": figures(latencies[slugs[0]]),
        **deaf,
    }


async def arrived(tills: Sequence[Till], publisher: Publisher) -> int:
    """Wait up to ten seconds for the last ones; how many deliveries are missing then."""
    deadline = time.perf_counter() + 10
    while True:
        missing = sum(
            1
            for till in tills
            for name, (slug, _) in publisher.committed.items()
            if slug == till.slug and name not in till.came
        )
        if not missing or time.perf_counter() > deadline:
            return missing
        await asyncio.sleep(0.1)


async def deaf_till(
    shop: Shop, posd: Daemon, url: str, tls: ssl.SSLContext, key: str, slug: str
) -> dict[str, object]:
    """Connect a till that never reads, send its tenant far more than it may hold, and weigh posd."""
    reader, writer = await asyncio.open_connection(
        "localhost", posd.port, ssl=tls, limit=1024, server_hostname="localhost"
    )
    writer.write(
        f"GET /ws/pos/{slug} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    await reader.readline()
    cast(asyncio.Transport, writer.transport).pause_reading()
    before = resident(posd.pid)
    peak = before
    text = "x" * DEAF_EVENT_BYTES
    for number in range(DEAF_EVENTS):
        await asyncio.to_thread(
            shop.publish, slug, "notice", {"mark": f"deaf-{number}", "text": text}
        )
        peak = max(peak, resident(posd.pid))
    writer.transport.abort()
    return {
        "deaf_till_was_sent_bytes": DEAF_EVENTS * DEAF_EVENT_BYTES,
        "deaf_till_bound_bytes": OUTBOX_BYTES + ALLOWANCE_BYTES,
        "posd_grew_by_bytes": peak - before,
    }


def resident(pid: int) -> int:
    """The process's resident memory in bytes (proc(5), statm)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def figures(milliseconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    if len(milliseconds) < 2:
        return {}
    cuts = statistics.quantiles(milliseconds, n=100)
    return {
        "p50": round(cuts[49], 2),
        "p99": round(cuts[98], 2),
        "max": round(max(milliseconds), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tills", type=int, default=500)
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50.0, help="events per second, all tenants")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    slugs = [f"shop{number}" for number in range(options.tenants)]
    with Server.start(durable=True) as server:
        shop = Shop.open(slugs, server=server)
        posd = shop.start()
        try:
            result = asyncio.run(measure(shop, posd, options, slugs))
        finally:
            posd.stop()
            shop.close()
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name.replace('_', ' '):34} {value}")
    failed = result["missing"] or result["disorder"]
    heavy = result["posd_grew_by_bytes"] > result["deaf_till_bound_bytes"]  # type: ignore[operator]
    return 1 if failed or heavy else 0


if __name__ == "__main__":
    sys.exit(main())
