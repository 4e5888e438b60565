"""Tests of authentication: one answer for all invalid keys, and the limits of the cache."""

from __future__ import annotations

import builtins
import errno
import hashlib
import secrets
from collections import Counter, OrderedDict
from collections.abc import Awaitable
from pathlib import Path
from traceback import walk_tb
from typing import Any, NoReturn

from twisted.internet.defer import gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogLevel, capturedLogs, formatEvent

from posd.database.pool import Pool
from posd.database.reconnecting import Parameters, Row
from posd.errors import (
    Busy,
    Forbidden,
    NotFound,
    StatementFailed,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from posd.security.auth import Authenticator, require_kind
from posd.security.key_index import KeyIndex
from posd.security.rate_limits import FailedAttempts
from posd.store.credentials import Credential
from posd.testing.postgres import test_server
from posd.values import KeyKind, Principal, TenantId
from tests import stack
from tests.database_case import REACTOR, DatabaseCase, begin, until
from tests.schema_case import two_shops

HERE = "192.0.2.1"


class CountingDatabase(Pool):
    """A pool that counts its statements."""

    statements = 0

    async def query(
        self, sql: str, parameters: Parameters = (), *, tenant: TenantId | None = None
    ) -> list[Row]:
        self.statements += 1
        return await Pool.query(self, sql, parameters, tenant=tenant)


class AuthCase(DatabaseCase):
    def template(self) -> str:
        return test_server().template(two_shops)

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()

    async def authenticator(self, *, per_minute: int = 20, read: bool = False) -> Authenticator:
        """Return an authenticator whose index is loaded if `read` is true."""
        self.database = CountingDatabase(REACTOR, self.dsn, size=2, statement_timeout=300.0)
        self.database.startService()
        self.addCleanup(self.database.stopService)
        await self.database.when_up()
        attempts = FailedAttempts(per_minute, self.clock.seconds)
        self.index = KeyIndex(self.clock, self.database)
        authenticator = Authenticator(self.clock, self.database, self.index, attempts)
        if read:
            await self.index.refresh()
            self.database.statements = 0
        return authenticator

    def key(
        self, kind: str = "tenant", slug: str | None = "kitchen", device: str | None = None
    ) -> str:
        secret = f"pos_{secrets.token_hex(32)}"
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, device_id, key_sha256, preview)"
            " VALUES ((SELECT id FROM dinedesk_main.tenants WHERE slug = %s), %s, %s, %s, 'test')",
            slug,
            kind,
            device,
            hashlib.sha256(secret.encode()).digest(),
        )
        return secret

    def change(self, key: str, what: str) -> None:
        self.admin.run(
            f"UPDATE dinedesk_main.pos_api_keys SET {what} WHERE key_sha256 = %s",
            hashlib.sha256(key.encode()).digest(),
        )

    async def refusal(self, call: Awaitable[Any]) -> Exception:
        try:
            await call
        except Exception as error:
            return error
        raise AssertionError("it was let in")


