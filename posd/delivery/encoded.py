"""Events as they are written to tills: encoded once for each wire format, for all tills."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from attrs import define, field

from posd.delivery.send_queue import EventChunk
from posd.protocol import messages
from posd.protocol.encodings import WireFormat
from posd.values import Event, Seq

_CHUNK_BYTES: Final = 64 * 1024
_ENVELOPE_BYTES: Final = 150


@define(eq=False)
class EncodedEvent:
    """An event with its encodings by wire format, live or replayed. An encoding is made at its first use."""

    event: Event
    _slug: str
    _written: dict[tuple[WireFormat, bool], bytes] = field(init=False, factory=dict)

    @property
    def seq(self) -> Seq:
        return self.event.seq

    @property
    def size(self) -> int:
        """The approximate size of one encoding in bytes."""
        return _ENVELOPE_BYTES + len(self.event.data) + len(self.event.extra_members)

    def written(self, wire_format: WireFormat, *, replay: bool = False) -> bytes:
        data = self._written.get((wire_format, replay))
        if data is None:
            text = messages.event_text(self.event, self._slug, replay)
            data = wire_format.write(self.event.type, text, self.event.seq)
            self._written[wire_format, replay] = data
        return data


def chunks(framed: Sequence[tuple[bytes, Seq]]) -> Iterator[EventChunk]:
    """Join consecutive encoded events into chunks of up to 64 KiB. A longer event is a chunk of its own."""
    start = size = 0
    for index, (frame, _) in enumerate(framed):
        if size and size + len(frame) > _CHUNK_BYTES:
            yield _joined(framed[start:index])
            start, size = index, 0
        size += len(frame)
    if framed:
        yield _joined(framed[start:])


def _joined(framed: Sequence[tuple[bytes, Seq]]) -> EventChunk:
    return EventChunk(b"".join(frame for frame, _ in framed), framed[0][1], framed[-1][1])
