"""Measure the cost of the bell for shops, and the delay from COMMIT to the till.

    python bench/bell.py commits [--rounds 5] [--seconds 5] [--sessions 16] [--standby-ms 20]
    python bench/bell.py busy [--rounds 5] [--seconds 5]
    python bench/bell.py latency [--seconds 20]

`commits`: posd does not run. pgbench inserts orders into a hooked table, one in each transaction, in turn
with the bell, with `posd.notify = 'off'`, and with a NOTIFY for each order. The program prints the commits
per second of each round, and the median ratio to `off`. With `--standby-ms`, each COMMIT waits for a
standby with this round-trip time.

`busy`: posd delivers 500 orders per second that pgbench inserts, in turn with the bell and with
`posd.notify = 'off'`. The program prints the duration of the shop's transactions, and the median ratio of
the p99.

`latency`: posd runs, with TLS and a till. The program prints the time from sending COMMIT until the till has
the order, for single orders and for 100 orders per second, also while another shop's transaction that has
placed an order is open. It also prints the cost of an idle doorman in each state: processor time of posd
and of the server process of its connection.

PostgreSQL runs with fsync. pgbench is searched in PATH and in /usr/lib/postgresql.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import psycopg2
from psycopg2.extensions import parse_dsn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.standby import far_standby
from posd.testing.server import PostgresServer
from tests.integration.harness import Daemon, Shop
from tests.integration.wire import Ended, Till

PLACE = "INSERT INTO dinedesk_{slug}.orders (customer_name, total_amount) VALUES ('Ann', 5)"
METHODS = ("bell", "off", "always")
_TICKS = os.sysconf("SC_CLK_TCK")


def pgbench() -> str:
    """Return the path of pgbench."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    path = shutil.which("pgbench") or (str(found[-1]) if found else None)
    if path is None:
        raise SystemExit("not run: pgbench is not installed (Debian: postgresql)")
    return path


def commits(options: argparse.Namespace) -> None:
    with PostgresServer.start(durable=True) as server:
        shop = Shop.open(["kitchen"], server=server)
        rates: dict[str, list[float]] = {method: [] for method in METHODS}
        with far_standby(server, options.standby_ms) if options.standby_ms else nullcontext():
            for _ in range(options.rounds):
                for method in METHODS:
                    rates[method].append(rate(shop, method, options.sessions, options.seconds))
                print(
                    "  ".join(f"{method} {rates[method][-1]:7.0f}" for method in METHODS),
                    flush=True,
                )
        for method in ("bell", "always"):
            ratio = statistics.median(
                a / b for a, b in zip(rates[method], rates["off"], strict=True)
            )
            print(f"{method} / off: {ratio:.2f}")
        shop.close()


def rate(shop: Shop, method: str, sessions: int, seconds: int) -> float:
    """Return commits per second. Every COMMIT notifies while a session holds the doorman's first lock."""
    shop.query(
        "TRUNCATE dinedesk_main.pos_outbox, dinedesk_main.pos_outbox_transactions,"
        " dinedesk_kitchen.orders CASCADE"
    )
    with closing(shop.connect()) as held:
        if method == "always":
            held.cursor().execute("SELECT pg_advisory_lock(7097, 10)")
        said = insert(shop, method, f"--client={sessions}", "--jobs=2", f"--time={seconds}")
    found = re.search(r"tps = ([\d.]+)", said)
    assert found is not None, said
    return float(found[1])


def insert(shop: Shop, method: str, *options: str) -> str:
    """Insert orders with pgbench, one in each transaction. Return its output."""
    parts = parse_dsn(shop.dsn)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(PLACE.format(slug="kitchen") + ";\n")
        script.flush()
        settings = "-c posd.notify=off" if method == "off" else ""
        return subprocess.run(
            [
                *(pgbench(), "--no-vacuum", f"--file={script.name}", *options),
                *(f"--host={parts['host']}", f"--username={parts['user']}"),
                *([f"--port={parts['port']}"] if "port" in parts else []),
                parts["dbname"],
            ],
            env={**os.environ, "PGOPTIONS": settings, "PGPASSWORD": parts.get("password", "")},
            check=True,
            capture_output=True,
            text=True,
        ).stdout


def busy(options: argparse.Namespace) -> None:
    with PostgresServer.start(durable=True) as server:
        shop = Shop.open(["kitchen"], server=server)
        posd = shop.start()
        till = Watched(posd, shop.key())
        place(shop, 50, 2)
        ratios = []
        for _ in range(options.rounds):
            took = {method: times(shop, method, options.seconds) for method in ("bell", "off")}
            ratios.append(quantile(took["bell"], 0.99) / quantile(took["off"], 0.99))
            print(
                *(
                    f"{method}: p50 {quantile(ms, 0.5):.2f} ms, p99 {quantile(ms, 0.99):.2f} ms; "
                    for method, ms in took.items()
                ),
                f"ratio of p99 {ratios[-1]:.2f}",
                flush=True,
            )
        print(f"bell / off: {statistics.median(ratios):.2f}; the till has {len(till.came)} orders")
        posd.stop()
        shop.close()


