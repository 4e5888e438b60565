"""Who was not let in: counted, and told to the operator in a line each, as many as a journal bears.

A line has an address and what posd answered: nothing of what was sent but a tenant's name, if it is one.
The next line that is written says how many were not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from attrs import define, field
from twisted.logger import Logger

from posd.security.rate_limits import Clock, RefusalLogLimit
from posd.values import SLUG
from posd.web.http.http_request import HTTPRequest

_log = Logger()


@define(eq=False)
class RefusalLog:
    """Notes refusals. `on_handshake_refused` is told the code of each that was a till's."""

    clock: Clock = time.monotonic
    on_handshake_refused: Callable[[str], None] = lambda code: None
    _limit: RefusalLogLimit = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._limit = RefusalLogLimit(self.clock)

    def refused(self, http_request: HTTPRequest, slug: str, status: int, code: str) -> None:
        """A caller was refused at the door of a tenant; `slug` is empty where none is named."""
        unsaid = self._limit.take(http_request.address)
        if unsaid is None:
            return
        _log.info(
            "not let in: operation={operation!r} tenant={tenant} address={address} status={status}"
            " code={code} unsaid={unsaid}",
            operation=http_request.operation,
            tenant=slug if SLUG.fullmatch(slug) else "",
            address=http_request.address,
            status=status,
            code=code,
            unsaid=unsaid,
        )

    def handshake_refused(
        self, http_request: HTTPRequest, slug: str, status: int, code: str
    ) -> None:
        """A handshake was refused."""
        self.on_handshake_refused(code)
        self.refused(http_request, slug, status, code)