class OneAnswerTests(AuthCase):
    async def test_all_wrong_credentials_get_the_same_answer_for_one_statement(self) -> None:
        authenticator = await self.authenticator(per_minute=100)
        revoked, expired, later, of_grill = (self.key() for _ in range(4))
        self.change(revoked, "revoked_at = now()")
        self.change(expired, "expires_at = now()")
        self.change(later, "not_before = now() + interval '1 hour'")
        of_grill = self.key(slug="grill")
        closed = self.key(slug="grill")
        answers = []
        for slug, key in (
            ("kitchen", "pos_" + "0" * 64),
            ("nowhere", "pos_" + "0" * 64),
            ("nowhere", self.key()),
            ("kitchen", revoked),
            ("kitchen", expired),
            ("kitchen", later),
            ("kitchen", of_grill),
            ("kitchen", "kéy"),
        ):
            before = self.database.statements
            answers.append(await self.refusal(authenticator.find_credential(slug, key, None, HERE)))
            self.assertEqual(self.database.statements - before, 1)
        self.admin.run("UPDATE dinedesk_main.tenants SET is_active = false WHERE slug = 'grill'")
        answers.append(
            await self.refusal(authenticator.find_credential("grill", closed, None, HERE))
        )
        self.assertEqual({type(each) for each in answers}, {Unauthorized})
        self.assertEqual(len({str(each) for each in answers}), 1)

    async def test_a_text_that_cannot_be_a_key_is_not_looked_up(self) -> None:
        authenticator = await self.authenticator()
        for key in (None, "", "x" * 256):
            refusal = await self.refusal(authenticator.find_credential("kitchen", key, None, HERE))
            self.assertIsInstance(refusal, Unauthorized)
        self.assertEqual(self.database.statements, 0)

    async def test_a_key_opens_its_own_tenant_and_one_of_all_tenants_each(self) -> None:
        authenticator = await self.authenticator()
        credential = await authenticator.find_credential("kitchen", self.key(), None, HERE)
        self.assertEqual(credential.tenant.slug, "kitchen")
        self.assertEqual(credential.principal.tenant, credential.tenant)
        everywhere = self.key("platform", None)
        for slug in ("kitchen", "grill"):
            credential = await authenticator.find_credential(slug, everywhere, None, HERE)
            self.assertEqual(credential.tenant.slug, slug)
            self.assertIsNone(credential.principal.tenant)

    async def test_a_key_names_its_tenant_if_the_url_names_none(self) -> None:
        authenticator = await self.authenticator()
        principal = await authenticator.find_principal(self.key("admin", None), HERE)
        self.assertEqual((principal.kind, principal.tenant), (KeyKind.ADMIN, None))
        principal = await authenticator.find_principal(self.key("admin", "kitchen"), HERE)
        assert principal.tenant is not None
        self.assertEqual(principal.tenant.slug, "kitchen")
        for key in (None, "pos_wrong"):
            refusal = await self.refusal(authenticator.find_principal(key, HERE))
            self.assertIsInstance(refusal, Unauthorized)

    async def test_without_a_database_it_is_unavailable_and_no_failed_attempt(self) -> None:
        authenticator = await self.authenticator(per_minute=1)
        key = self.key()
        await self.database.stopService()
        for _ in range(3):
            refusal = await self.refusal(authenticator.find_credential("kitchen", key, None, HERE))
            self.assertIsInstance(refusal, Unavailable)

    async def test_a_tenant_with_a_schema_of_another_version_is_not_served(self) -> None:
        authenticator = await self.authenticator()
        self.admin.run(
            "DELETE FROM dinedesk_main.schema_versions"
            " WHERE schema_name = 'dinedesk_kitchen' AND file = 'tenant/001_stream.sql'"
        )
        key = self.key()
        with capturedLogs() as logged:
            for _ in range(20):
                refusal = await self.refusal(
                    authenticator.find_credential("kitchen", key, None, HERE)
                )
                self.assertIsInstance(refusal, Unavailable)
        lines = [formatEvent(event) for event in logged if event.get("log_level") == LogLevel.error]
        self.assertEqual(len(lines), 5)
        self.assertIn("tenant=kitchen reason='the schema is older than this posd", lines[0])
        key = self.key(slug="grill")
        self.assertIsInstance(
            await authenticator.find_credential("grill", key, None, HERE), Credential
        )

    async def test_on_a_trusted_listener_the_tenant_has_to_be_there(self) -> None:
        authenticator = await self.authenticator()
        self.assertEqual((await authenticator.trusted_tenant("kitchen")).slug, "kitchen")
        self.assertIsInstance(await self.refusal(authenticator.trusted_tenant("nowhere")), NotFound)


