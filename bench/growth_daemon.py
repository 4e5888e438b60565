"""Measure the cost of an event in posd and PostgreSQL with few and with many tenants.

    python bench/growth_daemon.py                        # 1 and 1,000 tenants; ten minutes
    python bench/growth_daemon.py --tenants 1,100 --rounds 10 --json daemon.json

The program starts a PostgreSQL server with fsync, and a database and a posd with TLS for each number of
tenants. Each tenant has a till that acknowledges events. Each round publishes a batch of events by REST to
each posd, one event in each request, to the tenants in turn, and waits until the tills have all of them.
With `--publishers 1` events are published one after the other. With more publishers, posd numbers several
events in one batch and may send several to a till at once, which is cheaper with one tenant only.

The output has the processor time of posd and of PostgreSQL for an event (proc(5), schedstat), minus that of
the same time without events, and the ratios to the first posd; the processor time without events, in
milliseconds per second; the times to start and to reload; and the memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import resource
import signal
import ssl
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from attrs import define, field

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import filling
from bench.neighbours import resident
from bench.noise import PING, PONG, TEXT, Stream, Target, frame, read_frame
from posd.database import migrations
from posd.testing.server import PostgresServer
from tests.integration.harness import Daemon, Shop

BATCH = 300
_LIMITS = """
[limits]
connections_per_tenant = 5000
publish_per_second_per_tenant = 100000
requests_per_second_per_credential = 10000
bytes_per_second_per_credential = "1GiB"
"""


@define(eq=False)
class Subject:
    """A posd with its tenants, tills and publishers."""

    tenants: int
    shop: Shop
    daemon: Daemon
    keys: dict[str, str]
    started: float
    reloaded: float = 0.0
    came: int = 0
    _published: int = 0
    _arrived: asyncio.Event = field(init=False, factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(init=False, factory=list)
    costs: list[tuple[float, float, float]] = field(init=False, factory=list)
    """For each round: milliseconds of posd and of PostgreSQL for an event, and elapsed milliseconds."""
    idle: list[tuple[float, float]] = field(init=False, factory=list)
    """For each round: milliseconds of posd and of PostgreSQL per second without events."""

    async def connect(self) -> None:
        gate = asyncio.Semaphore(16)

        async def come(number: int) -> None:
            async with gate:
                reader, writer = await self.target(number).till("FRONT")
            self._tasks.append(asyncio.create_task(self._till(reader, writer)))

        await asyncio.gather(*(come(number) for number in range(1, 1 + self.tenants)))

    def target(self, number: int) -> Target:
        return Target(self.daemon.port, str(self.daemon.ca), f"shop-{number}", self.keys)

    async def _till(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                opcode, payload = await read_frame(reader)
                if opcode == PING:
                    writer.write(frame(PONG, payload))
                elif opcode == TEXT and b'"mark":' in payload:
                    self.came += 1
                    event = json.loads(payload)
                    acknowledgement = json.dumps({"type": "ack", "id": event["id"]})
                    writer.write(frame(TEXT, acknowledgement.encode()))
                    self._arrived.set()

    async def dial(self, publishers: int) -> list[Stream]:
        """Open connections for a batch. posd would close them when they are idle."""
        return [await self.target(1).dial() for _ in range(publishers)]

    async def publish(self, streams: Sequence[Stream]) -> None:
        """Publish a batch, and wait until the tills have all events."""
        wanted = self.came + BATCH
        target = self.target(1)
        numbers = iter(range(BATCH))
        body = json.dumps({"type": "notice", "data": {"mark": 1, "text": "x" * 800}}).encode()

        async def publisher(stream: Stream) -> None:
            for number in numbers:
                tenant = 1 + (self._published + number) % self.tenants
                path = f"/api/shop-{tenant}/events"
                request = target.request("POST", path, key=self.keys["platform"], body=body)
                status = await target.ask(stream, request)
                assert status == 201, status

        await asyncio.gather(*(publisher(each) for each in streams))
        self._published += BATCH
        while self.came < wanted:
            self._arrived.clear()
            await asyncio.wait_for(self._arrived.wait(), 30)
        for _, writer in streams:
            writer.close()

    def processor(self) -> tuple[float, float]:
        """Return the milliseconds of processor time of posd and of its backends in PostgreSQL."""
        backends = [
            pid
            for (pid,) in self.shop.query(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'posd%%'"
                " AND datname = current_database()",
                (),
            )
        ]
        return used(self.daemon.pid), sum(map(used, backends))

    async def round(self, publishers: int, seconds: float) -> None:
        before = self.processor()
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        after, took = self.processor(), time.perf_counter() - began
        idle = (after[0] - before[0]) / took, (after[1] - before[1]) / took
        # Warm up: posd looks up a key for each tenant and caches it for ten seconds.
        for _ in range(0, self.tenants, BATCH):
            await self.publish(await self.dial(publishers))
        await asyncio.sleep(1.2)
        streams = await self.dial(publishers)
        middle, began = self.processor(), time.perf_counter()
        await self.publish(streams)
        # posd writes cursors and print statuses after the events. These belong to their cost.
        await asyncio.sleep(1.2)
        after, took = self.processor(), time.perf_counter() - began
        posd, postgres = (
            (after[place] - middle[place] - idle[place] * took) / BATCH for place in (0, 1)
        )
        self.idle.append(idle)
        self.costs.append((posd, postgres, 1000 * (took - 1.2) / BATCH))

    async def reload(self) -> None:
        before = self.daemon.log().count("reloaded")
        began = time.perf_counter()
        self.daemon.process.send_signal(signal.SIGHUP)
        while self.daemon.log().count("reloaded") == before:
            await asyncio.sleep(0.01)
        self.reloaded = time.perf_counter() - began

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def used(pid: int) -> float:
    """Return the milliseconds of processor time of all threads of a process."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0]) / 1e6
    return total


