"""A proxy between posd and PostgreSQL that can lose every NOTIFY, and nothing else, and that counts.

It reads the server's messages by their framing (PostgreSQL manual, "Message Formats"): a type byte and
a length that counts itself. On a unix socket no negotiation of encryption comes before them.
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

_SOCKET: Final = ".s.PGSQL.5432"
_NOTIFICATION: Final = b"A"
_HEAD: Final = 5


@define(eq=False)
class Proxy:
    """While `deaf`, whoever connects through it hears no NOTIFY; `lost` counts those.

    `asked` counts how often the statements that pass have a text in them, by that text.
    """

    server: Path
    deaf: bool = False
    asked: Counter[bytes] = field(init=False, factory=Counter)
    watched: tuple[bytes, ...] = ()
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
        # At the end of the tests it is cancelled here.
        with suppress(asyncio.CancelledError):
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for each in (writer, downstream):
            each.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                for text in self.watched:
                    self.asked[text] += data.count(text)
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
                writer.write(head + body)
                await writer.drain()