class RememberingTests(AuthCase):
    async def test_a_key_is_looked_up_once_in_ten_seconds(self) -> None:
        authenticator = await self.authenticator()
        key = self.key()
        for _ in range(3):
            await authenticator.find_credential("kitchen", key, None, HERE)
        self.assertEqual(self.database.statements, 1)
        self.clock.advance(10.5)
        await authenticator.find_credential("kitchen", key, None, HERE)
        self.assertEqual(self.database.statements, 2)

    async def test_a_stampede_asks_once_and_a_failure_reaches_everybody(self) -> None:
        authenticator = await self.authenticator()
        key = self.key()
        calls = [
            begin(authenticator.find_credential("kitchen", key, None, HERE)) for _ in range(50)
        ]
        self.assertEqual({each.tenant.slug for each in await gatherResults(calls)}, {"kitchen"})
        self.assertEqual(self.database.statements, 1)
        # Not in the same turn of the reactor as the answers.
        await deferLater(REACTOR, 0)
        calls = [begin(authenticator.find_credential("grill", key, None, HERE)) for _ in range(5)]
        await self.database.stopService()
        for call in calls:
            self.assertIsInstance(await self.refusal(call), Unavailable)

    async def test_a_changed_key_is_looked_up_again(self) -> None:
        authenticator = await self.authenticator()
        key = self.key()
        credential = await authenticator.find_credential("kitchen", key, None, HERE)
        self.change(key, "revoked_at = now()")
        await authenticator.find_credential("kitchen", key, None, HERE)
        authenticator.forget_key(credential.principal.key_id)
        refusal = await self.refusal(authenticator.find_credential("kitchen", key, None, HERE))
        self.assertIsInstance(refusal, Unauthorized)

    async def test_only_changed_keys_are_looked_up_again(
        self,
    ) -> None:
        class Unsearchable(OrderedDict[Any, Any]):
            def __iter__(self) -> NoReturn:
                raise AssertionError("ten thousand would be searched for each key that changes")

            items = keys = values = __iter__

        authenticator = await self.authenticator()
        authenticator._lookup._cache = Unsearchable()
        keys = [self.key() for _ in range(3)]
        first, *_ = [
            await authenticator.find_credential("kitchen", key, None, HERE) for key in keys
        ]
        authenticator.forget_key(first.principal.key_id)
        for _ in range(2):
            for key in keys:
                await authenticator.find_credential("kitchen", key, None, HERE)
        self.assertEqual(self.database.statements, 4)
        authenticator.forget_tenant(first.tenant.id)
        for key in keys:
            await authenticator.find_credential("kitchen", key, None, HERE)
        self.assertEqual(self.database.statements, 7)
        # The notes of changes are limited too.
        for number in range(20_000):
            authenticator.forget_key(number)
        self.assertLess(len(authenticator._lookup._invalidated_at), 10_001)

    async def test_all_keys_are_looked_up_anew_when_everything_is_read_again(self) -> None:
        authenticator = await self.authenticator()
        key = self.key()
        await authenticator.find_credential("kitchen", key, None, HERE)
        self.change(key, "revoked_at = now()")
        authenticator.forget_all()
        refusal = await self.refusal(authenticator.find_credential("kitchen", key, None, HERE))
        self.assertIsInstance(refusal, Unauthorized)

    async def test_keys_of_a_changed_tenant_are_looked_up_again(self) -> None:
        authenticator = await self.authenticator()
        key = self.key()
        credential = await authenticator.find_credential("kitchen", key, None, HERE)
        self.admin.run("UPDATE dinedesk_main.tenants SET is_active = false WHERE slug = 'kitchen'")
        authenticator.forget_tenant(credential.tenant.id)
        refusal = await self.refusal(authenticator.find_credential("kitchen", key, None, HERE))
        self.assertIsInstance(refusal, Unauthorized)

    async def test_a_result_is_not_cached_if_a_key_changes_during_the_statement(self) -> None:
        authenticator = await self.authenticator()
        key = self.key()
        asking = begin(authenticator.find_credential("kitchen", key, None, HERE))
        authenticator.forget_key(1)
        await asking
        await authenticator.find_credential("kitchen", key, None, HERE)
        self.assertEqual(self.database.statements, 2)

    async def test_a_slow_lookup_is_refused_as_busy_and_its_result_is_cached(
        self,
    ) -> None:
        authenticator = await self.authenticator()
        key = self.key()
        self.admin.run("BEGIN; LOCK TABLE dinedesk_main.pos_api_keys")
        waiting = [
            begin(self.refusal(authenticator.find_credential("kitchen", key, None, HERE)))
            for _ in range(2)
        ]
        self.clock.advance(3.5)
        for each in waiting:
            self.assertIsInstance(await each, Busy)
        self.admin.run("COMMIT")
        await until(lambda: bool(authenticator._lookup._cache), "the key is found")
        await authenticator.find_credential("kitchen", key, None, HERE)
        self.assertEqual(self.database.statements, 1)

    async def test_a_cached_key_expires_in_time(self) -> None:
        authenticator = await self.authenticator()
        key = self.key()
        self.change(key, "expires_at = clock_timestamp() + interval '300 milliseconds'")
        await authenticator.find_credential("kitchen", key, None, HERE)
        self.clock.advance(0.3)
        expired = "SELECT expires_at < clock_timestamp() FROM dinedesk_main.pos_api_keys"
        await until(lambda: bool(self.admin.value(expired)), "the key has expired")
        refusal = await self.refusal(authenticator.find_credential("kitchen", key, None, HERE))
        self.assertIsInstance(refusal, Unauthorized)

    async def test_which_keys_were_used_is_written_down_from_time_to_time(self) -> None:
        authenticator = await self.authenticator()
        used, unused = self.key(), self.key()
        await authenticator.find_credential("kitchen", used, None, HERE)
        await authenticator.record_used_keys()
        found = "SELECT key_sha256 FROM dinedesk_main.pos_api_keys WHERE last_used_at IS NOT NULL"
        self.assertEqual(bytes(self.admin.value(found)), hashlib.sha256(used.encode()).digest())
        self.assertNotEqual(used, unused)


