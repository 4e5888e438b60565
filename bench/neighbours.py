"""Measure the effect of one tenant's load on the orders of another tenant.

    python bench/neighbours.py                         # every load, about eight minutes
    python bench/neighbours.py wrong_keys gets --json  # some; the figures as one JSON object

The program starts a PostgreSQL server with fsync and a posd with TLS. A quiet tenant publishes 20 events
per second by REST to one till. For each load of `noise.py` its latencies are measured before, during and
after the load: *publish* is the time from the request to its answer, *deliver* the time from the request
to the message at the till. The publisher, the till and the load run on the same processors as posd, the
load with the lowest priority.

During a load, p99 must not exceed twice the quiet value, or 25 ms if that is more. The exit status is 1 if
a load exceeds this bound, if posd refuses the quiet tenant, or if its till misses an event.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import resource
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
from attrs import define, field, frozen

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.noise import LOADS, PING, PONG, TEXT, Target, frame, read_frame
from posd.testing.postgres import PostgresServer
from tests.integration.harness import Daemon, Shop

T = TypeVar("T")

QUIET, NOISY = "quiet", "noisy"
RATE = 20.0
BOUND_MS = 25.0
ORDERS, NOTE_BYTES = 1000, 35_000
_LAST_SECONDS = 15.0
_PAUSE_SECONDS = 3.0


@frozen
class Window:
    """The measurements of the quiet tenant: latencies in milliseconds, missing events, refused requests."""

    published: Sequence[float]
    delivered: Sequence[float]
    missing: int
    refused: int


@define
class Neighbour:
    """The quiet tenant: its publisher and its till."""

    target: Target
    came: dict[str, float] = field(factory=dict)
    connections: int = 0
    _number: int = 0

    async def listen(self) -> None:
        """Run the till: acknowledge each event, record its arrival, and reconnect when disconnected."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
                reader, writer = await self.target.till("QUIET_1")
                self.connections += 1
                while True:
                    opcode, payload = await read_frame(reader)
                    if opcode == PING:
                        writer.write(frame(PONG, payload))
                    elif opcode == TEXT and b'"mark":' in payload:
                        message = json.loads(payload)
                        self.came[message["data"]["mark"]] = time.perf_counter()
                        acknowledgement = {"type": "ack", "id": message["id"]}
                        writer.write(frame(TEXT, json.dumps(acknowledgement).encode()))
            await asyncio.sleep(0.5)

    async def publish(self, seconds: float) -> Window:
        """Publish at a constant rate for some seconds, and wait for the last events."""
        stream = await self.target.dial()
        sent: dict[str, float] = {}
        answered: list[float] = []
        refused = 0
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            self._number += 1
            mark = f"n{self._number}"
            now = time.perf_counter()
            status = await self.target.ask(stream, self._event(mark))
            answered.append((time.perf_counter() - now) * 1000)
            if status == 201:
                sent[mark] = now
            else:
                refused += 1
            pause = began + len(answered) / RATE - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
        stream[1].close()
        deadline = time.perf_counter() + _LAST_SECONDS
        while sent.keys() - self.came.keys() and time.perf_counter() < deadline:
            await asyncio.sleep(0.05)
        arrived = [(self.came[mark] - at) * 1000 for mark, at in sent.items() if mark in self.came]
        return Window(answered, arrived, len(sent) - len(arrived), refused)

    def _event(self, mark: str) -> bytes:
        event = {"type": "notice", "data": {"mark": mark, "text": "x" * 500}}
        key = self.target.keys["platform"]
        body = json.dumps(event).encode()
        return self.target.request("POST", f"/api/{QUIET}/events", key=key, body=body)


