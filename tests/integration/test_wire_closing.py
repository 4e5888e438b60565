"""How connections end (wire protocol §1.3, §1.5): superseded, closed, revoked, timed out."""

from __future__ import annotations

import contextlib
import functools
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.wire import Ended, Till
from tests.integration.wire_case import WireCase

_DEVICE = "POS_BAR_1"


class SupersedeTests(WireCase):
    """One connection for each device: the newest one that proves to be live."""

    def test_the_newest_wins_as_soon_as_it_has_said_something(self) -> None:
        old = self.dial(device=_DEVICE)
        new = self.dial(device=_DEVICE)
        self.publish(1)
        self.assert_ids([old.receive(), new.receive()][:1], 1, 1)
        new.send({"type": "ping", "id": 1})
        self.assert_ended(old.ended(), 4009, "superseded")
        self.assertEqual(new.receive()["echo"], 1)
        self.publish(1)
        self.assert_ids([new.receive()], 2, 2)

    def test_a_ping_of_the_protocol_is_a_frame_too(self) -> None:
        old, new = self.dial(device=_DEVICE), self.dial(device=_DEVICE)
        new.send_ping(b"")
        self.assert_ended(old.ended(), 4009)

    def test_by_its_key_a_device_is_known_as_well(self) -> None:
        key = self.shop.key("device", self.slug, _DEVICE)
        old, new = self.dial(key=key), self.dial(key=key)
        new.send({"type": "pong"})
        self.assert_ended(old.ended(), 4009)

    def test_all_older_ones_are_displaced(self) -> None:
        old = [self.dial(device=_DEVICE) for _ in range(3)]
        self.dial(device=_DEVICE).send({"type": "pong"})
        for each in old:
            self.assert_ended(each.ended(), 4009)

    def test_a_connection_test_displaces_nobody(self) -> None:
        till = self.dial(device=_DEVICE)
        for _ in range(3):
            self.dial(device=_DEVICE, query={"apiKey": self.key}).leave()
            self.dial(device=_DEVICE).hang_up()
        self.assertTrue(till.next_is_pong(1))
        self.publish(1)
        self.assert_ids([till.receive()], 1, 1)

    def test_what_the_older_one_says_does_not_make_it_the_newest(self) -> None:
        old, new = self.dial(device=_DEVICE), self.dial(device=_DEVICE)
        self.assertTrue(old.next_is_pong(1))
        self.publish(1)
        self.assert_ids([new.receive()], 1, 1)

    def test_another_device_and_one_without_a_name_stay(self) -> None:
        others = [self.dial(device="POS_BAR_2"), self.dial(), self.dial()]
        old, new = self.dial(device=_DEVICE), self.dial(device=_DEVICE)
        for each in (*others, new):
            each.send({"type": "pong"})
        self.assert_ended(old.ended(), 4009)
        for each in others:
            self.assertTrue(each.next_is_pong(1))

    def test_devices_of_two_tenants_may_have_one_name(self) -> None:
        mine, slug = self.dial(device=_DEVICE), f"{self.slug}-other"
        self.shop.add_tenant(slug)
        other = self.dial(key=self.shop.key(slug=slug), device=_DEVICE, path=f"/ws/pos/{slug}")
        self.assertTrue(other.next_is_pong(1))
        self.assertTrue(mine.next_is_pong(1))


class RevocationTests(WireCase):
    """4001: the key is no longer valid."""

    def change(self, change: str, device: str) -> None:
        where = " WHERE {mine} AND device_id = %s"
        self.rows(f"UPDATE dinedesk_main.pos_api_keys SET {change}{where}", device)

    def connected(self, device: str) -> Till:
        return self.dial(key=self.shop.key("device", self.slug, device))

    def test_a_revoked_key_closes_its_connections_and_no_others(self) -> None:
        revoked, other = self.connected(_DEVICE), self.connected("POS_BAR_2")
        self.change("revoked_at = now()", _DEVICE)
        self.assert_ended(revoked.ended(), 4001)
        self.assertTrue(other.next_is_pong(1))

    def test_a_key_that_is_deleted_is_as_good_as_revoked(self) -> None:
        till = self.connected(_DEVICE)
        self.rows("DELETE FROM dinedesk_main.pos_api_keys WHERE {mine}")
        self.assert_ended(till.ended(), 4001)

    def test_a_key_ends_when_its_time_has_come(self) -> None:
        till = self.connected(_DEVICE)
        self.change("expires_at = now() + interval '100 milliseconds'", _DEVICE)
        self.assert_ended(till.ended(), 4001)

    def test_a_new_key_in_the_tenants_column_sends_home_who_used_the_old_one(self) -> None:
        write = "UPDATE dinedesk_main.tenants SET pos_api_key = %s WHERE slug = %s"
        self.rows(write, "a-key-of-old", self.slug)
        till = self.dial(key="a-key-of-old")
        self.rows(write, "a-key-of-now", self.slug)
        self.assert_ended(till.ended(), 4001)

    def test_a_tenant_that_is_disabled_has_no_tills(self) -> None:
        till = self.dial()
        self.rows("UPDATE dinedesk_main.tenants SET is_active = false WHERE slug = %s", self.slug)
        self.assert_ended(till.ended(), 4001)

    def test_posd_sends_home_by_a_notification_and_not_by_the_look_every_five_seconds(self) -> None:
        spans: list[float] = []
        # One that begins with the end of another begins with a look, if it was a look that ended that.
        while min(spans[1:], default=5.0) > 4.5:
            self.assertLess(len(spans), 10, spans)
            device = f"POS_BAR_{len(spans)}"
            till = self.connected(device)
            self.change("revoked_at = now()", device)
            began = time.monotonic()
            self.assert_ended(till.ended(), 4001)
            spans.append(time.monotonic() - began)