class UnknownKeyTests(AuthCase):
    """After the index has been loaded, an unknown key costs no statement."""

    async def refused(self, *calls: Awaitable[Any]) -> list[Exception]:
        """Return the refusal of each attempt, after the wait for a notification."""
        asked = [begin(self.refusal(each)) for each in calls]
        self.clock.advance(0.1)
        return [await each for each in asked]

    async def test_whatever_does_not_fit_gets_one_answer_for_no_statement(self) -> None:
        revoked, expired, ended = (self.key() for _ in range(3))
        self.change(revoked, "revoked_at = now()")
        self.change(expired, "expires_at = now()")
        self.admin.run("UPDATE dinedesk_main.tenants SET is_active = false WHERE slug = 'grill'")
        of_grill, wide = self.key(slug="grill"), self.key("platform", None)
        authenticator = await self.authenticator(per_minute=100, read=True)
        unknown = "pos_" + "0" * 64
        answers = await self.refused(
            *(
                authenticator.find_credential("kitchen", each, None, HERE)
                for each in (unknown, revoked)
            ),
            *(
                authenticator.find_credential("nowhere", each, None, HERE)
                for each in (unknown, wide)
            ),
            *(
                authenticator.find_credential("kitchen", each, "bar", HERE)
                for each in (expired, of_grill)
            ),
            authenticator.find_credential("grill", of_grill, None, HERE),
            authenticator.find_credential("nowhere", ended, None, HERE),
            authenticator.find_principal(unknown, HERE),
            authenticator.require_known_key(unknown, HERE),
        )
        self.assertEqual({type(each) for each in answers}, {Unauthorized})
        self.assertEqual(len({str(each) for each in answers}), 1)
        self.assertEqual(self.database.statements, 0)

    async def test_a_blocked_address_costs_no_statement_and_can_use_a_valid_key(
        self,
    ) -> None:
        key = self.key()
        authenticator = await self.authenticator(per_minute=3, read=True)
        answers = await self.refused(
            *(
                authenticator.find_credential("kitchen", f"wrong{n}", None, HERE)
                for n in range(2000)
            )
        )
        told = Counter(type(each) for each in answers)
        self.assertEqual(told, {Unauthorized: 3, TooManyRequests: 1997})
        self.assertEqual(self.database.statements, 0)
        await authenticator.find_credential("kitchen", key, None, HERE)
        self.assertEqual(self.database.statements, 1)

    async def test_every_visible_character_can_be_in_a_key(self) -> None:
        secret = "".join(map(chr, range(0x21, 0x7F)))
        self.admin.run(
            "UPDATE dinedesk_main.tenants SET pos_api_key = %s WHERE slug = 'kitchen'", secret
        )
        authenticator = await self.authenticator(read=True)
        await authenticator.find_credential("kitchen", secret, None, HERE)
        await authenticator.require_known_key(secret, HERE)

    async def test_a_key_that_expires_is_looked_up_and_refused(self) -> None:
        key = self.key()
        self.change(key, "expires_at = clock_timestamp() + interval '300 milliseconds'")
        authenticator = await self.authenticator(read=True)
        expired = "SELECT expires_at < clock_timestamp() FROM dinedesk_main.pos_api_keys"
        await until(lambda: bool(self.admin.value(expired)), "the key has expired")
        refusal = await self.refusal(authenticator.find_credential("kitchen", key, None, HERE))
        self.assertIsInstance(refusal, Unauthorized)


