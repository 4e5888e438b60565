"""How a platform written in Python tells the tills: `Broadcaster` with Twisted, else the blocking one.

    broadcaster = BlockingBroadcaster("https://pos.example.com:9010", key)
    broadcaster.broadcast_new_order("kitchen", order)

Both have the same methods and send the same requests. An event that was published is durable; one
that was not raises `PublishFailed`. The connection is tried again, for a bounded time, under one
idempotency key, so an order is never announced twice because an answer was lost.
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