def times(shop: Shop, method: str, seconds: int) -> list[float]:
    """Return the milliseconds of each transaction, at 500 per second."""
    with tempfile.TemporaryDirectory() as folder:
        log = f"--log-prefix={folder}/times"
        insert(shop, method, "--client=8", f"--time={seconds}", "--rate=500", "--log", log)
        lines = [
            line.split()
            for path in Path(folder).iterdir()
            for line in path.read_text("ascii").splitlines()
        ]
    # The third field is the latency including the schedule lag, which is the seventh field.
    return [(int(each[2]) - int(each[6])) / 1000 for each in lines]


class Watched:
    """A till that records when each order arrives."""

    def __init__(self, posd: Daemon, key: str) -> None:
        self.came: dict[str, float] = {}
        self._till = Till.dial(posd, "/ws/pos/kitchen", {"X-API-Key": key})
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                message = self._till.receive(3600)
            except Ended:
                return
            now = time.perf_counter()
            if message.get("type") == "new_order":
                self.came[str(message["data"]["orderId"])] = now


def place(shop: Shop, rate_: float, seconds: float) -> dict[str, float]:
    """Place orders at a rate. Return the time of sending COMMIT by order id."""
    sent = {}
    with closing(psycopg2.connect(shop.dsn)) as connection, connection.cursor() as cursor:
        ends = due = time.perf_counter()
        ends += seconds
        while due < ends:
            time.sleep(max(0.0, due - time.perf_counter()))
            cursor.execute(PLACE.format(slug="kitchen") + " RETURNING id")
            ((order_id,),) = cursor.fetchall()
            sent[str(order_id)] = time.perf_counter()
            connection.commit()
            due += 1 / rate_
    return sent


@contextmanager
def opened(shop: Shop, is_open: bool) -> Iterator[None]:
    """Hold a transaction of another shop open that has placed an order while the doorman was awake."""
    place(shop, 50, 0.1)
    with closing(psycopg2.connect(shop.dsn)) as connection, connection.cursor() as cursor:
        if is_open:
            cursor.execute(PLACE.format(slug="grill"))
        yield


def latency(options: argparse.Namespace) -> None:
    with PostgresServer.start(durable=True) as server:
        shop = Shop.open(["kitchen", "grill"], server=server)
        posd = shop.start()
        till = Watched(posd, shop.key())
        time.sleep(1)
        place(shop, 50, 3)
        for is_open in (False, True):
            with opened(shop, is_open):
                for name, rate_ in (("lone, one in 1.1 s", 1 / 1.1), ("100 a second", 100.0)):
                    before = costs(shop, posd)
                    began = time.perf_counter()
                    sent = place(shop, rate_, options.seconds)
                    time.sleep(1)
                    took = time.perf_counter() - began
                    waits = [1000 * (till.came[each] - at) for each, at in sent.items()]
                    of_posd, of_server = (
                        100 * (b - a) / took for a, b in zip(before, costs(shop, posd), strict=True)
                    )
                    print(
                        f"{'open transaction, ' if is_open else ''}{name}: {len(waits)} orders,"
                        f" p50 {quantile(waits, 0.5):.1f} ms, p99 {quantile(waits, 0.99):.1f} ms;"
                        f" posd {of_posd:.1f} %, its server process {of_server:.1f} %",
                        flush=True,
                    )
                idle(shop, posd, options.seconds, "dozing" if is_open else "asleep")
        with closing(shop.connect()) as connection, connection.cursor() as cursor:
            # An awake doorman holds neither lock. If we hold both, it cannot fall asleep again.
            for key in (10, 11):
                got = False
                while not got:
                    place(shop, 100, 0.05)
                    cursor.execute("SELECT pg_try_advisory_lock_shared(7097, %s)", (key,))
                    ((got,),) = cursor.fetchall()
            idle(shop, posd, options.seconds, "awake, a look every 4 ms")
        answer = posd.request("GET", "/metrics", key=shop.key("admin", None)).content.decode()
        print(
            *(
                line
                for line in answer.splitlines()
                if re.match("posd_(bell|doorman)[^ ]*_total", line)
            ),
            sep="\n",
        )
        posd.stop()
        shop.close()


def idle(shop: Shop, posd: Daemon, seconds: float, name: str) -> None:
    time.sleep(1)
    before = costs(shop, posd)
    time.sleep(seconds)
    of_posd, of_server = (
        100 * (b - a) / seconds for a, b in zip(before, costs(shop, posd), strict=True)
    )
    print(f"idle, {name}: posd {of_posd:.1f} %, its server process {of_server:.1f} %", flush=True)


def costs(shop: Shop, posd: Daemon) -> tuple[float, float]:
    """Return the seconds of processor time of posd and of the doorman's backend."""
    ((pid,),) = shop.query("SELECT backend_pid FROM dinedesk_main.pos_doorman")
    return _spent(posd.pid), _spent(pid)


def _spent(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def quantile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("commits", "busy", "latency"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--standby-ms", type=float, default=0.0)
    options = parser.parse_args()
    {"commits": commits, "busy": busy, "latency": latency}[options.what](options)


if __name__ == "__main__":
    main()