class ClosingTests(WireCase):
    """Closing by the till and by posd."""

    def test_a_till_that_closes_is_answered(self) -> None:
        self.assert_ended(self.dial().leave(), 1000)

    def test_posd_that_goes_down_says_so(self) -> None:
        posd = self.shop.start()
        tills = [self.dial(to=posd, device=f"POS_BAR_{n}") for n in range(4)]
        tills += [self.dial(to=posd, after=0) for _ in range(2)]
        posd.terminate()
        for till in tills:
            self.assert_ended(till.ended(), 1001)
        self.assertEqual(posd.stop(), 0)

    def test_tills_that_know_nothing_new_are_dropped_last_and_without_a_word(self) -> None:
        posd = self.shop.start()
        old = [self.dial(to=posd) for _ in range(3)]
        new = [self.dial(to=posd, device=f"POS_BAR_{n}") for n in range(3)]
        moments: dict[Till, float] = {}

        def watch(till: Till) -> int:
            code = till.ended().code
            moments[till] = time.monotonic()
            return code

        with ThreadPoolExecutor(6) as crowd:
            watching = [crowd.submit(watch, till) for till in (*old, *new)]
            posd.terminate()
            codes = [each.result(300) for each in watching]
        self.assertEqual(codes, [1006] * 3 + [1001] * 3)
        self.assertLess(max(moments[till] for till in new), max(moments[till] for till in old))
        self.assertEqual(posd.stop(), 0)

    def test_what_was_acknowledged_before_is_in_the_books(self) -> None:
        posd = self.shop.start()
        till = self.dial(to=posd, device=_DEVICE, after=0)
        self.publish(3)
        till.take(3)
        till.send({"type": "ack", "id": 3})
        posd.terminate()
        self.assert_ended(till.ended(), 1001)
        self.assertEqual(posd.stop(), 0)
        self.assertEqual(self.cursor(_DEVICE), 3)


class PatienceTests(SynchronousTestCase):
    """Timeouts. All tests wait concurrently, from the first of these tests on."""

    def assert_ended(self, ended: Ended, code: int) -> None:
        self.assertEqual(ended.code, code)

    def test_a_connection_that_has_stood_for_ten_seconds_has_its_devices_place(self) -> None:
        ended, seconds = _waiting()["displaced"].result(300)
        self.assert_ended(ended, 4009)
        self.assertGreater(seconds, 9)

    def test_a_till_that_is_not_heard_any_more_is_dropped(self) -> None:
        ended, seconds, pings = _waiting()["silent"].result(300)
        self.assert_ended(ended, 1006)
        # Two heartbeats and five seconds, and up to five more until the check.
        self.assertGreater(seconds, 6)
        self.assertGreater(pings, 0)

    def test_one_that_says_anything_at_all_is_kept(self) -> None:
        self.assertTrue(_waiting()["talking"].result(300))

    def test_a_till_that_takes_nothing_for_a_minute_is_given_up_and_loses_nothing(self) -> None:
        code, ids = _waiting()["stalled"].result(600)
        self.assertEqual(code, 1013)
        self.assertEqual(ids, list(range(1, 201)))


@functools.cache
def _waiting() -> dict[str, Future[Any]]:
    """Begin all waits. Return their results."""
    names = ("displaced", "silent", "talking", "stalled")
    crowd = ThreadPoolExecutor(len(names))
    waiting = {name: Waiting(name) for name in names}
    # One after the other: who adds a tenant does not wait for long for others who do.
    for each in waiting.values():
        each.setUp()
    return {name: crowd.submit(getattr(each, name)) for name, each in waiting.items()}


class Waiting(WireCase):
    """The waits, each with a tenant of its own."""

    configuration = '[limits]\nfailed_auth_per_minute = 10000\n[delivery]\nheartbeat = "1s"'

    def displaced(self) -> tuple[Ended, float]:
        old, new = self.dial(device=_DEVICE), self.dial(device=_DEVICE)
        began = time.monotonic()
        with ThreadPoolExecutor(1) as beside:
            # It reads, so it answers posd's pings; but for that it says nothing.
            reading = beside.submit(new.receive, 300)
            ended = old.ended()
            seconds = time.monotonic() - began
            self.publish(1)
            reading.result(300)
        return ended, seconds

    def silent(self) -> tuple[Ended, float, int]:
        till = self.dial()
        till.answering = False
        began = time.monotonic()
        ended = till.ended()
        return ended, time.monotonic() - began, till.pings

    def talking(self) -> bool:
        till = self.dial()
        till.answering = False
        began = time.monotonic()
        while time.monotonic() - began < 15:
            till.send({"type": "pong"})
            with contextlib.suppress(TimeoutError):
                till.receive(1)
        return till.next_is_pong(1)

    def stalled(self) -> tuple[int, list[int]]:
        till = self.dial(after=0, receive_buffer=4096)
        self.publish(200, size=30_000)
        mark = f"connection={till.connected['connectionId']} "
        deadline = time.monotonic() + 500
        while mark not in self.posd.log():
            if time.monotonic() > deadline:
                raise AssertionError("the till is not given up")
            till.send({"type": "pong"})
            time.sleep(0.5)
        (line,) = (each for each in self.posd.log().splitlines() if mark in each)
        ids = [each["id"] for each in self.dial(after=0).take(200)]
        return int(line.partition("code=")[2].split()[0]), ids
