"""Measure the time to number and store a batch, by its size and the number of tenants.

    python bench/numbering.py [--tenants 1,100,1000] [--rounds 15]

The program starts a PostgreSQL server with fsync and calls `posd.store.sequencing.record_entries` with a
COMMIT after each batch. It prints the median and the minimum of the rounds in milliseconds. To measure
another version of posd, put that version first on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from statistics import median
from typing import Any
from uuid import uuid4

from posd.cli.database import BlockingExecutor, run_to_completion
from posd.database import migrations
from posd.database import provisioning as provision
from posd.store import sequencing as numbering
from posd.store.sequencing import LogEntry
from posd.testing.server import PostgresServer

CREATE = """
    SELECT dinedesk_main.pos_create_tenant('shop-' || n, 'Shop', 'GBP', 'Europe/London', 'GB')
      FROM generate_series(%s, %s) AS n
"""


def event(tenant_id: int, size: int) -> LogEntry:
    return LogEntry(tenant_id, "notice", json.dumps({"text": "x" * size}))


def order(tenant_id: int, number: int, size: int) -> LogEntry:
    """Return a new order with items that compress as well as real ones."""
    items = [
        {"name": f"Dish {n} of {uuid4().hex[:12]}", "price": n / 10, "quantity": 1 + n % 3}
        for n in range(size // 75)
    ]
    order_id = f"{uuid4().hex}-{number}"
    content = {"orderId": order_id, "status": "new", "version": 1, "items": items}
    text = json.dumps(content, separators=(",", ":"))
    return LogEntry(
        tenant_id,
        "new_order",
        text,
        order_id=order_id,
        snapshot=text,
        status="new",
        version=1,
    )


def events_of_many(tenants: int) -> list[LogEntry]:
    return [event(1 + n % tenants, 1000) for n in range(30)]


def measure(connection: Any, name: str, made: Callable[[], list[LogEntry]], rounds: int) -> None:
    executor, node, took = BlockingExecutor(connection), uuid4(), []
    for _ in range(rounds):
        entries = made()
        began = time.perf_counter()
        run_to_completion(executor.execute("BEGIN"))
        run_to_completion(numbering.record_entries(executor, node, entries))
        run_to_completion(executor.execute("COMMIT"))
        took.append(1000 * (time.perf_counter() - began))
    print(f"{name:55} {median(took):9.1f} {min(took):9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tenants", default="1,100,1000")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    server = PostgresServer.start(durable=True)
    try:
        dsn = server.dsn("numbering")
        migrations.bootstrap(dsn)
        with closing(migrations.connect(dsn)) as connection, connection.cursor() as cursor:
            provision.migrate(connection)
            there = 0
            print(f"{'batch':55} {'median ms':>9} {'least ms':>9}")
            for tenants in map(int, options.tenants.split(",")):
                for first in range(there + 1, tenants + 1, 50):
                    cursor.execute(CREATE, (first, min(first + 49, tenants)))
                there = tenants
                cursor.execute("ANALYZE")
                if tenants == 1:
                    measure(
                        connection,
                        "500 events of 1.5 KB, 1 tenant",
                        lambda: [event(1, 1500) for _ in range(500)],
                        options.rounds,
                    )
                    measure(
                        connection,
                        "200 new orders of 35 KB, 1 tenant",
                        lambda: [order(1, n, 35_000) for n in range(200)],
                        max(3, options.rounds // 3),
                    )
                    measure(
                        connection,
                        "30 new orders of 35 KB (a batch of 1 MiB), 1 tenant",
                        lambda: [order(1, n, 35_000) for n in range(30)],
                        options.rounds,
                    )
                measure(
                    connection,
                    f"30 events of 1 KB of up to 30 tenants, {tenants} present",
                    partial(events_of_many, tenants),
                    options.rounds,
                )
    finally:
        server.stop()


if __name__ == "__main__":
    main()
