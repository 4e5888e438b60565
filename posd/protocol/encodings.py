"""How a message is put into bytes on each road to a till. Pure.

The message is the same JSON everywhere. On a WebSocket it is a frame, in a stream of server-sent events
an event of those, and in the answer to a poll it stands as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from attrs import frozen

from posd.protocol import frames
from posd.values import Seq


@frozen(eq=False)
class WireFormat:
    """One way to write messages.

    `write` takes the type of a message, its JSON, and its position if it is an event. `greeting` is
    what `connected` says to a person. Something has to be written every `keepalive_seconds` seconds at least.
    """

    write: Callable[[str, bytes, Seq | None], bytes]
    greeting: str = ""
    keepalive_seconds: float = math.inf


def _server_sent(kind: str, text: bytes, seq: Seq | None) -> bytes:
    """One event of `text/event-stream` (WHATWG HTML, "Server-sent events").

    A line ends a field there, so that a text of several lines is that many fields; what reads them
    joins them again. `id` is the position to name when one comes back.
    """
    head = b"event: %b\n" % kind.encode()
    if seq is not None:
        head = b"id: %d\n%b" % (seq, head)
    return b"%bdata: %b\n\n" % (head, b"\ndata: ".join(text.splitlines()))


WEBSOCKET: Final = WireFormat(
    lambda kind, text, seq: frames.text_frame(text), "Connected to POS WebSocket"
)
# Proxies and mobile networks forget a connection on which nothing is said, many after half a minute.
SERVER_SENT: Final = WireFormat(
    _server_sent, "Connected to POS event stream", keepalive_seconds=15.0
)
PLAIN: Final = WireFormat(lambda kind, text, seq: text)