async def measure(shop: Shop, posd: Daemon, options: argparse.Namespace) -> list[dict[str, Any]]:
    kinds = ("tenant", "platform")
    keys = {slug: {kind: shop.key(kind, slug) for kind in kinds} for slug in (QUIET, NOISY)}
    neighbour = Neighbour(Target(posd.port, str(posd.ca), QUIET, keys[QUIET]))
    listening = asyncio.ensure_future(neighbour.listen())
    await neighbour.publish(2)
    rows = []
    for load in options.loads:
        connections, before = neighbour.connections, resident(posd.pid)
        quiet = await neighbour.publish(options.seconds)
        noise = await start(load, posd, keys[NOISY])
        await asyncio.sleep(options.warm)
        loud, most = await watched(neighbour.publish(options.seconds), posd.pid)
        output, _ = await noise.communicate(b"\n")
        await asyncio.sleep(_PAUSE_SECONDS)
        after = await neighbour.publish(options.seconds / 2)
        windows = {"quiet": quiet, "loud": loud, "after": after}
        row: dict[str, Any] = {
            "load": load,
            "publish": {name: figures(each.published) for name, each in windows.items()},
            "deliver": {name: figures(each.delivered) for name, each in windows.items()},
            "missing": sum(each.missing for each in windows.values()),
            "refused": sum(each.refused for each in windows.values()),
            "reconnected": neighbour.connections - connections,
            "memory_mb": [each // 2**20 for each in (before, most, resident(posd.pid))],
            "outcomes": json.loads(output or b"{}"),
        }
        for name in ("publish", "deliver"):
            bound = max(BOUND_MS, 2 * row[name]["quiet"]["p99"])
            row[name]["kept"] = row[name]["loud"]["p99"] <= bound
        rows.append(row)
        if not options.json:
            print(line(row), flush=True)
    listening.cancel()
    return rows


async def start(load: str, posd: Daemon, keys: dict[str, str]) -> asyncio.subprocess.Process:
    """Start a load in another process."""
    target = {"load": load, "port": posd.port, "ca": str(posd.ca), "slug": NOISY, "keys": keys}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("noise.py")), json.dumps(target)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=2**20,
    )


async def watched(work: Awaitable[T], pid: int) -> tuple[T, int]:
    """Await `work`. Return its result and the maximal resident memory of a process meanwhile."""
    task, most = asyncio.ensure_future(work), 0
    while not task.done():
        most = max(most, resident(pid))
        await asyncio.wait([task], timeout=0.1)
    return task.result(), most


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes (proc(5), statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def figures(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the 99th percentile."""
    if len(milliseconds) < 2:
        return {"p50": math.inf, "p99": math.inf}
    cuts = statistics.quantiles(milliseconds, n=100)
    return {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1)}


def line(row: dict[str, Any]) -> str:
    """Format a row of the table."""
    cells = []
    for name in ("publish", "deliver"):
        windows = (row[name][when] for when in ("quiet", "loud", "after"))
        cells += [f"{each['p50']:7.1f}/{each['p99']:7.1f}" for each in windows]
        cells.append("ok" if row[name]["kept"] else "NO")
    return (
        f"{row['load']:17}"
        + " ".join(cells)
        + f" {'→'.join(map(str, row['memory_mb'])):>14} MB, {row['missing']} missing,"
        + f" {row['refused']} refused, {row['reconnected']} reconnected; {row['outcomes']}"
    )


def fill(shop: Shop) -> None:
    """Create open orders of the noisy tenant that make a large answer."""
    with closing(psycopg2.connect(shop.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO dinedesk_{NOISY}.orders (customer_name, total_amount,"
            " special_instructions) SELECT 'Ann', 10, repeat('x', %s) FROM generate_series(1, %s)",
            (NOTE_BYTES, ORDERS),
        )
        connection.commit()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("loads", nargs="*", help=", ".join(LOADS))
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a measurement")
    parser.add_argument(
        "--warm", type=float, default=4.0, help="seconds of load before a measurement"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.loads = options.loads or list(LOADS)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with PostgresServer.start(durable=True) as server:
        shop = Shop.open([QUIET, NOISY], server=server)
        posd = shop.start("[limits]\nconnections_per_tenant = 1000")
        try:
            fill(shop)
            time.sleep(5)
            if not options.json:
                print(
                    "p50/p99 in ms of publish quiet, loud, after, and of deliver;"
                    " memory before, most, after"
                )
            rows = asyncio.run(measure(shop, posd, options))
        finally:
            posd.stop()
            shop.close()
    if options.json:
        print(json.dumps(rows))
    kept = all(row[name]["kept"] for row in rows for name in ("publish", "deliver"))
    return 0 if kept and not any(row["missing"] + row["refused"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
