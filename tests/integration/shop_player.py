"""Play a shop's day against a running posd, and check every answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
from attrs import define, field

from tests.integration.harness import Daemon, Shop
from tests.integration.shop_calls import Line, check, request
from tests.integration.shop_register import Register
from tests.integration.shop_tills import Follower, PollTill, SocketTill, StreamTill
from tests.integration.wire_case import until
from tests.shop_books import PLATFORM, SHOP
from tests.shop_deeds import (
    BAR,
    FRONT,
    KITCHEN,
    OFFICE,
    TILLS,
    Happening,
    Moment,
    Road,
    Said,
    Walked,
)

_CURSOR = """
    SELECT c.acked_seq FROM dinedesk_main.pos_cursors AS c
      JOIN dinedesk_main.pos_devices AS d USING (tenant_id, device_id)
      JOIN dinedesk_main.tenants AS t ON t.id = c.tenant_id
     WHERE t.slug = %s AND device_id = %s AND d.first_acked_at IS NOT NULL
"""


@define(eq=False)
class Player:
    """All actors of a shop. `tills` are the four that follow its stream."""

    shop: Shop
    posd: Daemon
    slug: str
    tills: dict[str, Follower] = field(init=False)
    lines: dict[str, Line] = field(init=False)
    played: int = field(init=False, default=0)
    """The number of finished moments."""
    _books: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        keys = {name: self.shop.key("device", self.slug, name) for name in TILLS}
        roads: dict[str, type[SocketTill | StreamTill | PollTill]] = {
            FRONT: SocketTill,
            BAR: SocketTill,
            KITCHEN: StreamTill,
            OFFICE: PollTill,
        }
        self.tills = {
            name: roads[name](self.posd, self.slug, keys[name], self._reaching(name))
            for name in TILLS
        }
        keys[PLATFORM] = self.shop.key("platform", self.slug)
        self.lines = {name: Line(self.posd, self.slug, key) for name, key in keys.items()}
        self._books = psycopg2.connect(self.shop.dsn)

    @property
    def schema(self) -> str:
        return f"dinedesk_{self.slug.replace('-', '_')}"

    def open(self) -> None:
        for till in self.tills.values():
            till.come()

    def go_home(self) -> bool:
        """Close the tills when the database has their positions. Return whether no more events arrived."""
        front = self.tills[FRONT]
        assert isinstance(front, SocketTill)
        is_quiet = front.is_up_to_date()
        for till in self.tills.values():
            till.go()
        return is_quiet

    def close(self) -> None:
        for till in self.tills.values():
            till.hang_up()
        for line in self.lines.values():
            line.hang_up()
        self._books.close()

    def play(self, moment: Moment) -> None:
        """Do the deeds of a moment concurrently. Then the connected tills receive the events."""
        deeds: dict[str, list[Happening]] = {}
        for happening in moment.happenings:
            deeds.setdefault(happening.actor, []).append(happening)
        with ThreadPoolExecutor(max(1, len(deeds))) as threads:
            list(threads.map(self._work, deeds.values()))
        for till in self.tills.values():
            if till.is_there:
                till.follow(moment.head)
        self.played += 1

    def _work(self, deeds: list[Happening]) -> None:
        for happening in deeds:
            try:
                self._do(happening)
            except Exception as failure:
                raise AssertionError(f"{happening}: {failure!r}") from failure

    def _do(self, happening: Happening) -> None:
        deed = happening.deed
        if isinstance(deed, Walked):
            till = self.tills[happening.actor]
            till.come() if deed.is_back else till.go()
        elif happening.actor == SHOP:
            Register(self._books, self.schema).write(deed, happening.outcome)
        elif isinstance(deed, Said) and deed.road is Road.SOCKET:
            self._print(happening, deed)
        else:
            self._call(happening)

    def _print(self, happening: Happening, deed: Said) -> None:
        till = self.tills[happening.actor]
        assert isinstance(till, SocketTill)
        for _ in range(1 + happening.repeats):
            till.say({"type": "print", "orderId": deed.order_id, "status": deed.word})

    def _call(self, happening: Happening) -> None:
        line, deed = self.lines[happening.actor], happening.deed
        method, path, body, once = request(self.slug, deed)
        if happening.is_lost:
            assert once is not None
            line.lose(method, path, body, once)
        for number in range(1 + happening.repeats):
            answer = line.call(method, path, body, once=once)
            is_first = number == 0 and not happening.is_lost
            check(happening, answer, is_first=is_first)

    def _reaching(self, device: str) -> Callable[[int], None]:
        """Return how a till waits until the database has its position, and knows that it acknowledges."""

        def reached(position: int) -> None:
            until(
                lambda: self.shop.query(_CURSOR, (self.slug, device)) == [(position,)],
                f"{device} at {position}",
            )

        return reached
