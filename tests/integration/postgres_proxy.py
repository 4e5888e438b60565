"""A proxy between posd and PostgreSQL that can lose every NOTIFY, or swallow everything.

It reads the server's messages by their framing (PostgreSQL manual, "Message Formats"): a type byte and
a length that counts itself. On a unix socket no negotiation of encryption comes before them.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import define, field

_SOCKET: Final = ".s.PGSQL.5432"
_NOTIFICATION: Final = b"A"
_HEAD: Final = 5


@define(eq=False)
class Proxy:
    """While `deaf`, no NOTIFY passes, and `lost` counts them; while `mute`, nothing passes at all."""

    server: Path
    deaf: bool = False
    mute: bool = False
    lost: int = field(init=False, default=0)
    folder: Path = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(init=False, factory=asyncio.new_event_loop)
    _thread: threading.Thread = field(init=False)

    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="posd-proxy-"))
        listening = asyncio.start_unix_server(self._serve, self.folder / _SOCKET)
        self._loop.run_until_complete(listening)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()
        shutil.rmtree(self.folder)

    def dsn(self, dbname: str) -> str:
        return f"host={self.folder} port=5432 dbname={dbname} user=postgres"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, downstream = await asyncio.open_unix_connection(self.server / _SOCKET)
        except OSError:
            writer.close()
            return
        pumps = {
            asyncio.create_task(self._requests(reader, downstream)),
            asyncio.create_task(self._answers(upstream, writer)),
        }
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for each in (writer, downstream):
            each.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._pause()
                writer.write(data)
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
