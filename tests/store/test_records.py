"""Credentials, tenants, orders, stored answers and reports: the smaller tables."""

from __future__ import annotations

from datetime import timedelta

from posd.database.link import Session
from posd.errors import StatementFailed
from posd.events.print_status import print_report
from posd.store import credentials, idempotency, orders, standing, tenants
from posd.store.credentials import Credential, Wanted
from posd.store.idempotency import Answer, Idempotency
from posd.values import KeyKind, PrintStatus
from tests.store_case import GRILL, KITCHEN, StoreCase

SHA256 = b"s" * 32


async def found_at(session: Session, slug: str) -> Credential | None:
    """What the key opens at a tenant."""
    (found,) = await credentials.find(session, [Wanted(slug, SHA256, None)])
    return found


class CredentialsTests(StoreCase):
    async def test_a_key_that_was_made_is_found_until_it_is_revoked(self) -> None:
        session = await self.session()
        values = (KITCHEN, KeyKind.DEVICE, "front", SHA256, "pos_s…s", timedelta(days=1))
        created = await credentials.create(session, *values)
        key_id = created.id
        assert created.expires_at is not None
        found = await found_at(session, "kitchen")
        assert found is not None
        self.assertEqual((found.principal.key_id, found.principal.device_id), (key_id, "front"))
        self.assertTrue(found.device_has_key)
        self.assertIsNone(await found_at(session, "grill"))
        self.assertEqual(await credentials.ended(session, [key_id]), set())
        self.assertTrue(await credentials.revoke(session, key_id))
        self.assertFalse(await credentials.revoke(session, key_id))
        self.assertIsNone(await found_at(session, "kitchen"))
        self.assertEqual(await credentials.ended(session, [key_id]), {key_id})

    async def test_a_tenants_key_is_revoked_for_that_tenant_only_and_once(self) -> None:
        session = await self.session()
        values = (KITCHEN, KeyKind.TENANT, None, SHA256, "p", None)
        key_id = (await credentials.create(session, *values)).id
        self.assertIsNone(await credentials.revoke_of(session, GRILL.id, key_id))
        since = await credentials.revoke_of(session, KITCHEN.id, key_id)
        self.assertIsNotNone(since)
        self.assertEqual(await credentials.revoke_of(session, KITCHEN.id, key_id), since)

    async def test_disabled_devices_are_those_of_the_tenants_that_are_asked_for(self) -> None:
        session = await self.session()
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_devices (tenant_id, device_id, is_active)"
            " VALUES (1, 'front', false), (1, 'bar', true), (2, 'front', false)"
        )
        found = await credentials.disabled(session, [KITCHEN.id])
        self.assertEqual(found, {(KITCHEN.id, "front")})

    async def test_the_narrower_of_two_equal_keys_speaks(self) -> None:
        session = await self.session()
        for tenant, kind in ((None, KeyKind.PLATFORM), (KITCHEN, KeyKind.TENANT)):
            await credentials.create(session, tenant, kind, None, SHA256, "p", None)
        found = await found_at(session, "kitchen")
        assert found is not None
        self.assertEqual(found.principal.kind, KeyKind.TENANT)

    async def test_where_no_tenant_is_named_the_wider_of_two_equal_keys_speaks(self) -> None:
        session = await self.session()
        self.assertIsNone(await credentials.find_anywhere(session, SHA256))
        await credentials.create(session, KITCHEN, KeyKind.DEVICE, "front", SHA256, "p", None)
        narrow = await credentials.find_anywhere(session, SHA256)
        assert narrow is not None and narrow.tenant is not None
        self.assertEqual((narrow.tenant.slug, narrow.device_id), ("kitchen", "front"))
        self.admin.run("UPDATE dinedesk_main.tenants SET is_active = false WHERE id = 1")
        self.assertIsNone(await credentials.find_anywhere(session, SHA256))
        await credentials.create(session, None, KeyKind.PLATFORM, None, SHA256, "p", None)
        wide = await credentials.find_anywhere(session, SHA256)
        assert wide is not None
        self.assertEqual((wide.kind, wide.tenant), (KeyKind.PLATFORM, None))

    async def test_a_kind_without_what_it_needs_is_refused(self) -> None:
        session = await self.session()
        with self.assertRaises(StatementFailed) as caught:
            await credentials.create(session, KITCHEN, KeyKind.DEVICE, None, SHA256, "p", None)
        self.assertEqual(caught.exception.sqlstate, "23514")

    async def test_all_keys_are_listed_or_those_of_one_tenant(self) -> None:
        session = await self.session()
        await credentials.create(session, None, KeyKind.ADMIN, None, SHA256, "one", None)
        await credentials.create(session, GRILL, KeyKind.TENANT, None, SHA256, "two", None)
        self.assertEqual(
            [each.slug for each in await credentials.everyone(session)], [None, "grill"]
        )
        self.assertEqual(
            [each.preview for each in await credentials.everyone(session, "grill")], ["two"]
        )


