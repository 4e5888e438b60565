"""The counters and histograms of a node, in memory. No method waits.

The components of posd call a method for each thing that they count. The values of labels are words of posd,
so that no label contains a key, a device or an order, and clients cannot create series without limit.
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
"""How an event was published: by REST, by `pos_publish()`, or by a hook on the shop's own tables."""
DELIVERY_WAYS: Final = ("live", "replay", "poll")
"""How an event was sent: live, in a replay, or in the answer to a poll."""
DELIVERY_STAGES: Final = ("socket", "ack")
FAILED_ATTEMPT_CODES: Final = ("unauthorized", "too_many_attempts")
RATE_LIMIT_KINDS: Final = ("credential", "address", "till", "turn")
"""The limit that was exceeded: requests of a `credential`, an `address` or a `turn` are refused, a `till` is
read more slowly."""

AWAKE: Final = "awake"
DOZING: Final = "dozing"
ASLEEP: Final = "asleep"
DOORMAN_STATES: Final = (AWAKE, DOZING, ASLEEP)
"""States of the doorman: `awake` reads the outbox continuously, the others wait for a notification."""

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
"""The reason of a close by Autobahn. Its own text may contain text of the client."""
_ABNORMAL: Final = (None, 1006)


@define(eq=False)
class TrafficCounts(Collector):
    """Bytes and frames of tills, as plain integers, because every message is counted."""

    sent_bytes: int = 0
    received_bytes: int = 0
    received_frames: int = 0

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "posd_sent_bytes", "Bytes sent to tills, without TLS.", value=self.sent_bytes
        )
        yield CounterMetricFamily(
            "posd_received_bytes",
            "Bytes received on WebSockets, without TLS.",
            value=self.received_bytes,
        )
        yield CounterMetricFamily(
            "posd_received_frames", "Frames received on WebSockets.", value=self.received_frames
        )


