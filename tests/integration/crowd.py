"""Thousands of WebSocket clients on one thread, for tests of many tills at once.

A client sends the handshake, reads frames, answers a Close frame, and records when and how its
connection ended. It parses frames only as far as that needs (RFC 6455 §5.2); `wire.Till` checks them.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, Self

from attrs import define, field

from tests.integration.harness import Daemon
from tests.integration.peer import CLOSE, TEXT, frame, handshake, request

_AT_ONCE: Final = 100
"""Handshakes that are under way at the same time."""
_PATIENCE: Final = 300.0
_ATTEMPT_SECONDS: Final = 10.0
"""How long a deployed till waits for the greeting before it gives up the attempt."""
_RETRY_AFTER: Final = re.compile(rb"(?i)\r\nretry-after: *([0-9]+)")


@define(eq=False)
class Member(asyncio.Protocol):
    """One till. `code` is that of posd's Close frame, 1006 if it hung up without one.

    `refusals` counts the attempts that failed before the one that was greeted.
    """

    path: str
    headers: Mapping[str, str]
    messages: int = 0
    refusals: int = 0
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

    def say(self, text: bytes) -> None:
        self._transport.write(frame(TEXT, text))

    async def come(self, connect: Callable[[], Awaitable[object]], until: float) -> None:
        """Connect and wait for the greeting; until then, come again after each refusal.

        `until` is a time of `time.monotonic`. Waits as long as the refusal's Retry-After says.
        """
        while True:
            self._reset()
            try:
                await asyncio.wait_for(connect(), _ATTEMPT_SECONDS)
                await asyncio.wait_for(self.greeted.wait(), _ATTEMPT_SECONDS)
            except OSError:  # of which TimeoutError is one
                if self._transport is not None:
                    self._transport.abort()
            if self.messages or time.monotonic() > until:
                break
            self.refusals += 1
            pause = _RETRY_AFTER.search(self.refusal)
            await asyncio.sleep(random.uniform(0.5, 1.0) * (int(pause[1]) if pause else 1))
        assert self.messages, (self.refusal, self.code)

    def _reset(self) -> None:
        self._upgraded, self._read, self._transport = False, bytearray(), None
        self.code, self.told_at, self.refusal = None, 0.0, b""
        self.greeted.clear()
        self.gone.clear()

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
    def gather(
        cls,
        daemon: Daemon,
        tills: Sequence[tuple[str, Mapping[str, str]]],
        *,
        at_once: int = _AT_ONCE,
        plain: int | None = None,
        patience: float = 0.0,
    ) -> Self:
        """Connect one till for each path with headers, and wait until all are greeted.

        `at_once` handshakes are under way together. `plain` is a port without TLS. A till that is
        refused comes again for `patience` seconds.
        """
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        crowd = cls([Member(path, headers) for path, headers in tills], loop)
        tls = daemon.tls() if plain is None else None
        crowd._run(crowd._connect(plain or daemon.port, tls, at_once, patience))
        return crowd

    def say(self, text: bytes) -> None:
        """Have every till send one text message, all in one turn of the loop."""

        async def say() -> None:
            for member in self.members:
                member.say(text)

        self._run(say())

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

    async def _connect(
        self, port: int, tls: ssl.SSLContext | None, at_once: int, patience: float
    ) -> None:
        places, until = asyncio.Semaphore(at_once), time.monotonic() + patience
        more: dict[str, Any] = {}
        if tls is not None:
            more = {"server_hostname": "localhost", "ssl_handshake_timeout": _PATIENCE}

        async def connect(member: Member) -> None:
            def dial() -> Awaitable[object]:
                return self._loop.create_connection(
                    lambda: member, "127.0.0.1", port, ssl=tls, **more
                )

            async with places:
                await member.come(dial, until)

        await asyncio.gather(*map(connect, self.members))

    async def _everybody_gone(self) -> None:
        for member in self.members:
            await member.gone.wait()

    async def _leave(self) -> None:
        for member in self.members:
            if not member.gone.is_set():
                member.leave()
