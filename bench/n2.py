"""How long another tenant's publishing takes while somebody keeps posd busy.

    python bench/neighbours.py [SECONDS [LOAD]]

A daemon and its PostgreSQL run on this machine, and so do those who load them, each in a process of its own:
the figures are for comparison with each other. A line for each load: requests a second and their answers,
then the median and the 99th percentile of what the other tenant's calls took, in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.integration.harness import Daemon, Shop

_WARM_UP: Final = 12.0
"""Until all connections stand: a thousand handshakes take their time on both sides."""
_SECONDS: Final = 15.0
_PAUSE: Final = 0.02
_NOTE: Final = json.dumps({"type": "note", "data": {"n": 1}}).encode()
Ask = Callable[[], bytes]


def request(method: str, path: str, key: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: bytes) -> int:
    """Send a request and read its answer: the status, 0 if posd hung up."""
    try:
        writer.write(what)
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        await reader.readexactly(length)
    except (OSError, asyncio.IncompleteReadError):
        return 0
    return int(head.split(b" ")[1])


async def load(
    daemon: Daemon, connections: int, pause: float, ask: Ask, seconds: float, answers: Counter[int]
) -> None:
    """Ask on so many connections: each again as soon as it has its answer, but not before the pause."""
    limit, trust = asyncio.Semaphore(20), daemon.tls()
    end = time.monotonic() + seconds

    async def one(number: int) -> None:
        place = (f"127.0.{1 + number % 40}.1", 0)
        while time.monotonic() < end:
            async with limit:
                try:
                    reader, writer = await asyncio.open_connection(
                        "127.0.0.1",
                        daemon.port,
                        ssl=trust,
                        server_hostname="localhost",
                        local_addr=place,
                    )
                except OSError:
                    answers[0] += 1
                    continue
            while time.monotonic() < end:
                due = time.monotonic() + pause
                status = await exchange(reader, writer, ask())
                answers[status] += 1
                if not status:
                    break
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            writer.close()

    await asyncio.gather(*(one(number) for number in range(connections)))


def loading(
    daemon: Daemon,
    connections: int,
    pause: float,
    prefix: bytes,
    counter: bool,
    seconds: float,
    results: Any,
) -> None:
    """What a process of its own does."""
    answers: Counter[int] = Counter()
    numbers = iter(range(10**9))

    def ask() -> bytes:
        return prefix.replace(b"NUMBER", b"%012d" % next(numbers)) if counter else prefix

    asyncio.run(load(daemon, connections, pause, ask, seconds, answers))
    results.put(dict(answers))


async def publish(daemon: Daemon, slug: str, key: str, seconds: float) -> list[float]:
    """What calls took that are made one after the other."""
    took = []
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", daemon.port, ssl=daemon.tls(), server_hostname="localhost"
    )
    what = request("POST", f"/api/{slug}/events", key, _NOTE)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        status = await exchange(reader, writer, what)
        assert status == 201, status
        took.append(1000 * (time.monotonic() - began))
        await asyncio.sleep(_PAUSE)
    writer.close()
    return took


def measured(
    daemon: Daemon, key: str, seconds: float, what: tuple[int, float, bytes, bool] | None
) -> str:
    if what is None:
        took, answers = asyncio.run(publish(daemon, "good", key, seconds)), {}
    else:
        results: Any = multiprocessing.Queue()
        process = multiprocessing.Process(
            target=loading, args=(daemon, *what, seconds + _WARM_UP + 2, results)
        )
        process.start()
        # Until the connections stand.
        time.sleep(_WARM_UP)
        took = asyncio.run(publish(daemon, "good", key, seconds))
        answers = results.get()
        process.join()
    took.sort()
    rate = sum(answers.values()) / (seconds + _WARM_UP + 2)
    p99 = took[int(0.99 * len(took))]
    return f"{rate:8.0f} {statistics.median(took):8.1f} {p99:8.1f} {took[-1]:8.1f}  {answers}"


def main() -> Iterator[str]:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else _SECONDS
    shop = Shop.open(["good", "bad"])
    try:
        daemon = shop.start()
        platform, till = shop.key("platform", "good"), shop.key("tenant", "bad")
        time.sleep(1)
        wrong = request("GET", "/api/bad/orders/pending", "pos_NUMBER")
        asked = request("GET", "/api/bad/orders/pending", till)
        yield f"{'':24}{'/s':>8} {'p50':>8} {'p99':>8} {'max':>8}  answers"
        loads: dict[str, tuple[int, float, bytes, bool] | None] = {
            "quiet": None,
            "1000 wrong keys": (1000, 1.0, wrong, True),
            "GETs, 50 connections": (50, 0.0, asked, False),
            "quiet again": None,
        }
        for name, what in loads.items():
            if len(sys.argv) > 2 and sys.argv[2] not in name:
                continue
            yield f"{name:24}{measured(daemon, platform, seconds, what)}"
    finally:
        shop.close()


if __name__ == "__main__":
    for line in main():
        print(line, flush=True)
