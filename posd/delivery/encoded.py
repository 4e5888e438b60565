"""Events as they are written to tills: once in each dialect, for all tills that get them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from attrs import define, field

from posd.delivery.send_queue import Chunk
from posd.protocol import messages
from posd.protocol.encodings import Dialect
from posd.values import Event, Seq

_CHUNK_BYTES: Final = 64 * 1024
_ENVELOPE_BYTES: Final = 150


@define(eq=False)
class Encoded:
    """An event as tills are sent it: by dialect, live or replayed. Each form is made when it is needed."""

    event: Event
    _slug: str
    _written: dict[tuple[Dialect, bool], bytes] = field(init=False, factory=dict)

    @property
    def seq(self) -> Seq:
        return self.event.seq

    @property
    def size(self) -> int:
        """About how many bytes it has in one form."""
        return _ENVELOPE_BYTES + len(self.event.data) + len(self.event.beside)

    def written(self, dialect: Dialect, *, replay: bool = False) -> bytes:
        data = self._written.get((dialect, replay))
        if data is None:
            text = messages.event_text(self.event, self._slug, replay)
            data = dialect.write(self.event.type, text, self.event.seq)
            self._written[dialect, replay] = data
        return data


def chunks(framed: Sequence[tuple[bytes, Seq]]) -> Iterator[Chunk]:
    """Join consecutive encoded events into chunks of up to 64 KiB. A longer event is a chunk of its own."""
    start = size = 0
    for index, (frame, _) in enumerate(framed):
        if size and size + len(frame) > _CHUNK_BYTES:
            yield _joined(framed[start:index])
            start, size = index, 0
        size += len(frame)
    if framed:
        yield _joined(framed[start:])


def _joined(framed: Sequence[tuple[bytes, Seq]]) -> Chunk:
    return Chunk(b"".join(frame for frame, _ in framed), framed[0][1], framed[-1][1])
