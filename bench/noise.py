"""Loads of hostile or careless clients, each with a fixed rate.

`neighbours.py` runs each load in a process with the lowest priority, because in reality such clients run on
other machines. Each function of `LOADS` runs until it is cancelled.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import ssl
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from attrs import define, field

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

TEXT, PING, PONG = 0x1, 0x9, 0xA
_HOST: Final = "localhost"


@define
class Target:
    """The posd to load, and the keys of the tenant that causes the load."""

    port: int
    ca: str
    slug: str
    keys: Mapping[str, str]
    """Keys by kind: `tenant`, `platform`."""
    outcomes: Counter[str] = field(factory=Counter)
    """Counts of HTTP status codes and other outcomes."""
    _tls: ssl.SSLContext = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tls = ssl.create_default_context(cafile=self.ca)

    async def dial(self, limit: int = 2**16) -> Stream:
        """Open a TLS connection with a full handshake."""
        return await asyncio.open_connection(
            _HOST, self.port, ssl=self._tls, server_hostname=_HOST, limit=limit
        )

    def request(
        self,
        method: str,
        path: str,
        *,
        key: str,
        body: bytes = b"",
        headers: Mapping[str, str] = {},
    ) -> bytes:
        """Return the bytes of a request on a persistent connection."""
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {_HOST}",
            f"X-API-Key: {key}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        if body or method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + body

    async def ask(self, stream: Stream, request: bytes) -> int:
        """Send a request, read the response, and return its status."""
        reader, writer = stream
        writer.write(request)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                await reader.readexactly(int(line.split(b":")[1]))
        self.outcomes[str(status)] += 1
        if b"connection: close" in head.lower():
            writer.close()
            raise ConnectionError("closed by the server")
        return status

    async def till(self, device: str | None = None) -> Stream:
        """Open a WebSocket. The `connected` message is not read yet."""
        reader, writer = await self.dial()
        headers = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode(),
        }
        if device is not None:
            headers["X-Device-ID"] = device
        path = f"/ws/pos/{self.slug}"
        writer.write(self.request("GET", path, key=self.keys["tenant"], headers=headers))
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1].decode()
        self.outcomes[status] += 1
        if status != "101":
            writer.close()
            raise ConnectionError(f"refused with {status}")
        return reader, writer


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a masked, unfragmented frame (RFC 6455 §5.2). The mask is zero, to save time."""
    if len(payload) < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | len(payload))
    elif len(payload) < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, len(payload))
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, len(payload))
    return head + b"\0\0\0\0" + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return the opcode and the payload of the next frame of a server."""
    head = await reader.readexactly(2)
    length = head[1] & 0x7F
    if length == 126:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
    elif length == 127:
        (length,) = struct.unpack("!Q", await reader.readexactly(8))
    return head[0] & 0x0F, await reader.readexactly(length)


async def paced(rate: float, work: Callable[[], Awaitable[object]], workers: int) -> None:
    """Call `work` `rate` times per second, with at most `workers` calls at a time."""
    loop = asyncio.get_running_loop()
    began, done = loop.time(), 0

    async def worker() -> None:
        nonlocal done
        while True:
            done += 1
            pause = began + done / rate - loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
                await work()

    await asyncio.gather(*(worker() for _ in range(workers)))


def kept(target: Target, make: Callable[[], bytes]) -> Callable[[], Awaitable[None]]:
    """Return a function that sends a request on a pooled connection. A closed connection is replaced."""
    idle: list[Stream] = []

    async def work() -> None:
        stream = idle.pop() if idle else await target.dial(2**21)
        try:
            await target.ask(stream, make())
        except BaseException:
            stream[1].close()
            raise
        idle.append(stream)

    return work


async def handshakes(target: Target) -> None:
    """200 full TLS handshakes per second, without a request."""

    async def work() -> None:
        _, writer = await target.dial()
        target.outcomes["handshake"] += 1
        writer.close()

    await paced(200, work, 50)


async def wrong_keys(target: Target) -> None:
    """1,000 requests per second with unknown keys, on 1,000 connections."""
    path = f"/api/{target.slug}/orders/pending"
    make = lambda: target.request("GET", path, key=f"pos_{secrets.token_hex(32)}")  # noqa: E731
    await paced(1000, kept(target, make), 1000)


async def gets(target: Target) -> None:
    """GET requests with a valid key on 50 connections, without a pause."""
    path = f"/api/{target.slug}/orders/pending?limit=1"
    request = target.request("GET", path, key=target.keys["tenant"])
    await paced(100_000, kept(target, lambda: request), 50)


_NUMBERS: Final = b"[" + b",".join([b"1e399"] * 170_000) + b"]"


async def hostile_reports(target: Target) -> None:
    """20 MB per second of JSON whose numbers are expensive to convert, by POST."""
    body = b'{"reportDate":"2026-01-02","totalSales":1,"totalOrders":1,"data":{"n":%b}}' % _NUMBERS
    path = f"/api/{target.slug}/reports/daily"
    request = target.request("POST", path, key=target.keys["tenant"], body=body)
    await paced(20, kept(target, lambda: request), 8)


async def hostile_messages(target: Target) -> None:
    """20 MB per second of the same JSON in WebSocket messages of 64 KB, from four tills."""
    payload = b'{"type":"status","n":' + _NUMBERS[:61_000].rpartition(b",")[0] + b"]}"
    await _messages(target, frame(TEXT, payload), 320)


async def pings(target: Target) -> None:
    """20,000 ping frames of 125 bytes per second, from four tills."""
    await _messages(target, frame(PING, b"x" * 125) * 50, 400)


async def chatter(target: Target) -> None:
    """4,000 small text messages per second, from four tills."""
    await _messages(target, frame(TEXT, b'{"type":"ping"}') * 20, 200)


async def _messages(target: Target, data: bytes, rate: float) -> None:
    idle: list[Stream] = []

    async def drain(stream: Stream) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await stream[0].read(2**16):
                pass

    async def work() -> None:
        stream = idle.pop() if idle else await target.till()
        if not hasattr(stream[1], "draining"):
            stream[1].draining = asyncio.ensure_future(drain(stream))  # type: ignore[attr-defined]
        try:
            stream[1].write(data)
            await stream[1].drain()
            target.outcomes["sent"] += 1
        except BaseException:
            stream[1].close()
            raise
        idle.append(stream)

    await paced(rate, work, 4)


async def unread_answers(target: Target) -> None:
    """108 connections that request a thousand open orders of 35 KB repeatedly and do not read the answers."""
    path = f"/api/{target.slug}/orders/pending?limit=1000"
    request = target.request("GET", path, key=target.keys["tenant"])

    async def work() -> None:
        _, writer = await target.dial(1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        try:
            for _ in range(30):
                if writer.transport.is_closing():
                    break
                writer.write(request)
                await asyncio.sleep(1)
        finally:
            target.outcomes["abandoned"] += 1
            writer.transport.abort()

    await paced(100, work, 108)


async def unread_streams(target: Target) -> None:
    """100 server-sent event streams from the first event on, which are not read."""
    headers = {"Last-Event-ID": "0"}
    path = f"/api/{target.slug}/events/stream"
    request = target.request("GET", path, key=target.keys["tenant"], headers=headers)

    async def work() -> None:
        _, writer = await target.dial(1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request)
        await asyncio.sleep(20)
        writer.transport.abort()

    await paced(100, work, 100)


async def acknowledgements(target: Target) -> None:
    """150 tills with device ids that acknowledge ten events per second each."""

    async def member(number: int) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
                reader, writer = await target.till(f"ACK_{number}")
                while True:
                    opcode, payload = await read_frame(reader)
                    if opcode == PING:
                        writer.write(frame(PONG, payload))
                    elif opcode == TEXT and b'"id":' in payload:
                        writer.write(
                            frame(
                                1,
                                json.dumps(
                                    {"type": "ack", "id": json.loads(payload)["id"]}
                                ).encode(),
                            )
                        )
                        target.outcomes["ack"] += 1
            await asyncio.sleep(0.5)

    body = json.dumps({"type": "notice", "data": {"text": "x" * 300}}).encode()
    request = target.request(
        "POST", f"/api/{target.slug}/events", key=target.keys["platform"], body=body
    )
    publishing = paced(10, kept(target, lambda: request), 2)
    await asyncio.gather(publishing, *(member(number) for number in range(150)))


async def reconnections(target: Target) -> None:
    """100 tills with device ids that connect together, disconnect after two seconds, and reconnect."""
    while True:

        async def member(number: int) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
                _, writer = await target.till(f"POS_{number}")
                await asyncio.sleep(2)
                writer.transport.abort()

        await asyncio.gather(*(member(number) for number in range(100)))


async def points(target: Target) -> None:
    """Additions of 60,000 points to accounts, without a pause, on four connections."""
    body = json.dumps({"points": 60000}).encode()
    number = 0

    def make() -> bytes:
        nonlocal number
        number += 1
        phone = f"+4420794{number % 100000:05}"
        path = f"/api/{target.slug}/loyalty/{phone}/add"
        return target.request("POST", path, key=target.keys["tenant"], body=body)

    await paced(100_000, kept(target, make), 4)


async def publishing(target: Target) -> None:
    """Bodies of 500 events, without a pause, on eight connections."""
    event = {"type": "notice", "data": {"text": "x" * 1500}}
    body = json.dumps({"events": [event] * 500}).encode()
    request = target.request(
        "POST", f"/api/{target.slug}/events", key=target.keys["platform"], body=body
    )
    await paced(100_000, kept(target, lambda: request), 8)


LOADS: Final[Mapping[str, Callable[[Target], Awaitable[None]]]] = {
    load.__name__: load
    for load in (
        *(handshakes, wrong_keys, gets, hostile_reports, hostile_messages, pings, chatter),
        *(unread_answers, unread_streams, acknowledgements, reconnections, points, publishing),
    )
}


async def _main(arguments: dict[str, Any]) -> None:
    target = Target(arguments["port"], arguments["ca"], arguments["slug"], arguments["keys"])
    work = asyncio.ensure_future(LOADS[arguments["load"]](target))
    # A line or the end of standard input stops the load.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await work
    print(json.dumps(target.outcomes), flush=True)
    os._exit(0)


if __name__ == "__main__":
    os.nice(19)
    asyncio.run(_main(json.loads(sys.argv[1])))
