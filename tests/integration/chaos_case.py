"""The base of the tests of failures: a PostgreSQL server, a shop, and load."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from posd.testing.postgres import test_server
from tests.integration.harness import Daemon, Shop
from tests.integration.load import Load
from tests.integration.wire import Ended, Refused, Till
from tests.integration.wire_case import until

SLUG = "kitchen"
LIMITS = "[limits]\npublish_per_second_per_tenant = 100000"


def report(what: str, seconds: float) -> None:
    """Print a line for the reader of the test's log."""
    print(f"recovery: {what}: {seconds:.2f} s")


class ChaosCase(SynchronousTestCase):
    """A shop `kitchen` on a durable server of its own."""

    def setUp(self) -> None:
        self.server = test_server().another(durable=True)
        self.addCleanup(self.server.stop)
        self.shop = Shop.open([SLUG], server=self.server)
        self.addCleanup(self.shop.close)
        self.key = self.shop.key()

    def node(self, dsn: str | None = None) -> Daemon:
        return self.shop.start(LIMITS, dsn=dsn)

    def again(self, posd: Daemon, twistd: Sequence[str] = ()) -> None:
        """Start a daemon where another one was; see `Shop.start`."""
        self.shop.start(LIMITS, port=posd.port, twistd=twistd)

    def busy(self, *nodes: Daemon) -> Load:
        """Start writers of all kinds and tills of all kinds, and wait until all have begun."""
        load = Load(self.shop, SLUG, nodes)
        self.addCleanup(load.abort)
        load.start(4, 6, pace=0.04)
        load.past(20)
        return load

    def survives(self, load: Load, what: str, calamity: Callable[[], object]) -> None:
        """After the failure every till continues, and in the end no event is missing, moved or repeated."""
        began = time.monotonic()
        calamity()
        resumed = load.past(load.head())
        report(f"{what} → every till resumed", resumed - began)
        self.assertEqual(load.finish(), [], f"seed {load.seed}")

    def dial(self, posd: Daemon, query: str = "", device: str | None = None) -> Till:
        named = {} if device is None else {"X-Device-ID": device}
        till = Till.dial(posd, f"/ws/pos/{SLUG}{query}", {"X-API-Key": self.key, **named})
        self.addCleanup(till.hang_up)
        return till

    def dial_again(self, posd: Daemon, query: str = "", device: str | None = None) -> Till:
        """Connect as soon as posd accepts a till again."""

        def attempt() -> Till | None:
            try:
                return self.dial(posd, query, device)
            except (Refused, Ended, OSError):
                return None

        till = until(attempt, "a till is let in", 300)
        assert till is not None
        return till

    def publish(self, count: int) -> None:
        """Publish notes in one transaction, and wait until they have positions."""
        before = self.head()
        self.shop.query(
            "SELECT dinedesk_main.pos_publish(%s, 'note', '{}') FROM generate_series(1, %s)",
            (SLUG, count),
        )
        until(lambda: self.head() >= before + count, f"{count} events after {before}", 300)

    def head(self) -> int:
        ((head,),) = self.shop.query("SELECT last_seq FROM dinedesk_main.pos_heads")
        return int(head)

    def stream(self) -> str:
        ((stream,),) = self.shop.query("SELECT stream_id::text FROM dinedesk_main.pos_heads")
        return str(stream)

    def terminate(self, name: str) -> int:
        """Terminate the backends of posd whose application_name matches. Return their number."""
        ended: list[Any] = self.shop.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE %s AND datname = current_database()",
            (name,),
        )
        return len(ended)
