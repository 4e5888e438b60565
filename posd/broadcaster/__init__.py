"""Publish events from a platform written in Python, with Twisted or with blocking calls.

    broadcaster = BlockingBroadcaster("https://pos.example.com:9010", key)
    broadcaster.broadcast_new_order("kitchen", order)

`Broadcaster` is for Twisted, `BlockingBroadcaster` for other programs. Both have the same methods and
send the same requests. A method returns when the event is durable, and raises `PublishFailed` if it was
not published. Failed requests are repeated for a limited time with the same idempotency key, so a lost
answer does not lead to a second event.
"""

from __future__ import annotations

from posd.broadcaster.blocking import BlockingBroadcaster
from posd.broadcaster.calls import (
    CallFailed,
    ConnectionStats,
    PublishedEvent,
    PublishFailed,
    TerminalStats,
)
from posd.broadcaster.nonblocking import Broadcaster
from posd.security.dialing import Credentials
from posd.values import PublishWarning

__all__ = [
    "BlockingBroadcaster",
    "Broadcaster",
    "CallFailed",
    "ConnectionStats",
    "Credentials",
    "PublishFailed",
    "PublishWarning",
    "PublishedEvent",
    "TerminalStats",
]
