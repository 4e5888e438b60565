"""The wire formats of messages for tills: WebSocket, server-sent events and long polls.

The JSON of a message is the same in all formats. A WebSocket carries it in a frame, and an event stream in a
server-sent event. The response to a poll contains the JSON unchanged.
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
    """A way to write messages.

    `write` takes the type of a message, its JSON, and its number if it is an event. `greeting` is the text
    for a person in `connected`. At least every `keepalive_seconds` seconds, posd has to write something.
    """

    write: Callable[[str, bytes, Seq | None], bytes]
    greeting: str = ""
    keepalive_seconds: float = math.inf


def _server_sent(kind: str, text: bytes, seq: Seq | None) -> bytes:
    """Return an event of `text/event-stream` (WHATWG HTML, "Server-sent events").

    A line end terminates a field, so each line of the text is a `data` field; clients join the fields. `id`
    is the position that a client sends as Last-Event-ID when it reconnects.
    """
    head = b"event: %b\n" % kind.encode()
    if seq is not None:
        head = b"id: %d\n%b" % (seq, head)
    return b"%bdata: %b\n\n" % (head, b"\ndata: ".join(text.splitlines()))


WEBSOCKET: Final = WireFormat(
    lambda kind, text, seq: frames.text_frame(text), "Connected to POS WebSocket"
)
# Many proxies and mobile networks drop a connection that is idle for 30 s.
SERVER_SENT: Final = WireFormat(
    _server_sent, "Connected to POS event stream", keepalive_seconds=15.0
)
PLAIN: Final = WireFormat(lambda kind, text, seq: text)
