"""The base of the wire tests: a running daemon, and a tenant for each test."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.harness import Daemon, Shop
from tests.integration.shared import shared
from tests.integration.wire import WAIT, Ended, Message, Refused, Till

T = TypeVar("T")

_numbers = itertools.count(1)


def until(look: Callable[[], T], what: str, seconds: float = WAIT) -> T:
    """Repeat until the result is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)
    return seen


def next_slug() -> str:
    """Return a slug that no tenant of this process has."""
    return f"shop-{next(_numbers)}"


@shared
def running(stack: ExitStack, configuration: str) -> tuple[Shop, Daemon]:
    """A shop without tenants and its daemon, for all tests that want it like that."""
    shop = Shop.open([])
    stack.callback(shop.close)
    return shop, shop.start(configuration)


class WireCase(SynchronousTestCase):
    """Tests of a daemon with the configuration of the class. Every test has a tenant of its own."""

    configuration: ClassVar[str] = "[limits]\nfailed_auth_per_minute = 10000"

    def setUp(self) -> None:
        self.shop, self.posd = running(self.configuration)
        self.slug = next_slug()
        self.shop.add_tenant(self.slug)
        self.key = self.shop.key(slug=self.slug)

    @property
    def schema(self) -> str:
        return f"dinedesk_{self.slug.replace('-', '_')}"

    def dial(
        self,
        *,
        key: str | None = None,
        device: str | None = None,
        after: object = None,
        stream: str | None = None,
        headers: Mapping[str, str] = {},
        query: Mapping[str, object] = {},
        path: str | None = None,
        to: Daemon | None = None,
        **how: Any,
    ) -> Till:
        """Connect a till of this test's tenant. It is closed at the end of the test."""
        asked = {"last_event_id": after, "stream_id": stream, **query}
        given = {name: value for name, value in asked.items() if value is not None}
        place = path or f"/ws/pos/{self.slug}"
        sent = {"X-API-Key": key or self.key, "X-Device-ID": device, **headers}
        till = Till.dial(
            to or self.posd,
            f"{place}?{urlencode(given)}" if given else place,
            {name: value for name, value in sent.items() if value is not None},
            **how,
        )
        self.addCleanup(till.hang_up)
        return till

    def refused(self, **how: Any) -> Refused:
        """Return posd's refusal of a till."""
        refused = self.assertRaises(Refused, self.dial, **how)
        assert isinstance(refused, Refused)
        return refused

    def publish(self, count: int = 1, size: int = 0, *, first: int = 1) -> int:
        """Publish notes numbered from `first`, in one transaction. Return the head after them."""
        before = self.head()
        self.shop.query(
            "SELECT dinedesk_main.pos_publish(%s, 'note',"
            " jsonb_build_object('n', n, 'text', repeat('x', %s)))"
            " FROM generate_series(%s, %s) AS n",
            (self.slug, size, first, first + count - 1),
        )
        until(lambda: self.head() == before + count, f"{count} events after {before}")
        return before + count

    def head(self) -> int:
        """Return the last position of the tenant's stream."""
        return int(self.value("SELECT last_seq FROM dinedesk_main.pos_heads WHERE {mine}"))

    def cursor(self, device: str) -> int | None:
        """Return the cursor of a device, or None if it has none."""
        rows = self.rows(
            "SELECT acked_seq FROM dinedesk_main.pos_cursors WHERE {mine} AND device_id = %s",
            device,
        )
        return int(rows[0][0]) if rows else None

    def reaches(self, device: str, position: int) -> None:
        """Wait until the cursor of a device is at this position."""
        until(lambda: self.cursor(device) == position, f"{device} at {position}")

    def proves_itself(self, device: str) -> None:
        """Wait until the database knows that a device acknowledges, so that it is not legacy any more."""
        known = (
            "SELECT first_acked_at FROM dinedesk_main.pos_devices WHERE {mine} AND device_id = %s"
        )
        until(lambda: self.value(known, device) is not None, f"{device} acknowledges")

    def value(self, sql: str, *parameters: object) -> Any:
        """Return the single value of a statement; see `rows`."""
        ((value,),) = self.rows(sql, *parameters)
        return value

    def rows(self, sql: str, *parameters: object) -> list[Any]:
        """Run a statement. `{mine}` is the condition on `tenant_id`, `{schema}` the tenant's."""
        mine = f"tenant_id = (SELECT id FROM dinedesk_main.tenants WHERE slug = '{self.slug}')"
        return self.shop.query(sql.format(mine=mine, schema=self.schema), parameters or None)

    def assert_ids(self, messages: list[Message], first: int, last: int) -> None:
        """Assert that these are the events from `first` to `last`, each once."""
        self.assertEqual([each.get("id") for each in messages], list(range(first, last + 1)))

    def assert_ended(self, ended: Ended, code: int, reason: str | None = None) -> None:
        self.assertEqual(ended.code, code)
        if reason is not None:
            self.assertEqual(ended.reason, reason)
