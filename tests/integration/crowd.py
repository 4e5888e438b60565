"""Thousands of WebSocket clients on one thread, for tests with many tills.

A client sends the handshake, reads frames, answers pings and a Close frame, and records when and how its
connection ended. It parses frames only as far as this requires (RFC 6455 §5.2). `wire.Till` checks them.
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
from tests.integration.peer import CLOSE, PING, PONG, TEXT, frame, handshake, request

_AT_ONCE: Final = 100
"""The number of concurrent handshakes."""
_PATIENCE: Final = 300.0
_ATTEMPT_SECONDS: Final = 10.0
"""Seconds that a deployed till waits for the `connected` message before it gives up."""
_LONGEST_PAUSE: Final = 16
_RETRY_AFTER: Final = re.compile(rb"(?i)\r\nretry-after: *([0-9]+)")


@define(eq=False)
class Member(asyncio.Protocol):
    """A till. `code` is that of posd's Close frame, or 1006 without one.

    `refusals` counts the failed attempts before the first success.
    """

    path: str
    headers: Mapping[str, str]
    messages: int = 0
    refusals: int = 0
    code: int | None = None
    told_at: float = 0.0
    """The time of the Close frame, or of the end, by `time.monotonic`."""
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
        """Connect and wait for `connected`. Try again after each refusal.

        `until` is a time of `time.monotonic`. Between two attempts it waits as tills must: at least for
        Retry-After, and longer each time, with jitter.
        """
        while True:
            self._reset()
            try:
                await asyncio.wait_for(connect(), _ATTEMPT_SECONDS)
                await asyncio.wait_for(self.greeted.wait(), _ATTEMPT_SECONDS)
            except OSError:  # includes TimeoutError
                if self._transport is not None:
                    self._transport.abort()
            if self.messages or time.monotonic() > until:
                break
            self.refusals += 1
            told = _RETRY_AFTER.search(self.refusal)
            pause = max(int(told[1]) if told else 1, min(2**self.refusals, _LONGEST_PAUSE))
            await asyncio.sleep(random.uniform(0.5, 1.0) * pause)
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
        elif opcode == PING:
            self._transport.write(frame(PONG, payload))
        elif opcode == CLOSE and self.code is None:
            self.code, self.told_at = int.from_bytes(payload[:2], "big"), time.monotonic()
            self._transport.write(frame(CLOSE, payload[:2]))
        return True


@define(eq=False)
class Crowd:
    """Tills that are connected to one daemon. Blocking, for use in a test."""

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
        """Connect one till for each path and headers, and wait until all have `connected`.

        `at_once` is the number of concurrent handshakes. `plain` is a port without TLS. A refused till
        tries again for `patience` seconds.
        """
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        crowd = cls([Member(path, headers) for path, headers in tills], loop)
        tls = daemon.tls() if plain is None else None
        crowd._run(crowd._connect(plain or daemon.port, tls, at_once, patience))
        return crowd

    def say(self, text: bytes) -> None:
        """Let every till send a text message, in one iteration of the loop."""

        async def say() -> None:
            for member in self.members:
                member.say(text)

        self._run(say())

    def ended(self) -> None:
        """Wait until all connections have ended."""
        self._run(self._everybody_gone())

    def close(self) -> None:
        """Close all connections without a Close frame."""
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
