"""Who was not let in: counted, and told to the operator in a line each, as many as a journal bears.

A line has an address and what posd answered: nothing of what was sent but a tenant's name, if it is one.
The next line that is written says how many were not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from attrs import define, field
from twisted.logger import Logger

from posd.security.rate_limits import Clock, Mentions
from posd.values import SLUG
from posd.web.http.call import Call

_log = Logger()


@define(eq=False)
class Strangers:
    """Notes refusals. `handshake` is told the code of each that was a till's."""

    clock: Clock = time.monotonic
    handshake: Callable[[str], None] = lambda code: None
    _mentions: Mentions = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._mentions = Mentions(self.clock)

    def refused(self, call: Call, slug: str, status: int, code: str) -> None:
        """A caller was refused at the door of a tenant; `slug` is empty where none is named."""
        unsaid = self._mentions.take(call.address)
        if unsaid is None:
            return
        _log.info(
            "not let in: operation={operation!r} tenant={tenant} address={address} status={status}"
            " code={code} unsaid={unsaid}",
            operation=call.operation,
            tenant=slug if SLUG.fullmatch(slug) else "",
            address=call.address,
            status=status,
            code=code,
            unsaid=unsaid,
        )

    def till_refused(self, call: Call, slug: str, status: int, code: str) -> None:
        """A handshake was refused."""
        self.handshake(code)
        self.refused(call, slug, status, code)
