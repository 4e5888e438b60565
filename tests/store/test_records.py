"""Credentials, tenants, orders, stored answers and reports: the smaller tables."""

from __future__ import annotations

from datetime import timedelta

from posd.database.reconnecting import Executor
from posd.errors import StatementFailed
from posd.events.print_status import print_report
from posd.store import credentials, idempotency, orders, tenants
from posd.store import stream_status as standing
from posd.store.credentials import Credential, CredentialQuery
from posd.store.idempotency import IdempotencyKey, StoredResponse
from posd.values import KeyKind, PrintStatus
from tests.store_case import GRILL, KITCHEN, StoreCase

SHA256 = b"s" * 32


async def found_at(executor: Executor, slug: str) -> Credential | None:
    """Look up a key for a tenant."""
    (found,) = await credentials.find(executor, [CredentialQuery(slug, SHA256, None)])
    return found


class CredentialsTests(StoreCase):
    async def test_a_key_that_was_made_is_found_until_it_is_revoked(self) -> None:
        executor = await self.executor()
        values = (KITCHEN, KeyKind.DEVICE, "front", SHA256, "pos_s…s", timedelta(days=1))
        created = await credentials.create(executor, *values)
        key_id = created.id
        assert created.expires_at is not None
        found = await found_at(executor, "kitchen")
        assert found is not None
        self.assertEqual((found.principal.key_id, found.principal.device_id), (key_id, "front"))
        self.assertTrue(found.device_has_key)
        self.assertIsNone(await found_at(executor, "grill"))
        self.assertEqual(await credentials.invalid_keys(executor, [key_id]), set())
        self.assertTrue(await credentials.revoke(executor, key_id))
        self.assertFalse(await credentials.revoke(executor, key_id))
        self.assertIsNone(await found_at(executor, "kitchen"))
        self.assertEqual(await credentials.invalid_keys(executor, [key_id]), {key_id})

    async def test_a_tenants_key_is_revoked_for_that_tenant_only_and_once(self) -> None:
        executor = await self.executor()
        values = (KITCHEN, KeyKind.TENANT, None, SHA256, "p", None)
        key_id = (await credentials.create(executor, *values)).id
        self.assertIsNone(await credentials.revoke_tenant_key(executor, GRILL.id, key_id))
        since = await credentials.revoke_tenant_key(executor, KITCHEN.id, key_id)
        self.assertIsNotNone(since)
        self.assertEqual(await credentials.revoke_tenant_key(executor, KITCHEN.id, key_id), since)

    async def test_disabled_devices_are_those_of_the_tenants_that_are_asked_for(self) -> None:
        executor = await self.executor()
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_devices (tenant_id, device_id, is_active)"
            " VALUES (1, 'front', false), (1, 'bar', true), (2, 'front', false)"
        )
        found = await credentials.disabled_devices(executor, [KITCHEN.id])
        self.assertEqual(found, {(KITCHEN.id, "front")})

    async def test_the_narrower_of_two_equal_keys_speaks(self) -> None:
        executor = await self.executor()
        for tenant, kind in ((None, KeyKind.PLATFORM), (KITCHEN, KeyKind.TENANT)):
            await credentials.create(executor, tenant, kind, None, SHA256, "p", None)
        found = await found_at(executor, "kitchen")
        assert found is not None
        self.assertEqual(found.principal.kind, KeyKind.TENANT)

    async def test_where_no_tenant_is_named_the_wider_of_two_equal_keys_speaks(self) -> None:
        executor = await self.executor()
        self.assertIsNone(await credentials.find_key(executor, SHA256))
        await credentials.create(executor, KITCHEN, KeyKind.DEVICE, "front", SHA256, "p", None)
        narrow = await credentials.find_key(executor, SHA256)
        assert narrow is not None and narrow.tenant is not None
        self.assertEqual((narrow.tenant.slug, narrow.device_id), ("kitchen", "front"))
        self.admin.run("UPDATE dinedesk_main.tenants SET is_active = false WHERE id = 1")
        self.assertIsNone(await credentials.find_key(executor, SHA256))
        await credentials.create(executor, None, KeyKind.PLATFORM, None, SHA256, "p", None)
        wide = await credentials.find_key(executor, SHA256)
        assert wide is not None
        self.assertEqual((wide.kind, wide.tenant), (KeyKind.PLATFORM, None))

    async def test_a_kind_without_what_it_needs_is_refused(self) -> None:
        executor = await self.executor()
        with self.assertRaises(StatementFailed) as caught:
            await credentials.create(executor, KITCHEN, KeyKind.DEVICE, None, SHA256, "p", None)
        self.assertEqual(caught.exception.sqlstate, "23514")

    async def test_all_keys_are_listed_or_those_of_one_tenant(self) -> None:
        executor = await self.executor()
        await credentials.create(executor, None, KeyKind.ADMIN, None, SHA256, "one", None)
        await credentials.create(executor, GRILL, KeyKind.TENANT, None, SHA256, "two", None)
        self.assertEqual(
            [each.slug for each in await credentials.list_keys(executor)], [None, "grill"]
        )
        self.assertEqual(
            [each.preview for each in await credentials.list_keys(executor, "grill")], ["two"]
        )


