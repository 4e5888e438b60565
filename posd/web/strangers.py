"""Who was not let in: counted, and told to the operator in a line each, as many as a journal bears.

A line has an address and what posd answered: nothing of what was sent but a tenant's name, if it is one. An
address gets a few lines at once and then one a minute, all together a few a second; the next line that
is written says how many were not.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from attrs import define, field
from twisted.logger import Logger

from posd.limits import Clock, TokenBucket, place
from posd.values import SLUG
from posd.web.render import Call

_AT_ONCE: Final = 5
_PER_SECOND: Final = 1 / 60
_ALL_AT_ONCE: Final = 50
_ALL_PER_SECOND: Final = 1.0
_MOST_PLACES: Final = 10_000

_log = Logger()


@define(eq=False)
class Strangers:
    """Notes refusals. `handshake` is told the code of each that was a till's."""

    clock: Clock = time.monotonic
    handshake: Callable[[str], None] = lambda code: None
    _all: TokenBucket = field(init=False)
    _places: OrderedDict[str, TokenBucket] = field(factory=OrderedDict, init=False)
    _unsaid: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._all = TokenBucket(_ALL_PER_SECOND, _ALL_AT_ONCE, self.clock)

    def refused(self, call: Call, slug: str, status: int, code: str) -> None:
        """A caller was refused at the door of a tenant; `slug` is empty where none is named."""
        address = call.address
        if not (self._bucket(place(address)).take() and self._all.take()):
            self._unsaid += 1
            return
        unsaid, self._unsaid = self._unsaid, 0
        _log.info(
            "not let in: operation={operation!r} tenant={tenant} address={address} status={status}"
            " code={code} unsaid={unsaid}",
            operation=call.operation,
            tenant=slug if SLUG.fullmatch(slug) else "",
            address=address,
            status=status,
            code=code,
            unsaid=unsaid,
        )

    def till_refused(self, call: Call, slug: str, status: int, code: str) -> None:
        """A handshake was refused."""
        self.handshake(code)
        self.refused(call, slug, status, code)

    def _bucket(self, where: str) -> TokenBucket:
        bucket = self._places.get(where)
        if bucket is None:
            bucket = self._places[where] = TokenBucket(_PER_SECOND, _AT_ONCE, self.clock)
        self._places.move_to_end(where)
        if len(self._places) > _MOST_PLACES:
            self._places.popitem(last=False)
        return bucket
