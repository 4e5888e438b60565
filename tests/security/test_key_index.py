"""Tests of the key index: load, changes, and refusals that are never wrong."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock

from posd.database.pool import Pool
from posd.errors import Unavailable
from posd.security import key_index as module
from posd.security.key_index import KeyIndex
from posd.store import key_changes
from posd.store.key_changes import KeySnapshot
from posd.testing.postgres import test_server
from tests.database_case import REACTOR, DatabaseCase, begin
from tests.schema_case import Client, two_shops

INSERT = (
    "INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, device_id, key_sha256, preview)"
    " VALUES ((SELECT id FROM dinedesk_main.tenants WHERE slug = %s), %s, %s, %s, 'test')"
)


class IndexCase(DatabaseCase):
    def template(self) -> str:
        return test_server().template(two_shops)

    async def setUp(self) -> None:  # type: ignore[override]
        super().setUp()
        self.clock = Clock()
        self.database = Pool(REACTOR, self.dsn, size=4, statement_timeout=300.0)
        self.database.startService()
        self.addCleanup(self.database.stopService)
        await self.database.when_up()
        self.index = KeyIndex(self.clock, self.database)

    def key(
        self,
        kind: str = "tenant",
        slug: str | None = "kitchen",
        device: str | None = None,
        client: Client | None = None,
        sha256: bytes | None = None,
    ) -> bytes:
        """Return the hash of a new key."""
        sha256 = sha256 or hashlib.sha256(secrets.token_bytes(8)).digest()
        (client or self.admin).run(INSERT, slug, kind, device, sha256)
        return sha256

    def change(self, key: bytes, what: str) -> None:
        self.admin.run(f"UPDATE dinedesk_main.pos_api_keys SET {what} WHERE key_sha256 = %s", key)

    def knows(self, key: bytes, slug: str | None = "kitchen") -> bool:
        return self.index.find(key, slug) is not None

    def presented(self, key: bytes, slug: str | None = "kitchen") -> Deferred[bool]:
        return begin(self.index.may_be_valid(key, slug))


class ReadTests(IndexCase):
    async def test_a_key_is_found_where_it_may_be_used_and_nowhere_else(self) -> None:
        own, wide, device = self.key(), self.key("platform", None), self.key("device", device="bar")
        await self.index.refresh()
        for key, shared in ((own, True), (device, False)):
            found = self.index.find(key, "kitchen")
            assert found is not None
            self.assertEqual((found.tenant_id, found.shared), (1, shared))
            self.assertFalse(self.knows(key, "grill"))
            self.assertTrue(self.knows(key, None))
        self.assertTrue(self.knows(wide) and self.knows(wide, "grill") and self.knows(wide, None))
        self.assertFalse(self.knows(wide, "nowhere"))
        self.assertFalse(self.knows(b"0" * 32) or self.knows(b"0" * 32, None))

    async def test_one_key_may_be_that_of_several_tenants(self) -> None:
        key = self.key()
        for slug in ("grill", None):
            self.key("tenant" if slug else "platform", slug, sha256=key)
        await self.index.refresh()
        self.assertTrue(self.knows(key, "kitchen") and self.knows(key, "grill"))
        self.change(key, "revoked_at = now()")
        await self.index.refresh()
        self.assertEqual(len(self.index), 0)

    async def test_the_index_is_loaded_in_pages(self) -> None:
        self.patch(module, "_PAGE_KEYS", 3)
        keys = [self.key() for _ in range(10)]
        revoked = self.key()
        self.change(revoked, "revoked_at = now()")
        await self.index.refresh()
        self.assertEqual((len(self.index), all(map(self.knows, keys))), (10, True))
        self.assertFalse(self.knows(revoked))

    async def test_a_hundred_thousand_keys_are_loaded_once_and_then_only_changes(self) -> None:
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, key_sha256, preview)"
            " SELECT 1, 'tenant', sha256(n::text::bytea), 'test' FROM generate_series(1, 100000) AS n"
        )
        await self.index.refresh()
        self.assertEqual(len(self.index), 100_000)
        self.assertTrue(self.knows(hashlib.sha256(b"77777").digest()))
        key = self.key()
        found: list[int] = []
        real = key_changes.load_changes

        async def noted(*given: Any) -> Any:
            changes = await real(*given)
            found.append(len(changes.keys))
            return changes

        self.patch(key_changes, "load_changes", noted)
        await self.index.refresh()
        await self.index.refresh()
        self.assertEqual((found, self.knows(key)), ([1, 0], True))


class ChangeTests(IndexCase):
    async def test_what_is_made_revoked_or_made_valid_again_is_seen_at_the_next_look(self) -> None:
        await self.index.refresh()
        key = self.key()
        self.assertFalse(self.knows(key))
        await self.index.refresh()
        self.assertTrue(self.knows(key))
        for what, there in (
            ("revoked_at = now()", False),
            ("revoked_at = NULL", True),
            ("expires_at = now()", False),
            ("expires_at = now() + interval '1 day'", True),
            ("not_before = now() + interval '1 day'", True),
            ("last_used_at = now()", True),
        ):
            self.change(key, what)
            await self.index.refresh()
            self.assertEqual(self.knows(key), there, what)

    async def test_a_tenant_that_is_disabled_or_new(self) -> None:
        key = self.key("platform", None)
        await self.index.refresh()
        self.admin.run("UPDATE dinedesk_main.tenants SET is_active = false WHERE slug = 'kitchen'")
        self.admin.run(
            "INSERT INTO dinedesk_main.tenants (slug, name, schema_name)"
            " VALUES ('bar', 'Bar', 'dinedesk_bar')"
        )
        await self.index.refresh()
        self.assertEqual([self.knows(key, slug) for slug in ("kitchen", "bar")], [False, True])

    async def test_a_late_commit_is_read(self) -> None:
        """The rows of such a transaction are older than rows that were already read."""
        slow = self.client()
        slow.run("BEGIN")
        early = self.key(client=slow)
        late = self.key()
        await self.index.refresh()
        self.assertEqual((self.knows(early), self.knows(late)), (False, True))
        later = self.key()
        await self.index.refresh()
        slow.run("COMMIT")
        await self.index.refresh()
        self.assertEqual([self.knows(key) for key in (early, late, later)], [True] * 3)

    async def test_what_is_committed_while_everything_is_read_is_seen(self) -> None:
        slow = self.client()
        slow.run("BEGIN")
        early = self.key(client=slow)
        later = self.key()
        real = key_changes.load_keys

        async def page(*given: Any) -> Any:
            found = await real(*given)
            slow.run("COMMIT")
            return found

        self.patch(key_changes, "load_keys", page)
        await self.index.refresh()
        self.assertTrue(self.knows(early) and self.knows(later))

    async def test_another_database_is_loaded_completely(self) -> None:
        """The transaction ids of a restored database cannot be compared."""
        gone, kept = self.key(), self.key()
        await self.index.refresh()
        self.admin.run("DELETE FROM dinedesk_main.pos_api_keys WHERE key_sha256 = %s", gone)
        self.admin.run("ALTER TABLE dinedesk_main.pos_api_keys DISABLE TRIGGER USER")
        self.change(kept, "changed_in = '9000000000'")
        await self.index.refresh()
        self.assertTrue(self.knows(gone))
        self.index.invalidate()
        await self.index.refresh()
        self.assertEqual((self.knows(gone), self.knows(kept)), (False, True))
        changes = await key_changes.load_changes(
            self.database, await key_changes.current_snapshot(self.database)
        )
        self.assertEqual(changes.keys, [])

    async def test_so_is_one_that_was_set_back(self) -> None:
        await self.index.refresh()
        self.index._snapshot = KeySnapshot("9000000000:9000000000:")
        key = self.key()
        await self.index.refresh()
        self.assertTrue(self.knows(key))
        self.assertNotEqual(self.index._snapshot, KeySnapshot("9000000000:9000000000:"))

    async def test_looks_that_are_asked_for_during_one_are_one_more(self) -> None:
        looks: list[object] = []
        await self.index.refresh()
        real = key_changes.load_changes

        async def noted(*given: Any) -> Any:
            looks.append(given)
            return await real(*given)

        self.patch(key_changes, "load_changes", noted)
        key = self.key()
        await gatherResults([begin(self.index.refresh()) for _ in range(100)])
        self.assertEqual((len(looks), self.knows(key)), (2, True))


class NoTests(IndexCase):
    """When the index refuses a key, and when it must not."""

    async def test_before_it_was_read_every_key_may_be_one(self) -> None:
        self.assertTrue(await self.index.may_be_valid(b"0" * 32, "kitchen"))

    async def test_a_key_that_is_not_known_waits_for_the_news_once(self) -> None:
        await self.index.refresh()
        first = self.presented(b"0" * 32)
        self.assertNoResult(first)
        self.clock.advance(0.1)
        self.assertFalse(self.successResultOf(first))
        self.assertFalse(self.successResultOf(self.presented(b"0" * 32)))

    async def test_a_key_that_was_made_just_now_is_known_when_the_news_comes(self) -> None:
        await self.index.refresh()
        key = self.key()
        waiting = self.presented(key)
        self.clock.advance(0.05)
        self.assertNoResult(waiting)
        await self.index.refresh()
        self.assertTrue(self.successResultOf(waiting))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_the_number_of_waiting_keys_is_limited(self) -> None:
        await self.index.refresh()
        answers = [self.presented(b"%032d" % number) for number in range(2000)]
        self.assertEqual(len([each for each in answers if not each.called]), 100)
        self.clock.advance(0.1)
        self.assertEqual([self.successResultOf(each) for each in answers], [False] * 2000)

    async def test_a_stale_index_does_not_refuse_a_key(self) -> None:
        key = self.key()
        await self.index.refresh()
        self.clock.advance(10)
        refused = self.presented(b"0" * 32)
        self.clock.advance(0.1)
        self.failureResultOf(refused, Unavailable)
        self.assertTrue(await self.index.may_be_valid(key, "kitchen"))
        await self.index.refresh()
        again = self.presented(b"0" * 32)
        self.clock.advance(0.1)
        self.assertFalse(self.successResultOf(again))

    async def test_nor_after_a_look_that_failed(self) -> None:
        await self.index.refresh()
        self.assertTrue(self.index.is_fresh)

        async def fail(*given: Any) -> Any:
            raise Unavailable("The database is away.")

        self.patch(key_changes, "load_changes", fail)
        with self.assertRaises(Unavailable):
            await self.index.refresh()
        self.assertFalse(self.index.is_fresh)
