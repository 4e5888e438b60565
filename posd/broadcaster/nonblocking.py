"""The broadcaster for Twisted. Its methods return Deferreds.

It uses `twisted.web.client.Agent`, which does not follow redirects: a request with a key must not be
redirected.
"""

from __future__ import annotations

import random as chance
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from attrs import define, field, frozen
from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    FileBodyProducer,
    HTTPConnectionPool,
    PartialDownloadError,
    RequestTransmissionFailed,
    ResponseFailed,
    readBody,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

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
from posd.security.client_tls import client_context
from posd.security.dialing import Credentials, Random

T = TypeVar("T")

_UNANSWERED = (
    error.ConnectError,
    error.ConnectionClosed,
    error.DNSLookupError,
    OutOfTime,
    PartialDownloadError,
    RequestTransmissionFailed,
    ResponseFailed,
)
_IDLE = 20
"""Seconds that an idle connection is kept. posd closes it after 30."""


@implementer(IPolicyForHTTPS)
@frozen
class _SingleServerPolicy:
    """The TLS policy for the single server of a broadcaster."""

    creator: IOpenSSLClientConnectionCreator

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        return self.creator


@define(eq=False)
class Broadcaster:
    """Publishes to the tills of one posd, for a platform that runs on Twisted.

    `url` is that of posd, such as `https://pos.example.com:9010`. `key` is a platform key. `ca` is a PEM
    file of the authorities to trust; None means those of the system. `credentials` is the client
    certificate. A call that fails temporarily is repeated for `deadline` seconds in all. The event is
    published once nevertheless.

    All Deferreds fail with `PublishFailed` (that of `get_connection_stats` with `CallFailed`), and with
    TypeError or ValueError for values without a form in JSON. The constructor raises ValueError for an
    invalid URL or key, and StartError for unusable files of `ca` or `credentials`.
    """

    _reactor: IReactorTime
    _url: str
    _key: str = field(repr=False)
    _ca: Path | None = field(default=None, kw_only=True)
    _credentials: Credentials | None = field(default=None, kw_only=True)
    _deadline: float = field(default=15.0, kw_only=True)
    _random: Random = field(default=chance.random, kw_only=True)
    _calls: APIClient = field(init=False)
    _pool: HTTPConnectionPool = field(init=False)
    _agent: Agent = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._calls = APIClient.to(self._url, self._key)
        self._pool = HTTPConnectionPool(self._reactor)
        self._pool.cachedConnectionTimeout = _IDLE
        self._pool.retryAutomatically = False
        trust = client_context(self._calls.server.host, self._ca, self._credentials)
        self._agent = Agent(self._reactor, _SingleServerPolicy(trust), pool=self._pool)

    def broadcast_new_order(
        self, tenant: str, order: object, idempotency_key: str | None = None
    ) -> Deferred[PublishedEvent]:
        """Publish a new order: a mapping, or an object with the order's attributes."""
        return self._announce(tenant, "new_order", order, idempotency_key)

    def broadcast_order_update(
        self, tenant: str, order: object, idempotency_key: str | None = None
    ) -> Deferred[PublishedEvent]:
        """Publish a change of an order. Members that are not given do not change."""
        return self._announce(tenant, "order_updated", order, idempotency_key)

    def broadcast_gift_card_purchase(
        self, tenant: str, card: object, idempotency_key: str | None = None
    ) -> Deferred[PublishedEvent]:
        """Publish a new gift card."""
        return self._announce(tenant, "gift_card_purchased", card, idempotency_key)

    def broadcast_loyalty_update(
        self, tenant: str, change: object, idempotency_key: str | None = None
    ) -> Deferred[PublishedEvent]:
        """Publish a change of a customer's points."""
        return self._announce(tenant, "loyalty_updated", change, idempotency_key)

    def publish(
        self,
        tenant: str,
        type: str,  # noqa: A002  the wire's word
        data: Mapping[str, object],
        idempotency_key: str | None = None,
    ) -> Deferred[PublishedEvent]:
        """Publish an event of any type, including a type of the platform's own."""
        return Deferred.fromCoroutine(self._publish(tenant, type, data, idempotency_key))

    def get_connection_stats(self, tenant: str) -> Deferred[ConnectionStats]:
        """Return the number of connected tills, and how many events each is behind."""
        return Deferred.fromCoroutine(self._perform(self._calls.stats(tenant)))

    def close(self) -> Deferred[None]:
        """Close idle connections."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    def _announce(
        self, tenant: str, kind: str, subject: object, key: str | None
    ) -> Deferred[PublishedEvent]:
        async def announce() -> PublishedEvent:
            call = self._calls.announcement(tenant, kind, subject, key)
            return NOT_ONLINE if call is None else await self._perform(call)

        return Deferred.fromCoroutine(announce())

    async def _publish(
        self, tenant: str, kind: str, data: Mapping[str, object], key: str | None
    ) -> PublishedEvent:
        return await self._perform(self._calls.publication(tenant, kind, data, key))

    async def _perform(self, call: APICall[T]) -> T:
        seconds = self._reactor.seconds
        attempts = RetryPolicy.within(self._deadline, seconds(), self._random)
        while True:
            try:
                answer = await self._try(call, attempts.timeout(seconds()))
                return call.judge(answer, wall_clock())
            except CallFailed as failure:
                pause = attempts.pause(failure, seconds())
            await deferLater(self._reactor, pause)

    async def _try(self, call: APICall[T], timeout: float) -> HTTPResponse:
        def out_of_time(_: object, seconds: float) -> Failure:
            return Failure(OutOfTime(f"no answer within {seconds:g} s"))

        exchange = Deferred.fromCoroutine(self._exchange(call))
        exchange.addTimeout(timeout, self._reactor, out_of_time)
        try:
            return await exchange
        except _UNANSWERED as trouble:
            causes = [failure.value for failure in getattr(trouble, "reasons", ())]
            raise call.unanswered(*(causes or [trouble])) from trouble

    async def _exchange(self, call: APICall[T]) -> HTTPResponse:
        server = self._calls.server
        response = await self._agent.request(
            call.method.encode(),
            f"{server.scheme}://{server.authority}{call.path}".encode(),
            Headers({name: [value] for name, value in call.headers.items()}),
            FileBodyProducer(BytesIO(call.body)) if call.body else None,
        )
        headers = {
            name.decode("latin-1").lower(): values[-1].decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        return HTTPResponse(response.code, headers, await readBody(response))