class CrowdTests(AuthCase):
    async def test_two_thousand_lookups_at_once_need_some_dozen_statements(self) -> None:
        authenticator = await self.authenticator(read=True)
        key = self.key()
        await self.index.refresh()
        self.database.statements = 0
        self.admin.run("BEGIN; LOCK TABLE dinedesk_main.pos_api_keys")
        arrivals = [
            begin(authenticator.find_credential("kitchen", key, f"till-{number}", HERE))
            for number in range(2000)
        ]
        self.admin.run("COMMIT")
        depths: set[int] = set()
        for each in arrivals:
            each.addCallback(lambda _: depths.add(stack.stack_depth()))
        while not all(each.called for each in arrivals):
            self.clock.advance(0)
            await deferLater(REACTOR, 0.005)
        await gatherResults(arrivals)
        # Four statements with one query each, then batches of up to 200.
        self.assertLessEqual(self.database.statements, 4 + 2000 // 200 + 1)
        # No waiter ran inside another one.
        self.assertLess(max(depths), 60)

    async def test_so_do_two_thousand_with_one_key_and_no_name(self) -> None:
        authenticator = await self.authenticator()
        key = self.key()
        arrivals = [
            begin(authenticator.find_credential("kitchen", key, None, HERE)) for _ in range(2000)
        ]
        await until(lambda: bool(authenticator._lookup._released), "the key is found")
        # Released waiters have work to do; other clients are served in between.
        self.assertEqual(len([each for each in arrivals if each.called]), 0)
        turns: list[int] = []
        later = self.clock.callLater

        def noted(delay: float, *what: Any) -> IDelayedCall:
            turns.append(len([each for each in arrivals if each.called]))
            return later(delay, *what)

        self.patch(self.clock, "callLater", noted)
        self.clock.advance(0)
        self.assertEqual(turns, [*range(50, 2000, 50)])
        await gatherResults(arrivals)
        self.assertEqual(self.database.statements, 1)

    async def test_above_the_limit_lookups_are_refused_as_busy(self) -> None:
        authenticator = await self.authenticator()
        self.admin.run("BEGIN; LOCK TABLE dinedesk_main.pos_api_keys")
        arrivals = [
            begin(self.refusal(authenticator.find_credential("kitchen", f"key-{n}", None, HERE)))
            for n in range(5001)
        ]
        self.assertEqual([each for each in arrivals if each.called], arrivals[5000:])
        self.assertIsInstance(await arrivals[5000], Busy)
        self.clock.advance(3.5)
        await gatherResults(arrivals)
        self.admin.run("COMMIT")

    async def test_a_failed_statement_fails_all_its_waiters_and_the_next_query_works(self) -> None:
        authenticator = await self.authenticator()
        key = self.key()
        self.admin.run("ALTER TABLE dinedesk_main.pos_devices RENAME TO away")
        calls = [
            begin(self.refusal(authenticator.find_credential("kitchen", key, None, HERE)))
            for _ in range(50)
        ]
        for each in calls:
            error = await each
            self.assertIsInstance(error, StatementFailed)
        # The traceback has the frames of one waiter, not of all.
        self.assertLess(len([*walk_tb(error.__traceback__)]), 30)
        self.admin.run("ALTER TABLE dinedesk_main.away RENAME TO pos_devices")
        await authenticator.find_credential("kitchen", key, None, HERE)


class FilesTests(AuthCase):
    async def test_no_request_reads_a_file(self) -> None:
        """A valid key is served even if no file descriptor is left or the files of posd are deleted."""
        authenticator = await self.authenticator()
        key = self.key()

        def fail(*given: object, **more: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        self.patch(Path, "read_text", fail)
        self.patch(Path, "open", fail)
        self.patch(builtins, "open", fail)
        for _ in range(2):
            await authenticator.find_credential("kitchen", key, "bar", HERE)
            authenticator.forget_all()


class AttemptsTests(AuthCase):
    async def test_failed_attempts_block_an_address_but_not_a_valid_key(self) -> None:
        authenticator = await self.authenticator(per_minute=3)
        key = self.key()
        refusals = [
            await self.refusal(authenticator.find_credential("kitchen", "wrong", None, HERE))
            for _ in range(5)
        ]
        self.assertEqual(
            [type(each) for each in refusals], [Unauthorized] * 3 + [TooManyRequests] * 2
        )
        assert isinstance(refusals[-1], TooManyRequests)
        self.assertEqual(refusals[-1].retry_after, 60)
        self.assertEqual(refusals[-1].code, "too_many_attempts")
        self.assertEqual(
            (await authenticator.find_credential("kitchen", key, None, HERE)).tenant.slug, "kitchen"
        )
        elsewhere = await self.refusal(
            authenticator.find_credential("kitchen", "wrong", None, "192.0.2.2")
        )
        self.assertIsInstance(elsewhere, Unauthorized)
        self.clock.advance(61)
        again = await self.refusal(authenticator.find_credential("kitchen", "wrong", None, HERE))
        self.assertIsInstance(again, Unauthorized)


class DeviceTests(AuthCase):
    async def test_a_key_of_a_device_is_for_that_device_only(self) -> None:
        authenticator = await self.authenticator()
        key = self.key("device", device="front")
        for named in (None, "front"):
            credential = await authenticator.find_credential("kitchen", key, named, HERE)
            self.assertEqual(credential.principal.device_id, "front")
        refusal = await self.refusal(authenticator.find_credential("kitchen", key, "back", HERE))
        self.assertIsInstance(refusal, Forbidden)
        self.assertEqual(getattr(refusal, "code", None), "device_mismatch")

    async def test_a_device_that_has_had_a_key_needs_a_key_of_its_own(self) -> None:
        authenticator = await self.authenticator()
        self.change(self.key("device", device="front"), "revoked_at = now()")
        tenant_key = self.key()
        refusal = await self.refusal(
            authenticator.find_credential("kitchen", tenant_key, "front", HERE)
        )
        self.assertEqual(getattr(refusal, "code", None), "device_key_required")
        credential = await authenticator.find_credential("kitchen", tenant_key, "back", HERE)
        self.assertIsNone(credential.principal.device_id)

    async def test_a_device_that_is_disabled_is_refused_by_either_key(self) -> None:
        authenticator = await self.authenticator()
        own, tenant_key = self.key("device", device="front"), self.key()
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_devices (tenant_id, device_id) VALUES (1, 'b')"
        )
        self.admin.run("UPDATE dinedesk_main.pos_devices SET is_active = false")
        for key, named in ((own, None), (tenant_key, "b")):
            refusal = await self.refusal(authenticator.find_credential("kitchen", key, named, HERE))
            self.assertEqual(getattr(refusal, "code", None), "device_disabled")

    async def test_a_key_of_another_kind_is_forbidden(self) -> None:
        principal = Principal(1, KeyKind.DEVICE, None)
        require_kind(principal, KeyKind.TENANT, KeyKind.DEVICE)
        with self.assertRaises(Forbidden) as raised:
            require_kind(principal, KeyKind.PLATFORM)
        self.assertEqual(raised.exception.message, "A key of kind device may not do this.")
