"""Sends long answers in parts, as the client reads them, and bounds the memory of unsent answers.

A client that requests long answers and does not read makes posd hold them. So posd counts their bytes, in all
and for each key or address, and disconnects a client that reads nothing for some time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.logger import Logger
from twisted.web.server import Request
from zope.interface import implementer

from posd.security.rate_limits import TokenBucket
from posd.security.request_rates import RateAccount

LONG: Final = 16 * 1024
"""A body of more bytes is written in parts."""
_PART_BYTES: Final = 32 * 1024
MOST_BYTES: Final = 64 * 1024 * 1024
"""The most bytes of all unfinished answers."""
MOST_BYTES_OF_ONE: Final = 16 * 1024 * 1024
"""The most bytes of unfinished answers to one key, or to the clients without a key of one address."""
PATIENCE_SECONDS: Final = 20.0
"""A client that reads nothing of an answer for this time is disconnected."""
_LOG_LINES_PER_SECOND, _LOG_LINES_AT_ONCE = 1 / 60, 5

_log = Logger()


@define(eq=False)
class UnsentAnswers:
    """The long answers that are being written.

    If they have too many bytes, the oldest answer of the key or address with the most bytes is aborted,
    because its client has had the most time to read it.
    """

    reactor: Any
    charge: Callable[[RateAccount, int], None] = lambda who, size: None
    """Called with the account and the bytes of each long answer to a credential."""
    _answers: dict[object, dict[LongAnswer, None]] = field(factory=dict, init=False)
    _bytes: dict[object, int] = field(factory=dict, init=False)
    total: int = field(default=0, init=False)
    """The bytes of all unfinished answers."""
    _log_limit: TokenBucket = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._log_limit = TokenBucket(
            _LOG_LINES_PER_SECOND, _LOG_LINES_AT_ONCE, self.reactor.seconds
        )

    def send(self, request: Request, body: bytes, client: RateAccount | str) -> None:
        """Write a body and finish the request. `client` is a credential, or an address without one.

        A request with an unknown key counts for its address. Otherwise a client could send another key with
        each request, and would never be the one with the most bytes.
        """
        owner: object = client
        if isinstance(client, RateAccount):
            self.charge(client, len(body))
            owner = client.shared_scope
        answer = LongAnswer(request, body, owner, self)
        self._answers.setdefault(owner, {})[answer] = None
        self._add(owner, len(body))
        while self._bytes.get(owner, 0) > MOST_BYTES_OF_ONE:
            self._give_up(owner, "too many answers to one key or address are not read")
        while self.total > MOST_BYTES:
            most = max(self._bytes, key=self._bytes.__getitem__)
            self._give_up(most, "too many answers are not read")
        if not answer.is_done:
            answer.begin()

    def remove(self, answer: LongAnswer) -> None:
        """Forget an answer that was written, or whose client has disconnected."""
        held = self._answers[answer.owner]
        del held[answer]
        self._add(answer.owner, -answer.size)
        if not held:
            del self._answers[answer.owner], self._bytes[answer.owner]

    def _add(self, owner: object, count: int) -> None:
        self._bytes[owner] = self._bytes.get(owner, 0) + count
        self.total += count

    def _give_up(self, owner: object, why: str) -> None:
        next(iter(self._answers[owner])).give_up(why)

    def log_given_up(self, sent: int, size: int, why: str) -> None:
        """Log that an answer was aborted: a few times, and then once a minute."""
        if self._log_limit.take():
            _log.warn(
                "an answer of {size} bytes was given up after {sent}: {why};"
                " the connection is closed and the client may ask again",
                size=size,
                sent=sent,
                why=why,
            )


@implementer(IPushProducer)
class LongAnswer:
    """The body of one answer: a push producer for its connection."""

    def __init__(self, request: Request, body: bytes, owner: object, unsent: UnsentAnswers) -> None:
        self.size = len(body)
        self.owner = owner
        self._body = body
        self.is_done = False
        self._request = request
        self._unsent = unsent
        self._sent = 0
        self._paused = False
        self._patience_timer: IDelayedCall | None = None

    def begin(self) -> None:
        """Begin to write the body."""
        self._request.notifyFinish().addErrback(lambda _: self._finish())
        self._request.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        while not (self._paused or self.is_done):
            part = self._body[self._sent : self._sent + _PART_BYTES]
            self._sent += len(part)
            self._request.write(part)
            if self._sent >= self.size:
                self._finish()
                self._request.unregisterProducer()
                self._request.finish()

    def pauseProducing(self) -> None:
        self._paused = True
        self._stop_waiting()
        if not self.is_done:
            why = "the client does not read it"
            self._patience_timer = self._unsent.reactor.callLater(
                PATIENCE_SECONDS, self.give_up, why
            )

    def stopProducing(self) -> None:
        self._finish()

    def give_up(self, why: str) -> None:
        """Abort the connection, because the client does not read or the memory is needed."""
        if not self.is_done:
            self._finish()
            self._unsent.log_given_up(self._sent, self.size, why)
            channel: Any = self._request.channel
            if channel is not None:
                channel.transport.abortConnection()

    def _finish(self) -> None:
        if not self.is_done:
            self.is_done = True
            self._stop_waiting()
            self._unsent.remove(self)
            # The request and its producer refer to each other. Free the body without the garbage collector.
            self._body = b""

    def _stop_waiting(self) -> None:
        if self._patience_timer is not None and self._patience_timer.active():
            self._patience_timer.cancel()
        self._patience_timer = None
