"""Measure the cost of an event in PostgreSQL with more tenants and with a longer event log.

    python bench/growth.py        # 1 to 1,000 tenants, 10³ to 10⁷ events: a quarter of an hour
    python bench/growth.py --tenants 1,1000 --events 1000,100000 --rounds 20 --json growth.json

The program starts a PostgreSQL server with fsync and creates a database for each size. Each round does the
same work in all databases, in random order, with the statements and the role of the daemon. For each step
the program prints the median cost in each database, and its ratio to the smallest one: the median and the
quartiles of the ratios of the rounds. A step handles 30 events of up to 30 tenants. `publish to one`
handles 30 events of one tenant, to show the cost of tenants that are not in a batch.

`cpu` is the processor time of the PostgreSQL backend (proc(5), schedstat), which other load on the machine
changes little. `wall` is the time that the caller waits, including COMMIT.

Ten million events need 14 GB of disk. They are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg2
from attrs import define, field

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import filling
from posd.cli.database import BlockingExecutor, run_to_completion
from posd.database import migrations, session_settings
from posd.events.orders import FINAL_STATUSES
from posd.store import cursors, orders, presence, retention, stream
from posd.store import sequencing as numbering
from posd.store.sequencing import LogEntry
from posd.testing.server import PostgresServer
from posd.values import StreamHead, Tenant, TenantId

BATCH: Final = 30
TENANTS_WITH_LOG: Final = 10
PRUNED: Final = 10
_KEPT_DAYS: Final = 30


@define(eq=False)
class Subject:
    """A database, a session with the daemon's settings, and the measurements."""

    name: str
    connection: Any
    tenants: Sequence[TenantId]
    node_id: UUID = field(factory=uuid4)
    heads: dict[TenantId, StreamHead] = field(factory=dict)
    numbers: Iterator[int] = field(factory=partial(count, 10**9))
    costs: dict[str, list[tuple[float, float]]] = field(factory=dict)
    """For each step and round: processor time and elapsed time, in milliseconds."""

    @classmethod
    def open(cls, server: PostgresServer, name: str, tenants: int) -> Subject:
        connection = psycopg2.connect(server.dsn(name, "posd"))
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(
                session_settings.startup_statements(
                    application_name="posd",
                    statement_timeout=60,
                    lock_timeout=10,
                    idle_in_transaction=0,
                )
            )
        subject = cls(name, connection, range(1, tenants + 1))
        run_to_completion(presence.renew_lease(subject.executor, subject.node_id, 86400))
        return subject

    @property
    def executor(self) -> BlockingExecutor:
        return BlockingExecutor(self.connection)

    def some(self, count: int = BATCH) -> list[TenantId]:
        """Return `count` random tenants. They repeat if there are fewer."""
        chosen = random.sample(self.tenants, min(count, len(self.tenants)))
        return [chosen[number % len(chosen)] for number in range(count)]

    def processor(self) -> float:
        """Return the milliseconds of processor time of this session's backend."""
        pid = self.connection.info.backend_pid
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6

    def measure(self, step: str, work: Callable[[], None]) -> None:
        began, used = time.perf_counter(), self.processor()
        work()
        spent = self.processor() - used, 1000 * (time.perf_counter() - began)
        self.costs.setdefault(step, []).append(spent)

    def round(self) -> None:
        """Measure each step once."""
        executor = self.executor
        tenants = self.some()
        self.heads = run_to_completion(stream.load_heads(executor, set(tenants)))
        self.measure("publish", lambda: self.publish(tenants))
        self.measure("read by a channel", self.read)
        one = tenants[:1] * BATCH
        self.measure("publish to one", lambda: self.publish(one))
        devices = [(each, f"TILL_{1 + n // len(self.tenants)}") for n, each in enumerate(tenants)]
        self.measure("open and resume", lambda: self.resume(devices, 5))
        self.measure("acknowledge", lambda: self.acknowledge(devices))
        self.measure("replay of old events", lambda: self.replay(tenants[0]))
        self.measure("pending orders", lambda: self.pending(tenants[0]))
        self.measure("retention batch", lambda: self.prune(tenants[0]))

    def publish(self, tenants: Sequence[TenantId]) -> None:
        executor, number = self.executor, next(self.numbers)
        entries = []
        for each in range(len(tenants)):
            # Consecutive ids, as shops have them, are near each other in the index.
            order_id = f"{number}-{each}"
            items = [{"name": "Dish " + "x" * 60, "price": 3, "quantity": 2}] * 6
            content = {"orderId": order_id, "status": "new", "version": 1, "items": items}
            text = json.dumps(content)
            entries.append(
                LogEntry(
                    *(tenants[each], "new_order", text),
                    order_id=order_id,
                    snapshot=text,
                    status="new",
                    version=1,
                )
            )
        run_to_completion(executor.execute("BEGIN"))
        asking = [(each, None) for each in sorted(set(tenants))]
        run_to_completion(numbering.take_rows(executor, [], asking))
        named = [(entry.tenant_id, entry.order_id or "") for entry in entries]
        run_to_completion(numbering.stored_orders(executor, named))
        run_to_completion(numbering.record_entries(executor, self.node_id, entries))
        run_to_completion(executor.execute("COMMIT"))

    def read(self) -> None:
        positions = [(each, head.stream_id, head.last_seq) for each, head in self.heads.items()]
        found = run_to_completion(stream.load_pages(self.executor, positions, 100))
        read = sum(len(page.events) for page in found.values())
        assert read == BATCH, (read, len(positions), found)

    def resume(self, devices: Sequence[tuple[TenantId, str]], missed: int) -> None:
        found = run_to_completion(presence.load_session_starts(self.executor, [*devices], 1000))
        positions = [
            (each, found[each, device].head.stream_id, found[each, device].head.last_seq - missed)
            for each, device in devices
        ]
        run_to_completion(stream.load_pages(self.executor, positions, missed))

    def acknowledge(self, devices: Sequence[tuple[TenantId, str]]) -> None:
        heads = run_to_completion(stream.load_heads(self.executor, {each for each, _ in devices}))
        moves = [
            (each, device, heads[each].stream_id, heads[each].last_seq)
            for each, device in sorted(set(devices))
        ]
        run_to_completion(cursors.advance(self.executor, moves))
        ids = sorted(heads)
        rows = [
            (each, heads[each].stream_id, heads[each].last_seq, heads[each].last_seq)
            for each in ids
        ]
        run_to_completion(presence.update_progress(self.executor, rows))
        run_to_completion(orders.confirmed_positions(self.executor, ids, FINAL_STATUSES))
        run_to_completion(orders.update_print_status(self.executor, ids))

    def replay(self, tenant_id: TenantId) -> None:
        head = self.heads[tenant_id]
        middle = random.randrange(max(1, head.last_seq // 3), max(2, head.last_seq // 2))
        run_to_completion(
            stream.load_pages(self.executor, [(tenant_id, head.stream_id, middle)], BATCH)
        )

    def pending(self, tenant_id: TenantId) -> None:
        tenant = Tenant(tenant_id, f"shop-{tenant_id}", "Shop", f"dinedesk_shop_{tenant_id}")
        run_to_completion(
            orders.pending_orders(self.executor, tenant, orders.PendingQuery(20, 10**7))
        )

    def prune(self, tenant_id: TenantId) -> None:
        """Run a batch of retention, and roll it back for the next round."""
        run_to_completion(self.executor.execute("BEGIN"))
        before = run_to_completion(retention.cutoff_time(self.executor, _KEPT_DAYS * 86400))
        run_to_completion(retention.prune(self.executor, tenant_id, before, FINAL_STATUSES, PRUNED))
        run_to_completion(self.executor.execute("ROLLBACK"))


def compare(subjects: Sequence[Subject], rounds: int) -> list[dict[str, Any]]:
    """Measure the databases in turn. Return the costs and their ratios to the first database."""
    # PostgreSQL writes a full page to the WAL at the first change after a checkpoint. So all tenants get
    # events before the measurement, and no checkpoint starts meanwhile. The first rounds also fill caches
    # and let PostgreSQL choose generic plans.
    for subject in subjects:
        for first in range(1, 1 + len(subject.tenants), BATCH):
            subject.publish(
                [1 + each % len(subject.tenants) for each in range(first, first + BATCH)]
            )
    for number in range(rounds + 3):
        for subject in random.sample(subjects, len(subjects)):
            subject.round()
        if number == 2:
            for subject in subjects:
                subject.costs.clear()
    base, rows = subjects[0], []
    for step in base.costs:
        for subject in subjects:
            row: dict[str, Any] = {"step": step, "database": subject.name}
            for place, kind in enumerate(("cpu", "wall")):
                mine = [each[place] for each in subject.costs[step]]
                basis = [each[place] for each in base.costs[step]]
                ratios = [a / b for a, b in zip(mine, basis, strict=True)]
                low, _, high = quantiles(ratios, n=4)
                row[f"{kind}_ms"] = round(median(mine), 3)
                row[f"{kind}_ratio"] = round(median(ratios), 3)
                row[f"{kind}_quartiles"] = [round(low, 3), round(high, 3)]
            rows.append(row)
            print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    cells = [f"{row['step']:22} {row['database']:14}"]
    for kind in ("cpu", "wall"):
        low, high = row[f"{kind}_quartiles"]
        ratio = row[f"{kind}_ratio"]
        cells.append(f"{row[f'{kind}_ms']:8.2f} ms {ratio:6.2f} ({low:.2f} to {high:.2f})")
    return "  ".join(cells)


def by_tenants(server: PostgresServer, numbers: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    subjects, template = [], None
    for number in numbers:
        name = f"tenants_{number}"
        dsn = filling.create(server, name, template)
        filling.add_tenants(dsn, number, max(1, BATCH // number))
        template = name
    for number in numbers:
        filling.add_events(server.dsn(f"tenants_{number}"), number, 100 * max(numbers))
        subjects.append(Subject.open(server, f"tenants_{number}", number))
    return finish(server, subjects, rounds)


def by_events(server: PostgresServer, numbers: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    template, subjects = "no_events", []
    dsn = filling.create(server, template)
    filling.add_tenants(dsn, TENANTS_WITH_LOG, BATCH // TENANTS_WITH_LOG)
    for number in numbers:
        name = f"events_{number}"
        began = time.monotonic()
        filling.add_events(filling.create(server, name, template), TENANTS_WITH_LOG, number)
        found = filling.sizes(server.dsn(name))
        took = time.monotonic() - began
        print(f"{name}: {found['bytes'] / 2**30:.2f} GB, filled in {took:.0f} s", flush=True)
        subjects.append(Subject.open(server, name, TENANTS_WITH_LOG))
    return finish(server, subjects, rounds)


def finish(
    server: PostgresServer, subjects: Sequence[Subject], rounds: int
) -> list[dict[str, Any]]:
    print(f"{'step':22} {'database':14}  {'cpu':>11} ratio (quartiles)       {'wall':>11} ratio")
    with closing(migrations.connect(server.dsn())) as connection, connection.cursor() as cursor:
        cursor.execute("CHECKPOINT")
    rows = compare(subjects, rounds)
    for subject in subjects:
        subject.connection.close()
    return rows


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tenants", type=numbers, default=numbers("1,10,100,1000"))
    parser.add_argument("--events", type=numbers, default=numbers("1000,100000,10000000"))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--fsync", choices=("on", "off"), default="on")
    parser.add_argument("--shared-buffers", default="256MB")
    parser.add_argument("--json", type=Path, help="the file to write the figures to")
    options = parser.parse_args()
    settings = {
        "shared_buffers": options.shared_buffers,
        "max_wal_size": "4GB",
        "checkpoint_timeout": "1h",
    }
    rows = []
    with PostgresServer.start(durable=options.fsync == "on", settings=settings) as server:
        if options.tenants:
            rows += by_tenants(server, options.tenants, options.rounds)
        if options.events:
            rows += by_events(server, options.events, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
