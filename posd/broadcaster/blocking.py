"""The broadcaster with blocking calls, for Django, Flask or a script.

It uses urllib3 because its pool keeps connections, shares them between threads and checks a connection
before it is used again. urllib3 is pure Python and has no dependencies.
"""

from __future__ import annotations

import os
import random as chance
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import urllib3
from attrs import define, field
from urllib3.exceptions import HTTPError

from posd.broadcaster.calls import (
    NOT_ONLINE,
    APICall,
    APIClient,
    CallFailed,
    ConnectionStats,
    HTTPResponse,
    PublishedEvent,
    RetryPolicy,
    wall_clock,
)
from posd.security.dialing import Credentials, Random

T = TypeVar("T")

_CONNECTIONS = 8
"""How many idle connections are kept. A call beyond this number opens a connection and closes it."""


@define(eq=False)
class BlockingBroadcaster:
    """Publishes to the tills of one posd, for a platform without an event loop.

    `url` is that of posd, such as `https://pos.example.com:9010`. `key` is a platform key. `ca` is a PEM
    file of the authorities to trust; None means those of the system. `credentials` is the client
    certificate. A call that fails temporarily is repeated for about `deadline` seconds in all. The
    event is published once nevertheless.

    One object may be used by several threads, and in processes that are forked later. All methods raise
    `PublishFailed` (`get_connection_stats` raises `CallFailed`), and TypeError or ValueError for values
    without a form in JSON. The constructor raises ValueError for an invalid URL or key, and OSError for
    unusable files of `ca` or `credentials`.
    """

    _url: str
    _key: str = field(repr=False)
    _ca: Path | None = field(default=None, kw_only=True)
    _credentials: Credentials | None = field(default=None, kw_only=True)
    _deadline: float = field(default=15.0, kw_only=True)
    _random: Random = field(default=chance.random, kw_only=True)
    _seconds: Callable[[], float] = field(default=time.monotonic, kw_only=True)
    _sleep: Callable[[float], object] = field(default=time.sleep, kw_only=True)
    _calls: APIClient = field(init=False)
    _trust: ssl.SSLContext = field(init=False)
    _pool: urllib3.HTTPConnectionPool = field(init=False)
    _process: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._calls = APIClient.to(self._url, self._key)
        self._trust = ssl.create_default_context(cafile=self._ca)
        if self._credentials is not None:
            own = self._credentials
            self._trust.load_cert_chain(own.certificate, own.private_key)
        self._open()

    def broadcast_new_order(
        self, tenant: str, order: object, idempotency_key: str | None = None
    ) -> PublishedEvent:
        """Publish a new order: a mapping, or an object with the order's attributes."""
        return self._announce(tenant, "new_order", order, idempotency_key)

    def broadcast_order_update(
        self, tenant: str, order: object, idempotency_key: str | None = None
    ) -> PublishedEvent:
        """Publish a change of an order. Members that are not given do not change."""
        return self._announce(tenant, "order_updated", order, idempotency_key)

    def broadcast_gift_card_purchase(
        self, tenant: str, card: object, idempotency_key: str | None = None
    ) -> PublishedEvent:
        """Publish a new gift card."""
        return self._announce(tenant, "gift_card_purchased", card, idempotency_key)

    def broadcast_loyalty_update(
        self, tenant: str, change: object, idempotency_key: str | None = None
    ) -> PublishedEvent:
        """Publish a change of a customer's points."""
        return self._announce(tenant, "loyalty_updated", change, idempotency_key)

    def publish(
        self,
        tenant: str,
        type: str,  # noqa: A002  the wire's word
        data: Mapping[str, object],
        idempotency_key: str | None = None,
    ) -> PublishedEvent:
        """Publish an event of any type, including a type of the platform's own."""
        return self._perform(self._calls.publication(tenant, type, data, idempotency_key))

    def get_connection_stats(self, tenant: str) -> ConnectionStats:
        """Return the number of connected tills, and how many events each is behind."""
        return self._perform(self._calls.stats(tenant))

    def close(self) -> None:
        """Close idle connections."""
        self._pool.close()

    def _announce(self, tenant: str, kind: str, subject: object, key: str | None) -> PublishedEvent:
        call = self._calls.announcement(tenant, kind, subject, key)
        return NOT_ONLINE if call is None else self._perform(call)

    def _perform(self, call: APICall[T]) -> T:
        attempts = RetryPolicy.within(self._deadline, self._seconds(), self._random)
        while True:
            try:
                answer = self._try(call, attempts.timeout(self._seconds()))
                return call.judge(answer, wall_clock())
            except CallFailed as failure:
                pause = attempts.pause(failure, self._seconds())
            self._sleep(pause)

    def _try(self, call: APICall[T], timeout: float) -> HTTPResponse:
        if self._process != os.getpid():
            self._open()  # after a fork the old connections belong to the parent process
        try:
            response = self._pool.urlopen(
                call.method,
                call.path,
                body=call.body or None,
                headers=call.headers,
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(total=timeout),
            )
        except HTTPError as trouble:
            raise call.unanswered(*_unwrapped_errors(trouble)) from trouble
        headers = {name.lower(): value for name, value in response.headers.items()}
        return HTTPResponse(response.status, headers, response.data)

    def _open(self) -> None:
        server = self._calls.server
        if server.secure:
            self._pool = urllib3.HTTPSConnectionPool(
                server.host, server.port, maxsize=_CONNECTIONS, ssl_context=self._trust
            )
        else:
            self._pool = urllib3.HTTPConnectionPool(server.host, server.port, maxsize=_CONNECTIONS)
        self._process = os.getpid()


def _unwrapped_errors(trouble: HTTPError) -> list[BaseException]:
    """Return the exceptions that urllib3 has wrapped, or its own."""
    return [part for part in trouble.args if isinstance(part, BaseException)] or [trouble]