async def measure(subjects: Sequence[Subject], options: argparse.Namespace) -> list[dict[str, Any]]:
    for subject in subjects:
        await subject.connect()
        # After a checkpoint the first change of a page writes it to the WAL in full. Do that now.
        for _ in range(1 + max(each.tenants for each in subjects) // BATCH):
            await subject.publish(await subject.dial(options.publishers))
    for _ in range(options.rounds):
        for subject in random.sample(subjects, len(subjects)):
            await subject.round(options.publishers, options.idle)
    for subject in subjects:
        await subject.reload()
    rows = []
    for subject in subjects:
        row: dict[str, Any] = {
            "tenants": subject.tenants,
            "publishers": options.publishers,
            "started_seconds": round(subject.started, 2),
            "reloaded_seconds": round(subject.reloaded, 2),
            "resident_mb": resident(subject.daemon.pid) // 2**20,
        }
        for place, name in enumerate(("posd", "postgres")):
            row[f"{name}_idle_ms_per_second"] = round(median(e[place] for e in subject.idle), 2)
        for place, name in enumerate(("posd", "postgres", "time")):
            row[f"{name}_ms_per_event"] = round(median(e[place] for e in subject.costs), 3)
            pairs = zip(subject.costs, subjects[0].costs, strict=True)
            ratios = [mine[place] / first[place] for mine, first in pairs]
            row[f"{name}_ratio"] = [round(each, 2) for each in quantiles(ratios, n=4)]
        rows.append(row)
        await subject.leave()
    return rows


def start(server: PostgresServer, name: str, tenants: int) -> Subject:
    with closing(migrations.connect(server.dsn(name))) as connection, connection.cursor() as cursor:
        cursor.execute("CHECKPOINT")
    shop = Shop.at(server.dsn(name), [], server=server)
    keys = {"platform": shop.key("platform", None), "tenant": shop.key("tenant", "shop-1")}
    # One key for all tenants, because the creation of keys is not measured.
    shop.query(
        "INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, key_sha256, preview)"
        " SELECT id, 'tenant', %s, 'test' FROM dinedesk_main.tenants WHERE id > 1",
        (hashlib.sha256(keys["tenant"].encode()).digest(),),
    )
    began = time.perf_counter()
    daemon = shop.start(_LIMITS)
    return Subject(tenants, shop, daemon, keys, time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tenants", default="1,1000")
    parser.add_argument("--publishers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--idle", type=float, default=3.0, help="seconds without events in a round")
    parser.add_argument("--json", type=Path, help="the file to write the figures to")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with PostgresServer.start(durable=True, settings={"shared_buffers": "256MB"}) as server:
        subjects: list[Subject] = []
        template = None
        try:
            for number in map(int, options.tenants.split(",")):
                dsn = filling.create(server, f"tenants_{number}", template)
                filling.add_tenants(dsn, number, 1)
                template = f"tenants_{number}"
            for number in map(int, options.tenants.split(",")):
                filling.add_events(server.dsn(f"tenants_{number}"), number, 10_000)
                subjects.append(start(server, f"tenants_{number}", number))
            rows = asyncio.run(measure(subjects, options))
        finally:
            for subject in subjects:
                subject.daemon.stop()
                subject.shop.close()
    for row in rows:
        print(json.dumps(row))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