@define(eq=False)
class Counters:
    """The counters of a node, in a registry of their own.

    `clock` measures the age of events, whose times are those of the database.
    """

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
    """The metrics of an operation and a class of statuses. The library takes a lock to look them up."""
    _waits: Histogram = field(init=False)
    _lag: Histogram = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.registry.register(self.traffic)
        self._published = self._counter("events_published", "Events that got a position.", "road")
        delivered = self._counter(
            "events_delivered", "Events sent to connections of tills, counted per till.", "way"
        )
        # Looked up once, because every event is counted.
        self._delivered = {way: delivered.labels(way) for way in DELIVERY_WAYS}
        delivery = self._histogram(
            "delivery_seconds",
            "Seconds from the numbering of an event until it was sent to a connection, or until a till first"
            " acknowledged it. Live events only.",
            DELIVERY_BUCKETS,
            "stage",
        )
        self._stages = {stage: delivery.labels(stage) for stage in DELIVERY_STAGES}
        self._events_failed = self._counter("events_failed", "Events that could not be published.")
        self._warnings = self._counter(
            "publish_warnings",
            "Values of published events that were repaired or could not be read.",
            "code",
        )
        self._left_out = self._counter(
            "orders_left_out",
            "Orders that were published or changed and did not become an event.",
            "reason",
        )
        self._batches = self._histogram(
            "batch_seconds", "Duration of the sequencer's transactions in seconds.", _SHORT_BUCKETS
        )
        self._batches_failed = self._counter(
            "batches_failed", "Transactions of the sequencer that failed and are retried."
        )
        self._doorman = self._counter(
            "doorman_changes", "Number of times this node has become the doorman."
        )
        self._rings = self._counter("bell_rings", "Notifications of new rows in the outbox.")
        looks = self._counter("bell_looks", "Reads of the outbox by the doorman.", "state")
        self._looks = {state: looks.labels(state) for state in DOORMAN_STATES}
        self._found_by_poll = self._counter(
            "bell_found_by_poll", "Rows of the outbox that the poll found without a notification."
        )
        self._nacks = self._counter("nacks", "Events that a till could not process.")
        self._ended = self._counter(
            "connections_ended", "Connections of tills that have ended.", "by", "reason"
        )
        self._handshakes = self._counter(
            "handshakes_refused", "Handshakes of tills that were refused.", "code"
        )
        self._attempts = self._counter(
            "failed_authentications", "Requests and handshakes with an invalid key.", "code"
        )
        self._limited = self._counter(
            "rate_limited",
            "Requests that were refused, and frames that were delayed, because of a rate limit.",
            "by",
        )
        self._requests = self._counter(
            "http_requests", "Answered HTTP requests.", "operation", "status"
        )
        self._request_seconds = self._histogram(
            "http_request_seconds",
            "Seconds from an HTTP request to its answer.",
            _REQUEST_BUCKETS,
            "operation",
        )
        self._waits = self._histogram(
            "database_wait_seconds",
            "Seconds that statements have waited for a connection of the pool.",
            _SHORT_BUCKETS,
        )
        self._lag = self._histogram(
            "reactor_lag_seconds", "Delay of timers of the reactor in seconds.", _SHORT_BUCKETS
        )
        self._create_series()

    def published(self, source: str, count: int) -> None:
        """Count events that were numbered and committed. `source` is one of `SOURCES`."""
        self._published.labels(source).inc(count)

    def batch(self, seconds: float) -> None:
        """Record the duration of a committed transaction of the sequencer."""
        self._batches.observe(seconds)

    def batch_failed(self) -> None:
        """Count a transaction of the sequencer that was rolled back."""
        self._batches_failed.inc()

    def became_doorman(self) -> None:
        """Count that this node has acquired the lease of the doorman."""
        self._doorman.inc()

    def rung(self) -> None:
        """Count a notification of new rows in the outbox."""
        self._rings.inc()

    def looked(self, state: str) -> None:
        """Count a read of the outbox by the doorman. `state` is one of `DOORMAN_STATES`."""
        self._looks[state].inc()

    def found_by_poll(self, rows: int) -> None:
        """Count rows that the poll found while the doorman waited for a notification."""
        self._found_by_poll.inc(rows)

    def events_failed(self, count: int) -> None:
        """Count events that are stored as failed."""
        self._events_failed.inc(count)

    def warned(self, code: str, count: int) -> None:
        """Count values of published events with a warning of this code."""
        self._warnings.labels(code).inc(count)

    def left_out(self, reason: str, count: int) -> None:
        """Count orders that did not become an event."""
        self._left_out.labels(reason).inc(count)

    def delivered(self, way: str, count: int) -> None:
        """Count events sent to connections, per till. `way` is one of `DELIVERY_WAYS`."""
        self._delivered[way].inc(count)

    def reached(self, stage: str, moments: Iterable[datetime]) -> None:
        """Record that events have reached a stage of delivery now. `moments` are their times of numbering."""
        observe = self._stages[stage].observe
        for moment in moments:
            observe(self.clock.seconds_since(moment))

    def nacked(self) -> None:
        """Count an event that a till could not process."""
        self._nacks.inc()

    def ended(self, by: str, code: int | None, why: str) -> None:
        """Count the end of a connection. `by` is "till" or "posd", `why` is the reason that posd gave."""
        lost_or_closed = "lost" if code in _ABNORMAL else "closed"
        self._ended.labels(
            by, _END_REASONS.get(why, _PROTOCOL) if by == "posd" else lost_or_closed
        ).inc()

    def handshake_refused(self, code: str) -> None:
        """Count a refused handshake of a till. `code` is the code of the refusal."""
        self._handshakes.labels(code).inc()

    def attempt_failed(self, code: str) -> None:
        """Count a request or handshake with an invalid key."""
        self._attempts.labels(code).inc()

    def rate_limited(self, by: str) -> None:
        """Count a request or a frame above a rate limit. `by` is one of `RATE_LIMIT_KINDS`."""
        self._limited.labels(by).inc()

    def served(self, operation: str, status: int, seconds: float) -> None:
        """Count an answered request. `operation` is the method and the path template."""
        series = operation, status // 100
        if series not in self._served:
            requests = self._requests.labels(operation, f"{status // 100}xx")
            self._served[series] = requests, self._request_seconds.labels(operation)
        requests, durations = self._served[series]
        requests.inc()
        durations.observe(seconds)

    def waited(self, seconds: float) -> None:
        """Record how long a statement has waited for a connection of the pool, with or without success."""
        self._waits.observe(seconds)

    def lagged(self, seconds: float) -> None:
        """Record the delay of a timer."""
        self._lag.observe(seconds)

    def _create_series(self) -> None:
        """Create the series of alerts with the value 0, so that the first count is an increase."""
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