class TenantsTests(StoreCase):
    async def test_tenants_are_found_by_slug_and_by_id(self) -> None:
        session = await self.session()
        kitchen = await tenants.by_slug(session, "kitchen")
        assert kitchen is not None
        self.assertEqual((kitchen.id, kitchen.schema), (1, "dinedesk_kitchen"))
        self.assertIsNone(await tenants.by_slug(session, "nowhere"))
        self.assertEqual(set(await tenants.by_id(session, [1, 2, 99])), {1, 2})

    async def test_one_that_is_disabled_is_listed_only(self) -> None:
        session = await self.session()
        self.admin.run("UPDATE dinedesk_main.tenants SET is_active = false WHERE id = 1")
        self.assertIsNone(await tenants.by_slug(session, "kitchen"))
        listed = [(each.tenant.slug, each.is_active) for each in await tenants.everyone(session)]
        self.assertEqual(listed, [("grill", True), ("kitchen", False)])


class OrdersTests(StoreCase):
    async def test_printing_never_moves_backwards(self) -> None:
        session = await self.session()
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_orders (tenant_id, order_id, snapshot, status, version)"
            " VALUES (1, '7', '{}', 'confirmed', 1)"
        )
        for told, held in (
            (PrintStatus.FAILED, PrintStatus.FAILED),
            (PrintStatus.PRINTED, PrintStatus.PRINTED),
            (PrintStatus.FAILED, PrintStatus.PRINTED),
            (PrintStatus.PRINTED, PrintStatus.PRINTED),
        ):
            report = print_report("7", told, "why")
            now = await orders.note(session, KITCHEN, report, "front")
            self.assertEqual(now, held)
        report = print_report("8", PrintStatus.PRINTED, None)
        unknown = await orders.note(session, KITCHEN, report, None)
        self.assertIsNone(unknown)
        row = "SELECT device_id, printed_at IS NOT NULL FROM dinedesk_kitchen.pos_orders"
        self.assertEqual(self.admin.rows(row), [("front", True)])


class IdempotencyTests(StoreCase):
    async def test_answers_are_found_by_their_scope_and_stored_once(self) -> None:
        session = await self.session()
        call = Idempotency(1, "platform", "POST /events", "k", SHA256)
        others = [
            Idempotency(2, "platform", "POST /events", "k", SHA256),
            Idempotency(1, "device front", "POST /events", "k", SHA256),
            Idempotency(1, "platform", "POST /broadcast", "k", SHA256),
            Idempotency(1, "platform", "POST /events", "K", SHA256),
        ]
        await idempotency.store(session, [(call, 201, '{"ids":[1]}')])
        found = await idempotency.find(session, [call, *others])
        self.assertEqual(found, {call.scope: Answer(SHA256, 201, '{"ids":[1]}')})
        with self.assertRaises(StatementFailed):
            await idempotency.store(session, [(call, 201, "{}")])

    async def test_nobody_can_compute_the_lock_of_anothers_call(self) -> None:
        """Of the parts of the lock's key, a shop knows all but the salt."""
        session = await self.session()
        call = Idempotency(1, "platform", "POST /events", "k", SHA256)
        shop = self.admin
        shop.run("BEGIN")
        shop.run(
            "SELECT pg_advisory_xact_lock(hashtextextended(text, 7097)) FROM unnest(%s) AS text",
            ["1 platform POST /events k"],
        )

        async def work() -> tuple[int, dict[str, object]]:
            return 201, {}

        answered = await idempotency.once(session, call, work)
        self.assertEqual((answered.status, answered.replayed), (201, False))
        shop.run("ROLLBACK")


class StandingTests(StoreCase):
    async def test_what_failed_today_is_counted(self) -> None:
        session = await self.session()
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_unsequenced"
            " (tenant_id, event_type, event_data, failure, created_at)"
            " VALUES (1, 'a', '{}', 'bad', now()), (1, 'a', '{}', 'bad', now() - interval '2 days'),"
            " (1, 'pos_x', '{}', NULL, now())"
        )
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_nacks (tenant_id, seq, device_id)"
            " VALUES (1, 1, 'a'), (1, 1, 'b')"
        )
        self.assertEqual(await standing.failed(session, KITCHEN), 2)
        self.assertEqual(await standing.failed(session, GRILL), 0)

    async def test_what_waits_is_part_of_how_a_tenant_stands(self) -> None:
        session = await self.session()
        self.admin.run("SELECT dinedesk_main.pos_publish('kitchen', 'notice', '{}')")
        streams = await standing.streams(session)
        self.assertEqual([streams[each].waiting for each in (1, 2)], [1, 0])
        self.assertIsNotNone(streams[1].waiting_since)
        self.assertIsNone(streams[2].waiting_since)
