"""A town's tills on one thread: thousands of real connections that cost next to nothing each.

A till here asks for a WebSocket, reads, answers a Close frame, and notes when and how its connection
ended. Frames are understood as far as that takes (RFC 6455 §5.2); `wire.Till` is the one that looks.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, Self

from attrs import define, field

from tests.integration.harness import Daemon
from tests.integration.peer import CLOSE, TEXT, frame, handshake, request

_AT_ONCE: Final = 100
"""Handshakes that are under way at the same time."""
_PATIENCE: Final = 300.0


@define(eq=False)
class Member(asyncio.Protocol):
    """One till. `code` is that of posd's Close frame, 1006 if it hung up without one."""

    path: str
    headers: Mapping[str, str]
    messages: int = 0
    code: int | None = None
    told_at: float = 0.0
    """When the Close frame came, or the end, by `time.monotonic`."""
    greeted: asyncio.Event = field(factory=asyncio.Event)
    gone: asyncio.Event = field(factory=asyncio.Event)
    refusal: bytes = b""
    _transport: Any = None
    _upgraded: bool = False
    _read: bytearray = field(factory=bytearray)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        asked = request("GET", self.path, [*handshake(), *self.headers.items()])
        self._transport.write(asked)

    def data_received(self, data: bytes) -> None:
        self._read += data
        if not self._upgraded:
            head, end, rest = bytes(self._read).partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self.refusal = head
                self._transport.abort()
                return
            self._upgraded, self._read = True, bytearray(rest)
        while self._take():
            pass

    def connection_lost(self, exc: Exception | None) -> None:
        if self.code is None:
            self.code, self.told_at = 1006, time.monotonic()
        self.greeted.set()
        self.gone.set()

    def leave(self) -> None:
        self._transport.abort()

    def _take(self) -> bool:
        """Take one whole frame, if there is one."""
        if len(self._read) < 2:
            return False
        opcode, length, start = self._read[0] & 0x0F, self._read[1] & 0x7F, 2
        if length >= 126:
            start += 2 if length == 126 else 8
            length = int.from_bytes(self._read[2:start], "big")
        if len(self._read) < start + length:
            return False
        payload = bytes(self._read[start : start + length])
        del self._read[: start + length]
        if opcode == TEXT:
            self.messages += 1
            self.greeted.set()
        elif opcode == CLOSE and self.code is None:
            self.code, self.told_at = int.from_bytes(payload[:2], "big"), time.monotonic()
            self._transport.write(frame(CLOSE, payload[:2]))
        return True


@define(eq=False)
class Crowd:
    """Tills that are connected to one daemon; blocking, for use from a test."""

    members: Sequence[Member]
    _loop: asyncio.AbstractEventLoop

    @classmethod
    def gather(cls, daemon: Daemon, tills: Sequence[tuple[str, Mapping[str, str]]]) -> Self:
        """Connect one till for each path with headers, and wait until all are greeted."""
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        crowd = cls([Member(path, headers) for path, headers in tills], loop)
        crowd._run(crowd._connect(daemon.port, daemon.tls()))
        return crowd

    def ended(self) -> None:
        """Wait until everybody is gone."""
        self._run(self._everybody_gone())

    def close(self) -> None:
        """Be gone without a word."""
        self._run(self._leave())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self, work: Any) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        done.result(_PATIENCE)

    async def _connect(self, port: int, tls: ssl.SSLContext) -> None:
        places = asyncio.Semaphore(_AT_ONCE)

        async def connect(member: Member) -> None:
            async with places:
                await self._loop.create_connection(
                    lambda: member,
                    "127.0.0.1",
                    port,
                    ssl=tls,
                    server_hostname="localhost",
                    ssl_handshake_timeout=_PATIENCE,
                )
                await member.greeted.wait()
                assert member.messages, (member.refusal, member.code)

        await asyncio.gather(*map(connect, self.members))

    async def _everybody_gone(self) -> None:
        for member in self.members:
            await member.gone.wait()

    async def _leave(self) -> None:
        for member in self.members:
            if not member.gone.is_set():
                member.leave()
