"""The base of the hostile tests: a daemon that logs everything, and checks of its output.

After each test the log of the daemon, and all answers, must not contain confidential data or signs of an
unexpected error.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Final

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.harness import Daemon, Shop
from tests.integration.peer import PING, TEXT, Answer, Peer, frame
from tests.integration.shared import shared
from tests.integration.wire_case import until

Headers = Mapping[str, str] | Iterable[tuple[str, str]]

NEIGHBOUR: Final = "good"
UNFORESEEN: Final = ("Traceback", "Unhandled", "#critical")
LEAKED: Final = ("Traceback", "Error:", "psycopg", "twisted", "/posd/", "SELECT ", "dinedesk_")

_numbers = itertools.count(1)


@shared
def besieged(stack: ExitStack, configuration: str) -> tuple[Shop, Daemon]:
    """A shop and its daemon, for all tests that want it like that."""
    return under_siege(stack, configuration)


def under_siege(
    stack: ExitStack, configuration: str, dsn: Callable[[Shop], str] = lambda shop: shop.dsn
) -> tuple[Shop, Daemon]:
    """Return a shop and its daemon, which logs at level debug. `dsn` replaces its connection string."""
    shop = Shop.open([])
    stack.callback(shop.close)
    shop.add_tenant(NEIGHBOUR)
    (shop.folder / "conf.d").mkdir()
    (shop.folder / "conf.d" / "loud.toml").write_text('[logging]\nlevel = "debug"\n')
    return shop, shop.start(configuration, dsn=dsn(shop))


class HostileCase(SynchronousTestCase):
    """Each test has a hostile tenant. Its neighbour must not be affected."""

    configuration: ClassVar[str] = "[limits]\nfailed_auth_per_minute = 100000"

    def setUp(self) -> None:
        self.shop, self.posd = self.besieged(self.configuration)
        self.slug, self.neighbour = f"bad-{next(_numbers)}", NEIGHBOUR
        self.shop.add_tenant(self.slug)
        self.schema = f"dinedesk_{self.slug.replace('-', '_')}"
        # Texts under this name must not appear elsewhere.
        self.secret = f"hush-{self.slug}-hush"
        self.keys: list[str] = []
        self.key = self.make_key()
        self._logged = len(self.posd.log())

    def tearDown(self) -> None:
        self.assertIsNone(self.posd.process.poll(), "the daemon is gone")
        log = self.posd.log()[self._logged :]
        for word in (*self.keys, self.secret, *UNFORESEEN):
            self.assertNotIn(word, log)

    def besieged(self, configuration: str) -> tuple[Shop, Daemon]:
        """Return the shop and the daemon of this test. Tests with the same configuration share them."""
        return besieged(configuration)

    # -- actors ------------------------------------------------------------------------------

    def make_key(
        self, kind: str = "tenant", device: str | None = None, *, slug: str | None = ""
    ) -> str:
        """Return a key of the hostile tenant, of another one, or of all tenants if `slug` is None."""
        key = self.shop.key(kind, self.slug if slug == "" else slug, device)
        self.keys.append(key)
        return key

    def peer(self, *, bare: bool = False, source: str | None = None) -> Peer:
        """Open a connection that is closed at the end of the test."""
        peer = Peer.dial(self.posd, bare=bare, source=source)
        self.addCleanup(peer.close)
        return peer

    def till(
        self, key: str | None = None, *, slug: str | None = None, headers: Headers = ()
    ) -> Peer:
        """Connect a till and read `connected`."""
        peer = self.peer()
        sent = [("X-API-Key", key or self.key), *pairs(headers)]
        answer = peer.upgrade(f"/ws/pos/{slug or self.slug}", sent)
        self.assertEqual(answer.status, 101, answer)
        self.assertEqual(peer.message()["type"], "connected")
        return peer

    def neighbours_till(self) -> Peer:
        """Connect a till of the other tenant, for `assert_served`."""
        return self.till(self.make_key(slug=self.neighbour), slug=self.neighbour)

    # -- requests ----------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        headers: Headers = (),
        source: str | None = None,
    ) -> Answer:
        """Send a request on a new connection. `body` is sent as JSON, or as it is if it is bytes."""
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = [] if key is None else [("X-API-Key", key)]
        with self.peer(source=source) as peer:
            answer = peer.ask(method, path, [*given, *pairs(headers)], raw)
        self.assert_quiet(answer)
        return answer

    def try_handshake(
        self,
        key: str | None,
        *,
        slug: str | None = None,
        path: str | None = None,
        headers: Headers = (),
        source: str | None = None,
    ) -> Answer:
        """Return the answer to the handshake of a till."""
        given = [] if key is None else [("X-API-Key", key)]
        with self.peer(source=source) as peer:
            place = path or f"/ws/pos/{slug or self.slug}"
            answer = peer.upgrade(place, [*given, *pairs(headers)])
        if answer.status != 101:
            self.assert_quiet(answer)
        return answer

    def publish(self, data: object, kind: str = "note") -> None:
        """Publish by SQL as the hostile tenant. `data` is JSON, or text as it is."""
        text = data if isinstance(data, str) else json.dumps(data)
        self.shop.query(
            "SELECT dinedesk_main.pos_publish(%s, %s, %s::jsonb)", (self.slug, kind, text)
        )

    def failure(self) -> tuple[str, str]:
        """Return data and reason of the newest failed event of the hostile tenant."""
        sql = (
            f"SELECT event_data::text, failure FROM {self.schema}.pos_sync_logs"
            " WHERE failure IS NOT NULL ORDER BY id DESC LIMIT 1"
        )
        ((data, reason),) = until(lambda: self.shop.query(sql), "a failed event")
        return str(data), str(reason)

    def wait_for(self, sql: str, count: int) -> list[Any]:
        """Return the rows of a query as soon as there are enough."""

        def enough() -> list[Any] | None:
            rows = self.shop.query(sql)
            return rows if len(rows) >= count else None

        return until(enough, f"{count} rows") or []

    # -- assertions --------------------------------------------------------------------------

    def assert_refused(self, answer: Answer, status: int, code: str) -> None:
        """Assert that an answer is a documented refusal in JSON."""
        self.assertEqual((answer.status, answer.json["code"]), (status, code))
        self.assertEqual(answer.headers["content-type"], "application/json")
        self.assertIs(answer.json["success"], False)

    def assert_quiet(self, answer: Answer) -> None:
        """Assert that an answer contains no exceptions, statements, paths or secrets."""
        said = repr((answer.headers, answer.body))
        for word in (*self.keys, self.secret, *LEAKED):
            self.assertNotIn(word, said)

    def assert_served(self, till: Peer, *, within: float = 10.0, rounds: int = 3) -> None:
        """Assert that another tenant's till receives its events in order."""
        for number in range(rounds):
            self.shop.publish(self.neighbour, "note", {"n": number})
            while (message := till.message(within))["type"] != "note":
                pass
            self.assertEqual(message["data"], {"n": number})

    def assert_alive(self, till: Peer) -> None:
        """Assert that a till is still connected and gets answers."""
        till.send(frame(PING, b"still there?"))
        while till.frame().payload != b"still there?":
            pass
        till.send(frame(TEXT, b'{"type":"ping","id":1}'))
        while (message := till.message())["type"] != "pong":
            self.assertEqual(message["type"], "error")

    def memory(self) -> int:
        """Return the resident memory of the daemon in MiB."""
        status = Path(f"/proc/{self.posd.pid}/status").read_text()
        (line,) = (each for each in status.splitlines() if each.startswith("VmRSS:"))
        return int(line.split()[1]) // 1024

    def open_files(self) -> int:
        """Return the number of open files and sockets of the daemon."""
        return len(list(Path(f"/proc/{self.posd.pid}/fd").iterdir()))


def pairs(headers: Headers) -> list[tuple[str, str]]:
    """Yield headers one by one."""
    return list(headers.items() if isinstance(headers, Mapping) else headers)
