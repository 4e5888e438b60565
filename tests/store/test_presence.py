"""Connections, positions of terminals, and claims of devices."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from attrs import evolve

from posd.database.reconnecting import Executor
from posd.store import cursors, presence
from posd.values import SessionStart, Tenant
from tests.store_case import GRILL, KITCHEN, StoreCase

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)


async def opening_of(
    executor: Executor, tenant: Tenant, device: str | None, most: int
) -> SessionStart | None:
    place = (tenant.id, device)
    return (await presence.load_session_starts(executor, [place], most)).get(place)


class LeaseTests(StoreCase):
    async def test_the_first_lease_finds_books_that_do_not_know_the_node(self) -> None:
        executor, node = await self.executor(), uuid4()
        self.assertTrue(await presence.renew_lease(executor, node, 15))
        self.assertFalse(await presence.renew_lease(executor, node, 15))
        await presence.remove_node(executor, node)
        self.assertTrue(await presence.renew_lease(executor, node, 15))

    async def test_connections_of_a_node_whose_lease_is_over_do_not_count(self) -> None:
        executor, node = await self.executor(), uuid4()
        await presence.renew_lease(executor, node, 15)
        await presence.insert_connections(
            executor, node, [(uuid4(), 1, "front", NOW), (uuid4(), 1, None, NOW)]
        )
        self.assertEqual(await presence.count_by_tenant(executor), [("kitchen", 2)])
        self.assertEqual(await presence.count_on_other_nodes(executor, uuid4(), [1, 2]), {1: 2})
        self.assertEqual(await presence.count_on_other_nodes(executor, node, [1, 2]), {})
        self.admin.run("UPDATE dinedesk_main.pos_nodes SET lease_until = now()")
        self.assertEqual(await presence.count_by_tenant(executor), [])

    async def test_a_node_that_is_long_dead_is_buried_by_the_next_one(self) -> None:
        executor, dead = await self.executor(), uuid4()
        await presence.renew_lease(executor, dead, 15)
        await presence.insert_connections(executor, dead, [(uuid4(), 1, "front", NOW)])
        self.admin.run(
            "UPDATE dinedesk_main.pos_nodes SET lease_until = now() - interval '2 minutes'"
        )
        await presence.renew_lease(executor, uuid4(), 15)
        count = "SELECT count(*) FROM dinedesk_main.pos_connections"
        self.assertEqual(self.admin.value(count), 0)


class OpeningTests(StoreCase):
    def setUp(self) -> None:
        super().setUp()
        self.admin.run("UPDATE dinedesk_main.pos_heads SET last_seq = 100")

    async def test_a_device_that_was_never_seen_begins_at_the_head(self) -> None:
        executor = await self.executor()
        session_start = await opening_of(executor, KITCHEN, "front", 10)
        assert session_start is not None
        self.assertEqual((session_start.head.last_seq, session_start.acked), (100, 100))
        self.assertTrue(session_start.legacy)

    async def test_a_device_that_acknowledges_goes_on_from_its_cursor(self) -> None:
        executor = await self.executor()
        first = await opening_of(executor, KITCHEN, "front", 10)
        assert first is not None
        self.admin.run("UPDATE dinedesk_main.pos_cursors SET acked_seq = 30")
        await cursors.advance(executor, [(1, "front", first.head.stream_id, 40)])
        session_start = await opening_of(executor, KITCHEN, "front", 10)
        assert session_start is not None
        self.assertEqual((session_start.acked, session_start.legacy), (40, False))

    async def refusing(self, *seqs: int) -> frozenset[int]:
        """Let a device at position 40 refuse events; return the refused events that are loaded."""
        executor = await self.executor()
        first = await opening_of(executor, KITCHEN, "front", 10)
        assert first is not None
        await opening_of(executor, KITCHEN, "bar", 10)
        self.admin.run("UPDATE dinedesk_main.pos_devices SET first_acked_at = now()")
        self.admin.run("UPDATE dinedesk_main.pos_cursors SET acked_seq = 40")
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_events (tenant_id, seq, event_type, event_data, created_at)"
            " SELECT 1, seq, 'notice', '{}', clock_timestamp() FROM generate_series(30, 50) AS seq"
        )
        nacks = [(1, seq, "front", "no paper", first.head.stream_id) for seq in seqs]
        await presence.insert_nacks(executor, [*nacks, (1, 45, "bar", "", first.head.stream_id)])
        return await self.told()

    async def told(self) -> frozenset[int]:
        cursors = [("front", 40), ("bar", 45), ("nobody", 1)]
        found = await presence.load_refused_events(await self.executor(), KITCHEN, cursors)
        self.assertEqual((found["bar"], found["nobody"]), (set(), set()))
        return found["front"]

    async def test_what_a_device_refused_is_told_as_far_as_its_cursor_has_not_come(self) -> None:
        self.assertEqual(await self.refusing(35, 43, 44), {43, 44})

    async def test_what_was_refused_is_not_what_has_its_number_now(self) -> None:
        await self.refusing(41, 43)
        self.admin.run("UPDATE dinedesk_kitchen.pos_events SET created_at = clock_timestamp()")
        self.assertEqual(await self.told(), set())

    async def test_what_was_refused_before_a_replay_is_sent_again(self) -> None:
        await self.refusing(41, 43)
        self.admin.run("UPDATE dinedesk_main.pos_cursors SET replayed_at = clock_timestamp()")
        self.assertEqual(await self.told(), set())

    async def test_what_is_refused_in_another_history_is_not_noted(self) -> None:
        executor = await self.executor()
        await presence.insert_nacks(executor, [(1, 7, "front", "no paper", uuid4())])
        self.assertEqual(self.admin.value("SELECT count(*) FROM dinedesk_kitchen.pos_nacks"), 0)

    async def test_a_terminal_without_a_name_has_no_cursor(self) -> None:
        session_start = await opening_of(await self.executor(), KITCHEN, None, 10)
        assert session_start is not None
        self.assertEqual((session_start.acked, session_start.legacy), (None, False))

    async def test_a_tenant_has_no_more_devices_than_it_may(self) -> None:
        executor = await self.executor()
        for name in ("one", "two"):
            self.assertIsNotNone(await opening_of(executor, KITCHEN, name, 2))
        self.assertIsNone(await opening_of(executor, KITCHEN, "three", 2))
        self.assertIsNotNone(await opening_of(executor, KITCHEN, "one", 2))
        self.assertIsNotNone(await opening_of(executor, GRILL, "three", 2))

    async def test_many_that_come_together_are_told_and_registered_together(self) -> None:
        executor = await self.executor()
        self.assertIsNotNone(await opening_of(executor, KITCHEN, "two", 4))
        self.admin.run("DELETE FROM dinedesk_main.pos_cursors")
        names = ("four", "one", None, "three", "two", "five")
        wanted = [(tenant, name) for tenant in (1, 2, 99) for name in names]
        found = await presence.load_session_starts(executor, wanted, 4)
        # The first new devices by name get the remaining places.
        self.assertEqual(
            {name for tenant, name in found if tenant == 1}, {"five", "four", "one", "two", None}
        )
        self.assertEqual(
            {name for tenant, name in found if tenant == 2}, {"five", "four", "one", "three", None}
        )
        self.assertEqual(len(found), 10)
        self.assertEqual(found[1, None].acked, None)
        self.assertEqual(found[1, "two"].acked, 100)
        count = "SELECT count(*) FROM dinedesk_main.pos_cursors"
        self.assertEqual(self.admin.value(count), 8)

    async def test_a_tenant_that_is_gone_has_nothing(self) -> None:
        gone = evolve(KITCHEN, id=99)
        self.assertIsNone(await opening_of(await self.executor(), gone, "front", 10))

    async def test_a_cursor_never_moves_back_nor_beyond_the_head(self) -> None:
        executor = await self.executor()
        first = await opening_of(executor, KITCHEN, "front", 10)
        assert first is not None
        self.admin.run("UPDATE dinedesk_main.pos_devices SET first_acked_at = now()")
        self.admin.run("UPDATE dinedesk_main.pos_cursors SET acked_seq = 40")
        cursor = "SELECT acked_seq FROM dinedesk_main.pos_cursors"
        for asked, held in ((50, 50), (45, 50), (101, 50), (100, 100)):
            await cursors.advance(executor, [(1, "front", first.head.stream_id, asked)])
            self.assertEqual(self.admin.value(cursor), held)

    async def test_progress_never_moves_back_nor_beyond_the_head(self) -> None:
        executor, name = await self.executor(), self.stream()
        head = "SELECT sent_seq, received_seq FROM dinedesk_main.pos_heads WHERE tenant_id = 1"
        for sent, received, held in (
            (50, 40, (50, 40)),
            (45, 60, (50, 60)),
            (300, 0, (100, 60)),
        ):
            await presence.update_progress(executor, [(*name, sent, received), (2, name[1], 1, 1)])
            self.assertEqual(self.admin.rows(head), [held])

    async def test_an_acknowledged_event_counts_once_unless_it_was_pruned_before(self) -> None:
        executor, name = await self.executor(), self.stream()
        counted = "SELECT acknowledged FROM dinedesk_main.pos_heads WHERE tenant_id = 1"
        for received, count in ((40, 40), (30, 40), (41, 41), (0, 41)):
            await presence.update_progress(executor, [(*name, 100, received)])
            self.assertEqual(self.admin.value(counted), count)
        self.admin.run("UPDATE dinedesk_main.pos_heads SET pruned_seq = 50")
        for received, count in ((45, 41), (52, 43), (300, 91)):
            await presence.update_progress(executor, [(*name, 100, received)])
            self.assertEqual(self.admin.value(counted), count)


class ClaimTests(StoreCase):
    async def enter(self, since: datetime, device: str = "front") -> UUID:
        connection_id = uuid4()
        await presence.insert_connections(
            self.books, self.node, [(connection_id, 1, device, since)]
        )
        return connection_id

    async def begin(self) -> None:
        self.books, self.node = await self.executor(), uuid4()
        await presence.renew_lease(self.books, self.node, 15)
        self.admin.told()

    async def claim(self, each: UUID, since: datetime = NOW, device: str = "front") -> bool:
        return each not in await presence.claim_devices(self.books, [(each, 1, device, since)])

    def superseded(self) -> list[str]:
        told = [what.split() for what in self.admin.told()]
        return [subject for kind, subject in told if kind == "superseded"]

    async def test_the_newer_connection_wins_and_the_older_is_told(self) -> None:
        await self.begin()
        old, new = await self.enter(NOW), await self.enter(NOW + timedelta(seconds=1))
        other = await self.enter(NOW, device="back")
        self.assertTrue(await self.claim(new, NOW + timedelta(seconds=1)))
        self.assertEqual(self.superseded(), [str(old)])
        self.assertFalse(await self.claim(old))
        self.assertTrue(await self.claim(other, NOW, "back"))

    async def test_one_that_has_not_claimed_yet_displaces_nobody(self) -> None:
        await self.begin()
        old = await self.enter(NOW)
        await self.enter(NOW + timedelta(seconds=1))
        self.assertTrue(await self.claim(old))
        self.assertEqual(self.superseded(), [])

    async def test_of_two_that_came_at_the_same_moment_one_stays(self) -> None:
        await self.begin()
        both = [await self.enter(NOW), await self.enter(NOW)]
        won = [await self.claim(each) for each in both]
        won += [await self.claim(each) for each in both]
        self.assertEqual(won[2:].count(True), 1)
        self.assertEqual(set(self.superseded()), {str(min(both))})

    async def test_those_that_claim_together_are_told_apart_as_if_one_after_the_other(self) -> None:
        await self.begin()
        times = [NOW + timedelta(seconds=number) for number in range(3)]
        front = [await self.enter(when) for when in times]
        back = await self.enter(NOW, device="back")
        claims = [(each, 1, "front", when) for each, when in zip(front, times, strict=True)]
        lost = await presence.claim_devices(self.books, [*claims[:2], (back, 1, "back", NOW)])
        self.assertEqual(lost, {front[0]})
        self.assertEqual(self.superseded(), [str(front[0])])
        claimed = "SELECT count(*) FROM dinedesk_main.pos_connections WHERE claimed_at IS NOT NULL"
        self.assertEqual(self.admin.value(claimed), 3)
        self.assertEqual(await presence.claim_devices(self.books, claims[2:]), set())
        self.assertEqual({*self.superseded()}, {str(each) for each in front[:2]})
