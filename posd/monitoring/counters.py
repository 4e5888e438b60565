"""What is counted while posd works: in memory, for the next scrape. Nothing here waits for anything.

The parts of posd say here what they have just done. What a label may be is decided here too: only words of
posd's own, so that no key, no device and no order can get into one, and nobody can make series without end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final

from attrs import define, field
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from posd.monitoring.database_clock import DatabaseClock
from posd.values import (
    DISABLED,
    DISCONNECTED,
    FAILED,
    GOING_AWAY,
    LEFT_OUT,
    POLICY,
    PRUNED,
    RENAMED,
    REVOKED,
    STREAM_CHANGED,
    SUPERSEDED,
    TOO_BIG,
    TOO_SLOW,
    UNSUPPORTED,
    WARNING_CODES,
)

DELIVERY_BUCKETS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
_REQUEST_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_SHORT_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

SOURCES: Final = ("rest", "sql", "hook")
"""How an event was published: by REST, by `pos_publish()`, by a change of the shop's own tables."""
DELIVERY_WAYS: Final = ("live", "replay", "poll")
"""How an event went out: as it came, to a till that catches up, as the answer to a poll."""
DELIVERY_STAGES: Final = ("socket", "ack")
FAILED_ATTEMPT_CODES: Final = ("unauthorized", "too_many_attempts")
RATE_LIMIT_KINDS: Final = ("credential", "address", "till", "turn")
"""Whose rate was exceeded: a credential's or an address's request was refused, a till is read more slowly."""

AWAKE: Final = "awake"
DOZING: Final = "dozing"
ASLEEP: Final = "asleep"
DOORMAN_STATES: Final = (AWAKE, DOZING, ASLEEP)
"""Of the doorman: it looks at the outbox by itself, or waits until it is rung."""

SILENT: Final = "not heard of"
DROPPED: Final = "dropped"
_END_REASONS: Final[Mapping[str, str]] = {
    GOING_AWAY.reason: "restart",
    DISCONNECTED.reason: "operator",
    UNSUPPORTED.reason: "unsupported",
    POLICY.reason: "policy",
    TOO_BIG.reason: "too_big",
    FAILED.reason: "internal_error",
    TOO_SLOW.reason: "too_slow",
    STREAM_CHANGED.reason: "stream_changed",
    RENAMED.reason: "stream_renamed",
    PRUNED.reason: "pruned",
    REVOKED.reason: "revoked",
    DISABLED.reason: "device_disabled",
    SUPERSEDED.reason: "superseded",
    SILENT: "silent",
    DROPPED: "sent_home",
}
_PROTOCOL: Final = "protocol"
"""Autobahn has closed, and says why in words that may be anybody's."""
_ABNORMAL: Final = (None, 1006)


@define(eq=False)
class TrafficCounts(Collector):
    """Bytes and frames, counted as plainly as can be: each till's every message passes here."""

    sent_bytes: int = 0
    received_bytes: int = 0
    received_frames: int = 0

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "posd_sent_bytes", "Bytes written to tills, before TLS.", value=self.sent_bytes
        )
        yield CounterMetricFamily(
            "posd_received_bytes", "Bytes read of tills' WebSockets.", value=self.received_bytes
        )
        yield CounterMetricFamily(
            "posd_received_frames", "Frames that tills have sent.", value=self.received_frames
        )


