"""Counts refused clients, and logs them with a limited rate of lines.

A line has the client's address and posd's answer. Of the request it has only the slug of the tenant, if it is
a valid one. `unsaid` is the number of lines that were suppressed before.
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
    """Logs refusals. `on_handshake_refused` is called with the code of each refused handshake of a till."""

    clock: Clock = time.monotonic
    on_handshake_refused: Callable[[str], None] = lambda code: None
    _limit: RefusalLogLimit = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._limit = RefusalLogLimit(self.clock)

    def refused(self, http_request: HTTPRequest, slug: str, status: int, code: str) -> None:
        """Log a refused request. `slug` is the tenant in its URL, or empty."""
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
        """Count and log a refused handshake of a till."""
        self.on_handshake_refused(code)
        self.refused(http_request, slug, status, code)
