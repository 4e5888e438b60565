"""A proxy between posd and PostgreSQL that drops, delays, cuts or counts messages, or stops them all.

It parses the framing of the server's messages (PostgreSQL manual, "Message Formats"): a type byte, and a
length that includes itself. On a unix socket no negotiation of encryption precedes them.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import define, field

_SOCKET: Final = ".s.PGSQL."
_NOTIFICATION: Final = b"A"
_HEAD: Final = 5


@define(eq=False)
class Proxy:
    """While `deaf`, it drops every NOTIFY and counts them in `lost`. While `mute`, nothing passes.

    It delays requests by `delay` seconds. While it is `cut`, it refuses connections. `asked` counts for
    each text in `watched` how often the requests contain it.
    """

    server: Path
    """The folder of its socket."""
    port: int = 5432
    deaf: bool = False
    mute: bool = False
    delay: float = 0.0
    watched: tuple[bytes, ...] = ()
    asked: Counter[bytes] = field(init=False, factory=Counter)
    _is_cut: bool = field(init=False, default=False)
    _writers: set[asyncio.StreamWriter] = field(init=False, factory=set)
    lost: int = field(init=False, default=0)
    folder: Path = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(init=False, factory=asyncio.new_event_loop)
    _thread: threading.Thread = field(init=False)

    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="posd-proxy-"))
        listening = asyncio.start_unix_server(self._serve, self.folder / f"{_SOCKET}5432")
        self._loop.run_until_complete(listening)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if tasks := asyncio.all_tasks(self._loop):
            self._loop.run_until_complete(asyncio.wait(tasks))
        self._loop.close()
        shutil.rmtree(self.folder)

    def cut(self) -> None:
        """End every connection, and refuse new ones until `mend`."""
        self._is_cut = True
        self._loop.call_soon_threadsafe(self._end_all)

    def mend(self) -> None:
        """Accept connections again."""
        self._is_cut = False

    def _end_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def dsn(self, dbname: str) -> str:
        return f"host={self.folder} port=5432 dbname={dbname} user=postgres"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            upstream, downstream = await asyncio.open_unix_connection(
                self.server / f"{_SOCKET}{self.port}"
            )
        except OSError:
            writer.close()
            return
        pumps = {
            asyncio.create_task(self._requests(reader, downstream)),
            asyncio.create_task(self._answers(upstream, writer)),
        }
        ends = {writer, downstream}
        self._writers |= ends
        # At the end of the tests it is cancelled here.
        with suppress(asyncio.CancelledError):
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        self._writers -= ends
        for pump in pumps:
            pump.cancel()
        for each in (writer, downstream):
            each.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                for text in self.watched:
                    self.asked[text] += data.count(text)
                await self._pause()
                # Data that arrives meanwhile is under way too, and need not wait for this.
                self._loop.call_later(self.delay, writer.write, data)
                if not self.delay:
                    await asyncio.sleep(0)
                    await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(_HEAD)
                body = await reader.readexactly(int.from_bytes(head[1:], "big") - (_HEAD - 1))
                if self.deaf and head[:1] == _NOTIFICATION:
                    self.lost += 1
                    continue
                await self._pause()
                writer.write(head + body)
                await writer.drain()

    async def _pause(self) -> None:
        while self.mute:
            await asyncio.sleep(0.01)