@define(eq=False)
class Counters:
    """One posd's counters, in a registry of their own. `clock` dates what the database has dated."""

    clock: DatabaseClock = field(factory=DatabaseClock)
    traffic: TrafficCounts = field(factory=TrafficCounts)
    registry: CollectorRegistry = field(factory=CollectorRegistry, init=False)
    _published: Counter = field(init=False)
    _delivered: Mapping[str, Counter] = field(init=False)
    _stages: Mapping[str, Histogram] = field(init=False)
    _events_failed: Counter = field(init=False)
    _warnings: Counter = field(init=False)
    _left_out: Counter = field(init=False)
    _batches: Histogram = field(init=False)
    _batches_failed: Counter = field(init=False)
    _doorman: Counter = field(init=False)
    _rings: Counter = field(init=False)
    _looks: Mapping[str, Counter] = field(init=False)
    _found_by_poll: Counter = field(init=False)
    _nacks: Counter = field(init=False)
    _ended: Counter = field(init=False)
    _handshakes: Counter = field(init=False)
    _attempts: Counter = field(init=False)
    _limited: Counter = field(init=False)
    _requests: Counter = field(init=False)
    _request_seconds: Histogram = field(init=False)
    _served: dict[tuple[str, int], tuple[Counter, Histogram]] = field(init=False, factory=dict)
    """Those of an operation and a class of statuses, which the library looks up with a lock each time."""
    _waits: Histogram = field(init=False)
    _lag: Histogram = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.registry.register(self.traffic)
        self._published = self._counter("events_published", "Events that got a position.", "road")
        delivered = self._counter(
            "events_delivered", "Events given to tills' connections, once for each till.", "way"
        )
        # Looked up once: this is where every event passes.
        self._delivered = {way: delivered.labels(way) for way in DELIVERY_WAYS}
        delivery = self._histogram(
            "delivery_seconds",
            "From when an event was numbered until it was given to a connection, or acknowledged by a till"
            " for the first time. Of events that went out as they came.",
            DELIVERY_BUCKETS,
            "stage",
        )
        self._stages = {stage: delivery.labels(stage) for stage in DELIVERY_STAGES}
        self._events_failed = self._counter("events_failed", "Events that could not be published.")
        self._warnings = self._counter(
            "publish_warnings",
            "Values of published events that were repaired, or could not be read.",
            "code",
        )
        self._left_out = self._counter(
            "orders_left_out",
            "Orders that were published or touched and became no event.",
            "reason",
        )
        self._batches = self._histogram(
            "batch_seconds", "How long the sequencer's transactions took.", _SHORT_BUCKETS
        )
        self._batches_failed = self._counter(
            "batches_failed", "Transactions of the sequencer that failed; they are tried again."
        )
        self._doorman = self._counter(
            "doorman_changes", "How often this node has become the doorman."
        )
        self._rings = self._counter("bell_rings", "Notifications that there is something to take.")
        looks = self._counter("bell_looks", "Looks of the doorman at the outbox.", "state")
        self._looks = {state: looks.labels(state) for state in DOORMAN_STATES}
        self._found_by_poll = self._counter(
            "bell_found_by_poll", "Rows of the outbox that the poll found, since nobody had rung."
        )
        self._nacks = self._counter("nacks", "Events that a till could not process.")
        self._ended = self._counter(
            "connections_ended", "Connections of tills that have ended.", "by", "reason"
        )
        self._handshakes = self._counter(
            "handshakes_refused", "Tills that were not let in.", "code"
        )
        self._attempts = self._counter(
            "failed_authentications", "Requests and handshakes with a bad key.", "code"
        )
        self._limited = self._counter(
            "rate_limited",
            "Requests that were refused for a rate, and frames that came too fast.",
            "by",
        )
        self._requests = self._counter(
            "http_requests", "Requests that were answered.", "operation", "status"
        )
        self._request_seconds = self._histogram(
            "http_request_seconds", "From a request to its answer.", _REQUEST_BUCKETS, "operation"
        )
        self._waits = self._histogram(
            "database_wait_seconds",
            "How long statements have waited for a connection of the pool.",
            _SHORT_BUCKETS,
        )
        self._lag = self._histogram(
            "reactor_lag_seconds", "How late the reactor calls what is due.", _SHORT_BUCKETS
        )
        self._create_series()

    def published(self, source: str, count: int) -> None:
        """So many events have got a position, and are committed."""
        self._published.labels(source).inc(count)

    def batch(self, seconds: float) -> None:
        """The sequencer has committed."""
        self._batches.observe(seconds)

    def batch_failed(self) -> None:
        """A transaction of the sequencer was rolled back."""
        self._batches_failed.inc()

    def became_doorman(self) -> None:
        """This node has got the lease of the doorman."""
        self._doorman.inc()

    def rung(self) -> None:
        """A notification has come that there is something in the outbox."""
        self._rings.inc()

    def looked(self, state: str) -> None:
        """The doorman has asked whether the outbox has something; `state` is one of `DOORMAN_STATES`."""
        self._looks[state].inc()

    def found_by_poll(self, rows: int) -> None:
        """The poll has found so many rows while the doorman waited until it is rung."""
        self._found_by_poll.inc(rows)

    def events_failed(self, count: int) -> None:
        """So many events are in the log as failed."""
        self._events_failed.inc(count)

    def warned(self, code: str, count: int) -> None:
        """So many values of published events have a warning of this code."""
        self._warnings.labels(code).inc(count)

    def left_out(self, reason: str, count: int) -> None:
        """So many orders became no event."""
        self._left_out.labels(reason).inc(count)

    def delivered(self, way: str, count: int) -> None:
        """So many events, times tills, were given to connections."""
        self._delivered[way].inc(count)

    def reached(self, stage: str, moments: Iterable[datetime]) -> None:
        """Events that the database has dated so have come to this stage now."""
        observe = self._stages[stage].observe
        for moment in moments:
            observe(self.clock.seconds_since(moment))

    def nacked(self) -> None:
        """A till cannot process an event."""
        self._nacks.inc()

    def ended(self, by: str, code: int | None, why: str) -> None:
        """A connection has ended: `by` is till or posd, `why` what posd said."""
        lost_or_closed = "lost" if code in _ABNORMAL else "closed"
        self._ended.labels(
            by, _END_REASONS.get(why, _PROTOCOL) if by == "posd" else lost_or_closed
        ).inc()

    def handshake_refused(self, code: str) -> None:
        """A till was not let in; `code` is that of a refusal."""
        self._handshakes.labels(code).inc()

    def attempt_failed(self, code: str) -> None:
        """Somebody has come with a bad key."""
        self._attempts.labels(code).inc()

    def rate_limited(self, by: str) -> None:
        """A request or a frame was over a rate; `by` is one of `RATE_LIMIT_KINDS`."""
        self._limited.labels(by).inc()

    def served(self, operation: str, status: int, seconds: float) -> None:
        """A request was answered; `operation` is a method and a template of an address."""
        series = operation, status // 100
        if series not in self._served:
            requests = self._requests.labels(operation, f"{status // 100}xx")
            self._served[series] = requests, self._request_seconds.labels(operation)
        requests, durations = self._served[series]
        requests.inc()
        durations.observe(seconds)

    def waited(self, seconds: float) -> None:
        """A statement has got a connection of the pool, or given up."""
        self._waits.observe(seconds)

    def lagged(self, seconds: float) -> None:
        """The reactor was so late."""
        self._lag.observe(seconds)

    def _create_series(self) -> None:
        """Have at zero what an alarm looks at: the first time is a change too then."""
        for source in SOURCES:
            self._published.labels(source)
        for code in FAILED_ATTEMPT_CODES:
            self._attempts.labels(code)
        for code in WARNING_CODES:
            self._warnings.labels(code)
        for reason in LEFT_OUT:
            self._left_out.labels(reason)
        for by in RATE_LIMIT_KINDS:
            self._limited.labels(by)
        for by, reason in _end_reasons():
            self._ended.labels(by, reason)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"posd_{name}", documentation, labels, registry=self.registry)

    def _histogram(
        self, name: str, documentation: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"posd_{name}", documentation, labels, buckets=buckets, registry=self.registry
        )


def _end_reasons() -> Iterator[tuple[str, str]]:
    yield from (("till", "closed"), ("till", "lost"), ("posd", _PROTOCOL))
    yield from (("posd", reason) for reason in _END_REASONS.values())