class TenantsTests(StoreCase):
    async def test_tenants_are_found_by_slug_and_by_id(self) -> None:
        executor = await self.executor()
        kitchen = await tenants.by_slug(executor, "kitchen")
        assert kitchen is not None
        self.assertEqual((kitchen.id, kitchen.schema), (1, "dinedesk_kitchen"))
        self.assertIsNone(await tenants.by_slug(executor, "nowhere"))
        self.assertEqual(set(await tenants.by_id(executor, [1, 2, 99])), {1, 2})

    async def test_one_that_is_disabled_is_listed_only(self) -> None:
        executor = await self.executor()
        self.admin.run("UPDATE dinedesk_main.tenants SET is_active = false WHERE id = 1")
        self.assertIsNone(await tenants.by_slug(executor, "kitchen"))
        listed = [
            (each.tenant.slug, each.is_active) for each in await tenants.list_tenants(executor)
        ]
        self.assertEqual(listed, [("grill", True), ("kitchen", False)])


class OrdersTests(StoreCase):
    async def test_printing_never_moves_backwards(self) -> None:
        executor = await self.executor()
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
            now = await orders.record_report(executor, KITCHEN, report, "front")
            self.assertEqual(now, held)
        report = print_report("8", PrintStatus.PRINTED, None)
        unknown = await orders.record_report(executor, KITCHEN, report, None)
        self.assertIsNone(unknown)
        row = "SELECT device_id, printed_at IS NOT NULL FROM dinedesk_kitchen.pos_orders"
        self.assertEqual(self.admin.rows(row), [("front", True)])


class IdempotencyTests(StoreCase):
    async def test_answers_are_found_by_their_scope_and_stored_once(self) -> None:
        executor = await self.executor()
        call = IdempotencyKey(1, "platform", "POST /events", "k", SHA256)
        others = [
            IdempotencyKey(2, "platform", "POST /events", "k", SHA256),
            IdempotencyKey(1, "device front", "POST /events", "k", SHA256),
            IdempotencyKey(1, "platform", "POST /broadcast", "k", SHA256),
            IdempotencyKey(1, "platform", "POST /events", "K", SHA256),
        ]
        await idempotency.store_responses(executor, [(call, 201, '{"ids":[1]}')])
        found = await idempotency.find_responses(executor, [call, *others])
        self.assertEqual(found, {call.scope: StoredResponse(SHA256, 201, '{"ids":[1]}')})
        with self.assertRaises(StatementFailed):
            await idempotency.store_responses(executor, [(call, 201, "{}")])

    async def test_nobody_can_compute_the_lock_of_anothers_call(self) -> None:
        """A shop knows all parts of the lock's key but the salt."""
        executor = await self.executor()
        call = IdempotencyKey(1, "platform", "POST /events", "k", SHA256)
        shop = self.admin
        shop.run("BEGIN")
        shop.run(
            "SELECT pg_advisory_xact_lock(hashtextextended(text, 7097)) FROM unnest(%s) AS text",
            ["1 platform POST /events k"],
        )

        async def work() -> tuple[int, dict[str, object]]:
            return 201, {}

        answered = await idempotency.run_once(executor, call, work)
        self.assertEqual((answered.status, answered.replayed), (201, False))
        shop.run("ROLLBACK")


class StandingTests(StoreCase):
    async def test_what_failed_today_is_counted(self) -> None:
        executor = await self.executor()
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
        self.assertEqual(await standing.count_failed(executor, KITCHEN), 2)
        self.assertEqual(await standing.count_failed(executor, GRILL), 0)

    async def test_what_waits_is_part_of_how_a_tenant_stands(self) -> None:
        executor = await self.executor()
        self.admin.run("SELECT dinedesk_main.pos_publish('kitchen', 'notice', '{}')")
        streams = await standing.stream_standings(executor)
        self.assertEqual([streams[each].waiting for each in (1, 2)], [1, 0])
        self.assertIsNotNone(streams[1].waiting_since)
        self.assertIsNone(streams[2].waiting_since)
